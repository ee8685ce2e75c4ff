"""The tests of a feature table's folder: rows of the history in, features out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np

from perennial.core.redaction import error_text
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.features.history import (
    HISTORY,
    PERIOD,
    HistoryRange,
    computed_sql,
    label_type,
    period_sql,
    range_of,
    source_columns,
)
from perennial.spec.feature_table import VALID_FROM, FeatureTable, FeatureTest
from perennial.spec.model_spec import source_specs
from perennial.storage import duckdb_session

#: Relative difference up to which two numbers are equal.
TOLERANCE = 1e-6


def failures(table: FeatureTable) -> list[str]:
    """Run the tests of a table; returns a line for each that fails.

    `history.check_sql` must have allowed its SQL.
    """
    lines = []
    for test in table.tests:
        try:
            lines += [f"test {test.name!r}: {text}" for text in _failures(table, test)]
        except (duckdb.Error, TimeoutError, ValueError) as error:
            text = error_text(error, hide=False) if isinstance(error, duckdb.Error) else str(error)
            lines.append(f"test {test.name!r}: {text}")
    return lines


def _failures(table: FeatureTable, test: FeatureTest) -> Iterator[str]:
    """What a test finds wrong."""
    kinds = {**table.entity, VALID_FROM: "timestamp", **table.features}
    with duckdb_session.connect_small() as con:
        _create_sources(con, table, test)
        reads = range_of(table, test.partition or _partition_of(con, table, test))
        con.execute(f"CREATE TEMP VIEW {PERIOD} AS {period_sql(reads.start, reads.end)}")
        duckdb_session.lock(con)
        with duckdb_session.time_limit(con):
            con.execute(f"CREATE TEMP TABLE __computed AS {computed_sql(table, reads)}")
        for expected in test.features:
            if difference := _difference(con, table, expected, kinds, reads):
                yield difference


def _create_sources(con: duckdb.DuckDBPyConnection, table: FeatureTable, test: FeatureTest) -> None:
    """Create the tables that the SQL reads, from the rows of a test."""
    given = {table.sources[0].model: test.history, **test.sources}
    if unknown := [name for name in given if name not in {s.model for s in table.sources}]:
        raise ValueError(f"sources names {unknown[0]!r}, which is none of the table's sources")
    for i, (source, spec) in enumerate(zip(table.sources, source_specs(table), strict=True)):
        kinds = {c: SQL_TYPES[spec.data.columns[c]] for c in source_columns(spec, source.label)}
        if source.label is not None:
            kinds[source.label] = label_type(con, spec)
        columns = ", ".join(f"{quote_identifier(c)} {kind}" for c, kind in kinds.items())
        con.execute(f"CREATE TEMP TABLE {quote_identifier(spec.name)} ({columns})")
        for row in given.get(spec.name, ()):
            if unknown := [c for c in row if c not in kinds]:
                raise ValueError(f"a row of {spec.name} has {unknown[0]!r}, which is not one of its columns")
            names, values = map(quote_identifier, row), (_literal(v, kinds[c]) for c, v in row.items())
            con.execute(
                f"INSERT INTO {quote_identifier(spec.name)} ({', '.join(names)}) VALUES ({', '.join(values)})"
            )
        if i == 0 and spec.name != HISTORY:
            con.execute(f"CREATE TEMP VIEW {HISTORY} AS FROM {quote_identifier(spec.name)}")


def _partition_of(con: duckdb.DuckDBPyConnection, table: FeatureTable, test: FeatureTest) -> str:
    """The partition of the latest expected time."""
    listed = ", ".join(_literal(row.get(VALID_FROM), "TIMESTAMP") for row in test.features)
    ((latest,),) = con.execute(f"SELECT list_max([{listed}])").fetchall()
    if latest is None:
        raise ValueError(f"an expected row needs {VALID_FROM}")
    moment: datetime = latest.replace(tzinfo=UTC)
    return table.cadence.key_of(moment)


def _difference(
    con: duckdb.DuckDBPyConnection,
    table: FeatureTable,
    expected: Mapping[str, Any],
    kinds: Mapping[str, str],
    reads: HistoryRange,
) -> str:
    """How what was computed differs from an expected row; empty if it does not."""
    if unknown := [c for c in expected if c not in kinds]:
        raise ValueError(f"an expected row has {unknown[0]!r}, which the table does not have")
    identity = {c: expected.get(c) for c in (*table.entity, VALID_FROM)}
    where = " AND ".join(
        f"{quote_identifier(c)} IS NOT DISTINCT FROM {_literal(v, SQL_TYPES[kinds[c]])}"
        for c, v in identity.items()
    )
    shown = ", ".join(f"{c} {v}" for c, v in identity.items())
    features = [c for c in expected if c in table.features]
    selected = ", ".join(map(quote_identifier, features)) or "1"
    rows = con.execute(f"SELECT {selected} FROM __computed WHERE {where}").fetchall()
    if not rows:
        return f"there is no row of {shown} (partition {reads.partition})"
    if len(rows) > 1:
        return f"there are {len(rows)} rows of {shown}"
    for column, value in zip(features, rows[0], strict=False):
        wanted = expected[column]
        if not _same(value, wanted):
            return f"{column} of {shown} is {value}, expected {wanted}"
    return ""


def _same(value: Any, wanted: Any) -> bool:
    if value is None or wanted is None:
        return value is wanted
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return bool(np.isclose(float(value), float(wanted), rtol=TOLERANCE, atol=0))
    return str(value) == str(wanted)


def _literal(value: Any, kind: str) -> str:
    return "NULL" if value is None else f"CAST({text_literal(str(value))} AS {kind})"
