"""The lake and the landing area: small objects, Delta tables, landed files, locks, manifests and the ledger.

Folders and S3 behave alike for everything above this package. Light tasks and DAG files import it: DuckDB, PyArrow,
deltalake and boto3 are imported inside the functions that use them.
"""

__all__ = [
    "delta_tables",
    "duckdb_session",
    "landing",
    "ledger",
    "locks",
    "manifests",
    "object_store",
]
