"""`perennial new`: creates a model's folder from a sample file."""

__all__ = ["sample_reader", "templates", "wizard"]
