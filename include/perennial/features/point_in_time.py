"""Feature tables joined with a model's rows: for each row the newest values that were known before its event time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import duckdb

from perennial.core.durations import Duration
from perennial.core.partitions import Cadence
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.features import feature_tables
from perennial.spec.feature_table import VALID_FROM, FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session
from perennial.storage.delta_tables import PARTITION, File


class FeatureTableViews:
    """The feature tables of a model on one connection: a view of each, of the partitions that the rows at hand need.

    Args:
        con: the connection.
        spec: the model.
        versions: version of each table in the lake, by name; a table that has none is brought up to date when rows need
            it, and its latest version is used.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, spec: ModelSpec, versions: Mapping[str, int] | None
    ) -> None:
        self._con, self._spec = con, spec
        self._versions = versions
        self._bound: list[tuple[str, str] | None] = [None] * len(spec.feature_tables)
        for i, (_, table) in enumerate(spec.feature_tables):
            self._create_empty(i, table)

    def bind(self, rows: str) -> None:
        """Let the views have what some rows need.

        Args:
            rows: SQL of the rows, with their declared columns.

        Raises:
            DataNotReadyError: a source has not yet published what the rows need.
            SpecError, DataError: a table's SQL is refused, or failed.
            StorageError: a file is not what was written.
        """
        if not self._spec.feature_tables:
            return
        column = quote_identifier(str(self._spec.data.event_time))
        partition = PARTITION if _has_partitions(self._con, rows) else "CAST(NULL AS VARCHAR)"
        times = self._con.execute(
            f"SELECT {partition}, CAST(min({column}) AS TIMESTAMP), CAST(max({column}) AS TIMESTAMP) FROM ({rows}) "
            f"GROUP BY 1 HAVING min({column}) IS NOT NULL"
        ).fetchall()
        if not times:
            return
        ends = {day: partition_end(self._spec, day) for day, _, _ in times if day is not None}
        listed = ", ".join(f"{text_literal(day)}: TIMESTAMP '{end}'" for day, end in ends.items())
        self._con.execute(f"SET VARIABLE __partition_ends = MAP {{{listed}}}")
        first = min(start for _, start, _ in times)
        last = max(min(end, ends.get(day, end)) for day, _, end in times)
        for i, (_, table) in enumerate(self._spec.feature_tables):
            self._bind(i, table, first, last)

    def _bind(self, i: int, table: FeatureTable, first: datetime, last: datetime) -> None:
        needed = feature_tables.needed_partitions(table, first, last)
        if self._bound[i] == needed:
            return
        version = (self._versions or {}).get(table.name)
        if version is None:
            version = feature_tables.bring_up_to_date(table, first, last, model=self._spec.name)
        uri = feature_tables.uri(table)
        if not duckdb_session.create_view(self._con, f"__table_rows_{i}", uri, version, *needed):
            self._create_empty(i, table)
        self._bound[i] = needed

    def _create_empty(self, i: int, table: FeatureTable) -> None:
        kinds = {**table.entity, VALID_FROM: "timestamp", **table.features}
        columns = (f"CAST(NULL AS {SQL_TYPES[kind]}) AS {quote_identifier(c)}" for c, kind in kinds.items())
        self._con.execute(
            f"CREATE OR REPLACE TEMP VIEW __table_rows_{i} AS SELECT {', '.join(columns)} LIMIT 0"
        )


def partition_end(spec: ModelSpec, partition: str) -> datetime:
    """The end of a partition of a model, in UTC without a zone: what rows of it can know, however late their events."""
    return spec.cadence.end_of(partition).replace(tzinfo=None)


def joined_rows_sql(con: duckdb.DuckDBPyConnection, spec: ModelSpec, rows: str) -> str:
    """Compose SQL that adds the columns of the feature tables to rows.

    Args:
        con: the connection that reads the rows.
        spec: the model.
        rows: SQL of the rows, with their declared columns. If it also has their ``partition_date``, values that are
            known only after the end of the partition are not used: a row gets what it could get when it was scored.

    Returns:
        SQL that reads the views of `FeatureTableViews`, and returns each row once.
    """
    has_partitions = bool(spec.feature_tables) and _has_partitions(con, rows)
    for i, (join, table) in enumerate(spec.feature_tables):
        time = f"CAST(__r.{quote_identifier(str(spec.data.event_time))} AS TIMESTAMP)"
        if has_partitions:
            time = f"least({time}, getvariable('__partition_ends')[__r.{PARTITION}])"
        same = " AND ".join(
            f"__r.{quote_identifier(join.on.get(c, c))} = __f.{quote_identifier(c)}" for c in table.entity
        )
        known_at = f"{VALID_FROM} + {_interval(table.known_after, table.cadence)}"
        recent = f"__f.{VALID_FROM} >= {time} - {_interval(table.age_limit, table.cadence)}"
        columns = ", ".join(
            f"CASE WHEN {recent} THEN __f.{quote_identifier(c)} END AS {quote_identifier(join.prefix + c)}"
            for c in table.features
        )
        rows = (
            f"SELECT __r.*, {columns} FROM ({rows}) __r ASOF LEFT JOIN "
            f"(SELECT *, {known_at} AS __known_at FROM __table_rows_{i}) __f ON {same} AND {time} > __f.__known_at"
        )
    return f"SELECT * EXCLUDE ({PARTITION}) FROM ({rows})" if has_partitions else rows


def _has_partitions(con: duckdb.DuckDBPyConnection, rows: str) -> bool:
    return PARTITION in con.sql(f"SELECT * FROM ({rows}) LIMIT 0").columns


def table_digests(
    spec: ModelSpec, versions: Mapping[str, int], partitions: Iterable[str]
) -> dict[str, dict[str, str]]:
    """What the rows of each partition of a model read of its feature tables, by digest of the files.

    Args:
        spec: the model.
        versions: version of each table, by name.
        partitions: keys of the model's partitions.

    Returns:
        The digest of each table by name, by partition; empty for a model without feature tables.
    """
    digests: dict[str, dict[str, str]] = {}
    files = _files(spec, versions)
    for day in partitions if files else ():
        digests[day] = _digests(spec, files, day, day)
    return digests


def range_digests(spec: ModelSpec, versions: Mapping[str, int], start: str, end: str) -> dict[str, str]:
    """What the rows of a range of a model's partitions read of its feature tables: the digest of each table by name.

    Args:
        spec: the model.
        versions: version of each table, by name.
        start: first partition of the rows.
        end: last partition of the rows.
    """
    return _digests(spec, _files(spec, versions), start, end)


def _files(spec: ModelSpec, versions: Mapping[str, int]) -> dict[str, dict[str, list[File]]]:
    """The files of each feature table of a model, by table and partition."""
    return {
        table.name: delta_tables.files_by_partition(feature_tables.uri(table), versions.get(table.name))
        for _, table in spec.feature_tables
    }


def _digests(
    spec: ModelSpec, files: Mapping[str, Mapping[str, list[File]]], start: str, end: str
) -> dict[str, str]:
    first = spec.cadence.start_of(start).replace(tzinfo=None)
    last = spec.cadence.end_of(end).replace(tzinfo=None)
    digests = {}
    for _, table in spec.feature_tables:
        low, high = feature_tables.needed_partitions(table, first, last)
        listed = (f for key, part in files[table.name].items() if low <= key <= high for f in part)
        digests[table.name] = delta_tables.files_digest(listed)
    return digests


def _interval(duration: Duration, cadence: Cadence) -> str:
    return f"INTERVAL {int(duration.length(cadence).total_seconds())} SECONDS"
