"""Features and labels: the engine of ``features.sql``, reference tables, serving log, labelled rows.

Training, scoring and monitoring run the same SQL in the same engine, so that they cannot compute different features.
numpy, pyarrow and duckdb are imported at the top of modules; deltalake only inside the functions that write, as in the
storage package.
"""

__all__ = ["engine", "labelled_rows", "reference_tables", "scan_units", "serving_log", "targets"]
