"""A model's Great Expectations suite: its checks as SQL, their evaluation in DuckDB, the data docs.

duckdb is imported at the top of modules. great_expectations is imported inside the functions that use it, because that
takes seconds, and ``perennial check`` and DAG files read a suite without it; `suite` imports nothing heavy at all.
"""

__all__ = ["check_builder", "checks", "data_docs", "gx_evaluator", "suite", "validator"]
