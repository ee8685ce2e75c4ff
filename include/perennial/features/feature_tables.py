"""Feature tables: what happened to an entity before, computed from published rows, a partition at a time.

A partition is computed from the rows of its sources up to its own end and back to the table's lookback. What it was
computed from is recorded in its manifest, so that it is computed again when one of these files is replaced, and only
then. A table whose definition changed is another table in the lake: versions that were trained on the earlier one keep
it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import duckdb
import pyarrow as pa

from perennial.core.errors import DataError, DataNotReadyError, SpecError
from perennial.core.redaction import error_text
from perennial.core.sql import quote_identifier
from perennial.features.history import HistoryRange, PublishedHistory, check_sql, computed_sql, range_of
from perennial.features.labelled_rows import create_row_view
from perennial.spec.feature_table import VALID_FROM, FeatureTable
from perennial.spec.model_spec import ModelSpec, source_specs
from perennial.storage import delta_tables, duckdb_session, locks, manifests, object_store
from perennial.storage.delta_tables import PARTITION
from perennial.storage.manifests import Manifest

STEP = "features"
#: Seconds to wait for another run that computes the same table.
LOCK_SECONDS = 900.0
#: Relative difference from which two numbers differ: a sum of the same numbers may be rounded in another order.
TOLERANCE = 1e-9
log = logging.getLogger("perennial")


def table_name(table: FeatureTable) -> str:
    """The name of a table's definition in the lake."""
    return f"{table.name}-{table.digest[:8]}"


def uri(table: FeatureTable) -> str:
    """The lake table of a feature table's definition."""
    return delta_tables.table_uri("features", table_name(table))


def sync_to_lake(spec: ModelSpec, start: str, end: str) -> dict[str, int]:
    """Compute what the rows of some partitions of a model need of its feature tables, where it is missing or outdated.

    Args:
        spec: the model.
        start: first partition of the rows.
        end: last partition of the rows.

    Returns:
        The version of each table in the lake, by name.

    Raises:
        DataNotReadyError: a source has not yet published what the rows need.
        SpecError, DataError: a table's SQL is refused, or failed.
    """
    if not spec.features.tables:
        return {}
    times = event_times(spec, start, end)
    versions: dict[str, int] = {}
    for _, table in spec.feature_tables:
        if times is not None and table.name not in versions:
            versions[table.name] = bring_up_to_date(table, *times, model=spec.name)
    return versions


def event_times(spec: ModelSpec, start: str, end: str) -> tuple[datetime, datetime] | None:
    """The first event time of published rows, and the last one that is not after the end of the last partition.

    In UTC without a zone; None if there are none.
    """
    with duckdb_session.connect() as con:
        if not create_row_view(con, "__rows", spec, None, start, end):
            return None
        time_column = quote_identifier(str(spec.data.event_time))
        ((first, last),) = con.execute(
            f"SELECT CAST(min({time_column}) AS TIMESTAMP), CAST(max({time_column}) AS TIMESTAMP) FROM __rows"
        ).fetchall()
    return None if first is None else (first, min(last, spec.cadence.end_of(end).replace(tzinfo=None)))


def bring_up_to_date(table: FeatureTable, first: datetime, last: datetime, model: str | None = None) -> int:
    """Compute the partitions that rows with these event times need, where they are missing or outdated.

    Args:
        table: the table.
        first: first event time, in UTC without a zone.
        last: last event time, likewise.
        model: the model whose rows they are, which are published whatever its newest partition is.

    Returns:
        The version of the table; 0 for an empty table.
    """
    history = PublishedHistory(table)
    needed = last - table.known_after.length(table.cadence)
    behind = history.behind(needed, model)
    if behind is not None:
        raise DataNotReadyError(
            f"feature table {table.name}: rows up to {last} need what {behind} publishes, which has nothing up to "
            f"{needed} yet",
            f"run the data step of {behind}; if its rows arrive later, say so by known_after of the table",
        )
    start, end = needed_partitions(table, first, last)
    compute(table, [day for day in history.partitions() if start <= day <= end], history)
    return delta_tables.version(uri(table)) or 0


def needed_partitions(table: FeatureTable, first: datetime, last: datetime) -> tuple[str, str]:
    """The first and the last partition of a table that rows with these event times, in UTC without a zone, can need."""
    cadence = table.cadence
    start = cadence.key_of((first - table.age_limit.length(cadence)).replace(tzinfo=UTC))
    # What begins to be valid at the moment of the event itself is not used.
    return start, cadence.key_of((last - timedelta(microseconds=1)).replace(tzinfo=UTC))


