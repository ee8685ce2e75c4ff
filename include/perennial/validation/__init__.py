"""A model's Great Expectations suite: its checks as SQL, their evaluation in DuckDB, the data docs.

duckdb is imported at the top of modules. great_expectations takes seconds to import, so it is imported inside the
functions that use it; ``perennial check`` and DAG files read suites with `suite`, which imports no heavy libraries.
"""

__all__ = [
    "check_builder",
    "checks",
    "data_docs",
    "dry_run",
    "gx_evaluator",
    "signatures",
    "suite",
    "validator",
]
