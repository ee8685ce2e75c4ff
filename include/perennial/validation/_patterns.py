"""Which engine evaluates a regular expression: DuckDB, or Great Expectations itself."""

from __future__ import annotations

import functools
import warnings

import duckdb

from perennial.storage import duckdb_session


@functools.lru_cache(maxsize=4096)
def sql_problem(pattern: str) -> str:
    """Why DuckDB cannot evaluate a pattern; empty if it can.

    DuckDB uses RE2, which is linear in the length of the text and has neither look-around nor back-references.
    """
    try:
        duckdb_session.connect_small().execute("SELECT regexp_matches('', ?)", [pattern]).fetchall()
    except duckdb.Error as error:
        return str(error).removeprefix("Invalid Input Error: ").splitlines()[0]
    return ""


@functools.lru_cache(maxsize=4096)
def problem(pattern: str) -> str:
    """Why neither DuckDB nor pandas, with which Great Expectations evaluates it, can do so; empty if one can."""
    if not sql_problem(pattern):
        return ""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about patterns with groups
            pd.Series(["x"]).astype(str).str.contains(pattern)
    except Exception as error:  # of Arrow or of Python's module re
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""
