"""From landed files to published rows and labels; invalid rows and labels go to quarantine.

numpy, pyarrow and duckdb are imported at the top of modules; evidently and pandas inside the functions that use them,
because together they take seconds and hundreds of megabytes, which only the data profile needs.
"""

__all__ = [
    "data_profile",
    "erasure_remains",
    "erasure_requests",
    "labels",
    "manifest_corrections",
    "model_tables",
    "publishing",
    "query_feed",
    "rows",
    "run",
    "suite_queries",
    "table_definitions",
    "typed_rows",
]
