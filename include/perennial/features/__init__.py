"""Features and labels: the engine of ``features.sql``, reference tables, serving log, labelled rows.

The same SQL runs in the same engine in training, scoring and monitoring, so that the features of a row cannot differ
between them. numpy, pyarrow and duckdb are imported at the top of modules; deltalake only inside the functions that
write, as in the storage package.
"""

__all__ = ["engine", "labelled_rows", "reference_tables", "scan_units", "serving_log", "targets"]
