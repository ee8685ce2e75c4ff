"""`perennial new`: creates a model's folder from a sample file."""

__all__ = [
    "expectations",
    "file_writer",
    "first_run",
    "inference",
    "partition_statistics",
    "partitioning",
    "query_sample",
    "questions",
    "templates",
    "training_sections",
    "wizard",
]