def compute(
    table: FeatureTable,
    partitions: Iterable[str],
    history: PublishedHistory | None = None,
    *,
    force: bool = False,
) -> dict[str, int]:
    """Compute partitions that are missing or outdated.

    Args:
        table: the table.
        partitions: keys of its partitions.
        history: the rows of its sources; the latest when not given.
        force: also compute those that are up to date.

    Returns:
        Rows of each partition that was computed, by key.

    Raises:
        SpecError, DataError: the table's SQL is refused, or failed.
        LockHeldError: another run computes the same table.
    """
    history = history or PublishedHistory(table)
    pending = _pending(table, history, partitions, force)
    if not pending:
        return {}
    rows: dict[str, int] = {}
    with locks.hold(f"features-{table_name(table)}", timeout=LOCK_SECONDS):
        pending = _pending(table, history, pending, force)  # another run may have computed them meanwhile
        if not pending:
            return {}
        check_sql(table)
        writer = delta_tables.Writer(uri(table))
        with _connect(history) as con:
            writer.open()
            # A table's first partitions have little history, in which a fault may not show: so each night is tried
            # until there is twice the lookback.
            if len(writer.files_by_partition()) <= 2 * table.lookback.partitions(table.cadence):
                _check_times(con, table, history, pending)
            for day, inputs in pending.items():
                rows[day] = _compute(con, table, history, day, inputs, writer)
    log.info("Feature table %s: %d partitions computed, %d rows", table.name, len(rows), sum(rows.values()))
    return rows


@dataclass(frozen=True)
class BuildResult:
    """What `build` did.

    Attributes:
        rows: rows of each partition that was computed, by key.
        unchanged: number of partitions that were up to date.
    """

    rows: dict[str, int]
    unchanged: int


def build(table: FeatureTable, start: str, end: str | None = None, *, force: bool = False) -> BuildResult:
    """Compute the partitions of a range for which the sources have rows, where they are missing or outdated.

    Args:
        table: the table.
        start: first partition.
        end: last partition; ``start`` when None.
        force: also compute those that are up to date.

    Raises:
        SpecError, DataError: the table's SQL is refused, or failed.
        LockHeldError: another run computes the same table.
    """
    wanted, history = set(table.cadence.keys(start, end)), PublishedHistory(table)
    present = [day for day in history.partitions() if day in wanted]
    rows = compute(table, present, history, force=force)
    return BuildResult(rows, len(present) - len(rows))


def _pending(
    table: FeatureTable, history: PublishedHistory, partitions: Iterable[str], force: bool
) -> dict[str, dict[str, Any]]:
    """The partitions that are missing or outdated, and what they depend on."""
    inputs = {
        day: {"definition": table.digest, "history": history.digest(range_of(table, day))}
        for day in partitions
    }
    done = {} if force else manifests.read_all(table_name(table), STEP, inputs)
    return {day: i for day, i in inputs.items() if day not in done or not done[day].is_from(i)}


def _connect(history: PublishedHistory) -> duckdb.DuckDBPyConnection:
    con = duckdb_session.connect(memory_share=0.5)
    duckdb_session.lock(con, folders=history.folders())
    return con


def _compute(
    con: duckdb.DuckDBPyConnection,
    table: FeatureTable,
    history: PublishedHistory,
    day: str,
    inputs: dict[str, Any],
    writer: delta_tables.Writer,
) -> int:
    """Compute and store one partition; returns its number of rows."""
    started, processor_started = time.monotonic(), time.process_time()
    reads = range_of(table, day)
    _run(con, table, history, reads)
    _check_unique(con, table, day)
    entity = ", ".join(map(quote_identifier, table.entity))
    count = int(con.execute("SELECT count(*) FROM __computed").fetchall()[0][0])

    def stream() -> pa.RecordBatchReader:
        rows = con.sql(f"SELECT *, '{day}' AS {PARTITION} FROM __computed ORDER BY {entity}, {VALID_FROM}")
        return cast("pa.RecordBatchReader", rows.to_arrow_reader())

    if count or day in {*writer.files_by_partition()} or writer.open() is None:
        version = writer.replace(stream, day)
    else:
        version = delta_tables.version(uri(table)) or 0
    sizes = (object_store.stat(file.path) for file in writer.files_by_partition().get(day, []))
    outputs = {
        "version": version,
        "cpu_seconds": round(time.process_time() - processor_started, 3),
        "bytes": sum(stat.size for stat in sizes if stat),
    }
    manifests.write(
        Manifest(
            table_name(table), STEP, day, inputs, {"partition": day, "rows": count},
            outputs=outputs, rows_in=count, rows_out=count,
        ),
        started,
    )  # fmt: skip
    return count


