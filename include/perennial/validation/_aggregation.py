"""SQL aggregates of a relation of landed files, for each file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb

from perennial.storage.landing import LandedFile

#: Aggregates of one query, whose time grows with their square.
MAX_AGGREGATES = 250


def aggregate_by_file(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], relation: str, sqls: Iterable[str]
) -> list[dict[str, Any]]:
    """Compute aggregates; returns results by SQL text, for each file.

    Args:
        con: connection with the relation.
        landed: the files.
        relation: has the rows of the files, with their index in ``__file``.
        sqls: the aggregates; repeated ones are computed once.
    """
    aggregates = list(dict.fromkeys(sqls))
    parts = [
        _compute(con, landed, relation, aggregates[i : i + MAX_AGGREGATES])
        for i in range(0, len(aggregates), MAX_AGGREGATES)
    ]
    return [{sql: value for part in parts for sql, value in part[i].items()} for i in range(len(landed))]


def _compute(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], relation: str, aggregates: list[str]
) -> list[dict[str, Any]]:
    """Compute aggregates in one query."""
    selected = ", ".join(aggregates)
    # a file without rows has no group
    empty = (
        con.execute(f"SELECT {selected} FROM {relation} WHERE FALSE").fetchall()[0]
        if any(not file.rows for file in landed)
        else ()
    )
    if len(landed) == 1:
        results = {0: con.execute(f"SELECT {selected} FROM {relation}").fetchall()[0]}
    else:
        groups = con.execute(f"SELECT __file, {selected} FROM {relation} GROUP BY __file").fetchall()
        results = {group[0]: group[1:] for group in groups}
    return [dict(zip(aggregates, results.get(i, empty), strict=True)) for i in range(len(landed))]
