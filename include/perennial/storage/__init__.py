"""The lake and the landing area: files, Delta tables, landed files, locks, manifests, the ledger.

Everything above this package works the same on a folder and on S3. Light tasks and DAG files import it, so DuckDB,
PyArrow, deltalake and boto3 are imported inside the functions that use them.
"""

__all__ = [
    "delta_tables",
    "duckdb_session",
    "file_digests",
    "generations",
    "landing",
    "ledger",
    "leftovers",
    "locks",
    "manifests",
    "object_store",
    "pages",
    "part_folders",
    "storage_errors",
]