def _run(
    con: duckdb.DuckDBPyConnection,
    table: FeatureTable,
    history: PublishedHistory,
    reads: HistoryRange,
    until: datetime | None = None,
    name: str = "__computed",
) -> None:
    """Run the SQL of a table into a temporary table, with the rows whose time lies in the partition."""
    history.create_views(con, reads, until)
    try:
        with duckdb_session.time_limit(con):
            con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {computed_sql(table, reads)}")
    except (duckdb.Error, TimeoutError) as error:
        hidden = any(spec.hides_values for spec in source_specs(table))
        text = str(error) if isinstance(error, TimeoutError) else error_text(error, hide=hidden)
        raise DataError(
            f"feature table {table.name}: features.sql failed: {text}",
            "correct the SQL, or add an expectation to the source that quarantines such rows",
            partition=reads.partition,
        ) from error


def _check_unique(con: duckdb.DuckDBPyConnection, table: FeatureTable, day: str) -> None:
    """Refuse two rows of one entity and time with different values.

    Raises:
        DataError: there are such rows.
    """
    entity = ", ".join(map(quote_identifier, table.entity))
    repeated = con.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM __computed GROUP BY {entity}, {VALID_FROM} HAVING count(*) > 1)"
    ).fetchall()[0][0]
    if repeated:
        raise DataError(
            f"feature table {table.name}: {repeated} times an entity has different values at one {VALID_FROM}",
            "return one row for each entity and time: GROUP BY both, or take the last of several",
            partition=day,
        )


def check_times(table: FeatureTable) -> str | None:
    """Refuse SQL whose values at a time depend on later rows, or on rows before the lookback.

    Returns:
        The partition that this was tried on, the newest one; None if nothing is published.

    Raises:
        SpecError, DataError: they depend on such rows, or the SQL failed.
    """
    history = PublishedHistory(table)
    newest = history.partitions()[-1:]
    with _connect(history) as con:
        if newest:
            _check_times(con, table, history, newest)
    return newest[0] if newest else None


def _check_times(
    con: duckdb.DuckDBPyConnection, table: FeatureTable, history: PublishedHistory, partitions: Iterable[str]
) -> None:
    """Refuse SQL whose values at a time depend on later rows, or on rows before the lookback.

    Tried on the last partition: computed again from the rows up to a moment, and from twice the lookback, the values up
    to that moment must be the same.

    Raises:
        SpecError: they are not.
    """
    day = max(partitions)
    reads = range_of(table, day)
    _run(con, table, history, reads)
    _check_unique(con, table, day)
    moments = [reads.start] + [
        moment
        for (moment,) in con.execute(f"SELECT quantile_disc({VALID_FROM}, 0.5) FROM __computed").fetchall()
        if moment is not None
    ]
    for moment in moments:
        _run(con, table, history, reads, until=moment, name="__until")
        if column := _difference(con, table, "__until", moment):
            raise SpecError(
                f"feature table {table.name}: features.sql: {column!r} at a time depends on rows of the history that "
                f"are later than {VALID_FROM} (partition {day})",
                "let windows end with the current row, and aggregates over history read only what is before "
                "period.starts_at",
            )
    _run(con, table, history, range_of(table, day, lookbacks=2), name="__longer")
    if column := _difference(con, table, "__longer", reads.end):
        raise SpecError(
            f"feature table {table.name}: features.sql: {column!r} depends on rows that are older than the lookback of "
            f"{table.lookback} (partition {day})",
            "give each window a length, such as RANGE BETWEEN INTERVAL 7 DAYS PRECEDING AND CURRENT ROW, and set "
            "lookback to the longest one",
        )


def _difference(
    con: duckdb.DuckDBPyConnection, table: FeatureTable, other: str, until: datetime
) -> str | None:
    """The first column whose values differ in another computation, up to a moment; None if there is none."""
    entity = " AND ".join(f"__a.{quote_identifier(c)} = __b.{quote_identifier(c)}" for c in table.entity)
    within = f"{VALID_FROM} <= TIMESTAMP '{until}'"
    tests = []
    for column, kind in table.features.items():
        a, b = f"__a.{quote_identifier(column)}", f"__b.{quote_identifier(column)}"
        differs = f"{a} IS DISTINCT FROM {b}"
        if kind == "number":
            differs += (
                f" AND NOT coalesce(abs({a} - {b}) <= {TOLERANCE} * greatest(abs({a}), abs({b})), false)"
            )
        tests.append(f"count(*) FILTER (WHERE {differs})")
    missing = f"count(*) FILTER (WHERE __a.{VALID_FROM} IS NULL OR __b.{VALID_FROM} IS NULL)"
    counts = con.execute(
        f"SELECT {missing}, {', '.join(tests)} FROM (FROM __computed WHERE {within}) __a FULL JOIN "
        f"(FROM {other} WHERE {within}) __b ON {entity} AND __a.{VALID_FROM} = __b.{VALID_FROM}"
    ).fetchall()[0]
    names = ["the rows", *table.features]
    return next((name for name, count in zip(names, counts, strict=True) if count), None)
