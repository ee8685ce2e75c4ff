"""Features and labels: the engine of ``features.sql``, feature tables, reference tables, labelled rows.

Training, scoring and monitoring run the same SQL in the same engine, so that they cannot compute different features.
numpy, pyarrow and duckdb are imported at the top of modules; deltalake only inside the functions that write, as in the
storage package.
"""

__all__ = [
    "author_sql",
    "declared_rows",
    "engine",
    "feature_tables",
    "feature_tests",
    "history",
    "labelled_rows",
    "lineage",
    "point_in_time",
    "reference_copies",
    "reference_tables",
    "scan_units",
    "serving_log",
    "sql_functions",
    "targets",
]
