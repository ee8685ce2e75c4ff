"""The history that a feature table's SQL reads: published rows of its sources up to the end of a partition."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb

from perennial.core.errors import SpecError
from perennial.core.redaction import error_text
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.features import author_sql, lineage
from perennial.features.declared_rows import readable
from perennial.features.labelled_rows import LABEL, create_label_view, create_row_view, join_labels
from perennial.spec.feature_table import VALID_FROM, FeatureTable
from perennial.spec.model_spec import ModelSpec, source_specs
from perennial.storage import delta_tables, duckdb_session, manifests
from perennial.storage.delta_tables import PARTITION, File

#: The view of the first source, and the one row that says which partition is computed.
HISTORY, PERIOD = "history", "period"


@dataclass(frozen=True)
class HistoryRange:
    """What the SQL may read for one partition of a table.

    Attributes:
        partition: its key.
        start: start of the partition, in UTC without a zone.
        end: its end, likewise.
        earliest: start of the history, likewise.
    """

    partition: str
    start: datetime
    end: datetime
    earliest: datetime


def range_of(table: FeatureTable, partition: str, lookbacks: int = 1) -> HistoryRange:
    """What the SQL of a table may read for a partition.

    Args:
        table: the table.
        partition: key of the partition.
        lookbacks: how often the lookback goes back.
    """
    cadence = table.cadence
    first = cadence.shift(partition, -lookbacks * table.lookback.partitions(cadence))
    start, end, earliest = (
        moment.replace(tzinfo=None)
        for moment in (cadence.start_of(partition), cadence.end_of(partition), cadence.start_of(first))
    )
    return HistoryRange(partition, start, end, earliest)


class PublishedHistory:
    """The published rows and labels of a table's sources, at the versions of the moment it is created."""

    def __init__(self, table: FeatureTable) -> None:
        self.table = table
        self._rows: dict[str, tuple[int | None, dict[str, list[File]]]] = {}
        self._labels: dict[str, tuple[int | None, dict[str, list[File]]]] = {}
        for source, spec in zip(table.sources, source_specs(table), strict=True):
            self._rows[spec.name] = _pin(delta_tables.table_uri("published", spec.name))
            if source.label and spec.label.source is not None:
                self._labels[spec.name] = _pin(delta_tables.table_uri("labels", spec.name))

    def partitions(self) -> list[str]:
        """Keys of the table's partitions for which a source of the same cadence has rows, in order."""
        same = (spec.name for spec in source_specs(self.table) if spec.cadence == self.table.cadence)
        return sorted({day for name in same for day in self._rows[name][1]})

    def behind(self, moment: datetime, except_for: str | None) -> str | None:
        """The source whose rows are not yet published up to a moment; None if there is none.

        Args:
            moment: the moment, in UTC without a zone.
            except_for: a source that is not looked at.
        """
        for spec in source_specs(self.table):
            if spec.name == except_for:
                continue
            needed = spec.cadence.key_of((moment - timedelta(microseconds=1)).replace(tzinfo=UTC))
            if max(self._rows[spec.name][1], default="") >= needed:
                continue
            if manifests.read(spec.name, "data", needed) is None:  # published without rows otherwise
                return spec.name
        return None

    def digest(self, reads: HistoryRange) -> str:
        """SHA-256 of the files that the SQL reads for a partition."""
        names: list[str] = []
        for spec in source_specs(self.table):
            first, last = _keys(spec, reads)
            label_end = _last_labelled(spec, reads)
            for pinned, end in ((self._rows, last), (self._labels, label_end)):
                _, files = pinned.get(spec.name, (None, {}))
                names += [
                    f.path.rsplit("/", 1)[1]
                    for day, listed in files.items()
                    if first <= day <= end
                    for f in listed
                ]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def create_views(
        self, con: duckdb.DuckDBPyConnection, reads: HistoryRange, until: datetime | None = None
    ) -> None:
        """Create the views that the SQL reads, each called like its model, and `HISTORY` and `PERIOD`.

        Args:
            con: the connection; views of these names are replaced.
            reads: what the SQL may read.
            until: leave out rows with a later event time, in UTC without a zone.
        """
        for i, (source, spec) in enumerate(zip(self.table.sources, source_specs(self.table), strict=True)):
            query = self._source_query(con, i, source.label, spec, reads)
            if until is not None and spec.data.event_time:
                time = quote_identifier(spec.data.event_time)
                query = f"SELECT * FROM ({query}) WHERE {time} IS NULL OR {time} <= TIMESTAMP '{until}'"
            for name in (spec.name, HISTORY)[: 2 if i == 0 else 1]:
                con.execute(f"CREATE OR REPLACE TEMP VIEW {quote_identifier(name)} AS {query}")
        con.execute(f"CREATE OR REPLACE TEMP VIEW {PERIOD} AS {period_sql(reads.start, reads.end)}")

    def _source_query(
        self, con: duckdb.DuckDBPyConnection, i: int, label: str | None, spec: ModelSpec, reads: HistoryRange
    ) -> str:
        """SQL of the rows of one source, whose views it creates."""
        first, last = _keys(spec, reads)
        version = self._rows[spec.name][0]
        rows = f"__source_{i}"
        if version is None or not create_row_view(con, rows, spec, version, first, last):
            return empty_source_sql(con, spec, label)
        selected = [quote_identifier(c) for c in source_columns(spec, label)]
        if label is None:
            return f"SELECT {', '.join(selected)} FROM {rows}"
        kind, until = label_type(con, spec), _last_labelled(spec, reads)
        if spec.label.source is None:
            known = f"CASE WHEN {PARTITION} <= {text_literal(until)} THEN {quote_identifier(spec.label.expression)} END"
            joined = rows
        else:
            labels, labels_version = f"__labels_{i}", self._labels[spec.name][0]
            known, joined = "NULL", rows
            if (
                labels_version is not None
                and first <= until
                and create_label_view(con, labels, spec, labels_version, first, until)
            ):
                known, joined = LABEL, f"({join_labels(spec, rows, labels, keep_unlabelled=True)})"
        selected.append(f"CAST({known} AS {kind}) AS {quote_identifier(label)}")
        return f"SELECT {', '.join(selected)} FROM {joined}"

    def folders(self) -> Iterator[str]:
        """The folders of the tables that the views read."""
        for spec in source_specs(self.table):
            yield delta_tables.table_uri("published", spec.name)
            if spec.name in self._labels:
                yield delta_tables.table_uri("labels", spec.name)


def _pin(uri: str) -> tuple[int | None, dict[str, list[File]]]:
    version = delta_tables.version(uri)
    return version, {} if version is None else delta_tables.files_by_partition(uri, version)


def _keys(spec: ModelSpec, reads: HistoryRange) -> tuple[str, str]:
    """The first and the last partition of a source that the history has."""
    first = spec.cadence.key_of(reads.earliest.replace(tzinfo=UTC))
    last = spec.cadence.key_of((reads.end - timedelta(microseconds=1)).replace(tzinfo=UTC))
    return first, last


def _last_labelled(spec: ModelSpec, reads: HistoryRange) -> str:
    """The last partition of a source whose labels had arrived when a partition began."""
    arrived = spec.cadence.key_of((reads.start - timedelta(microseconds=1)).replace(tzinfo=UTC))
    if spec.cadence.end_of(arrived).replace(tzinfo=None) > reads.start:
        arrived = spec.cadence.shift(arrived, -1)
    return spec.cadence.shift(arrived, -spec.label_delay)


def source_columns(spec: ModelSpec, label: str | None) -> list[str]:
    """The declared columns that the SQL sees: all but the label, if that is a column of the rows."""
    hidden = spec.label.expression if spec.label.source is None else None
    return [c for c in spec.data.columns if c not in (hidden, label)]


def label_type(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> str:
    """DuckDB's type of a source's label."""
    declared = spec.label.columns if spec.label.source else spec.data.columns
    columns = (f"CAST(NULL AS {SQL_TYPES[kind]}) AS {quote_identifier(c)}" for c, kind in declared.items())
    relation = con.sql(f"SELECT {author_sql.label_sql(spec)} FROM (SELECT {', '.join(columns)}) LIMIT 0")
    return str(relation.types[0])


def empty_source_sql(con: duckdb.DuckDBPyConnection, spec: ModelSpec, label: str | None) -> str:
    """SQL of a source without rows."""
    columns = [
        f"CAST(NULL AS {SQL_TYPES[spec.data.columns[c]]}) AS {quote_identifier(c)}"
        for c in source_columns(spec, label)
    ]
    if label is not None:
        columns.append(f"CAST(NULL AS {label_type(con, spec)}) AS {quote_identifier(label)}")
    return f"SELECT {', '.join(columns)} LIMIT 0"


def create_empty_sources(con: duckdb.DuckDBPyConnection, table: FeatureTable) -> dict[str, dict[str, str]]:
    """Create the views that the SQL of a table reads, without rows; returns the types of their columns."""
    tables: dict[str, dict[str, str]] = {}
    for i, (source, spec) in enumerate(zip(table.sources, source_specs(table), strict=True)):
        query = empty_source_sql(con, spec, source.label)
        relation = con.sql(query)
        for name in (spec.name, HISTORY)[: 2 if i == 0 else 1]:
            tables[name] = dict(zip(relation.columns, map(str, relation.types), strict=True))
            con.execute(f"CREATE TEMP VIEW {quote_identifier(name)} AS {query}")
    tables[PERIOD] = {"starts_at": "TIMESTAMP", "ends_at": "TIMESTAMP"}
    con.execute(f"CREATE TEMP VIEW {PERIOD} AS {period_sql(None, None)}")
    return tables


def check_sql(table: FeatureTable) -> None:
    """Check a table's SQL on sources without rows: what it may use, what it returns, and personal data.

    Raises:
        SpecError: it is refused, or what it returns is not what the table declares.
    """
    with duckdb.connect(config={"autoinstall_known_extensions": False, "threads": 1}) as con:
        con.execute("SET TimeZone='UTC'")
        tables = create_empty_sources(con, table)
        personal: dict[str, list[str]] = {}
        for i, (source, spec) in enumerate(zip(table.sources, source_specs(table), strict=True)):
            for name in (spec.name, HISTORY)[: 2 if i == 0 else 1]:
                personal[name] = [c for c in spec.personal_columns if c in tables[name]]
                if source.label and spec.label.personal and lineage.label_sources(spec):
                    personal[name].append(source.label)
        known = {c for columns in tables.values() for c in columns}
        if problem := author_sql.check_query(con, table.sql, set(tables), known):
            at = f":{problem.line}" if problem.line else ""
            readable_tables = ", ".join(sorted(tables))
            remedy = f"it may read {readable_tables}, with the functions that include/models/README.md lists"
            raise _refusal(table, problem.message, remedy, at)
        duckdb_session.lock(con)
        try:
            with duckdb_session.time_limit(con):
                relation = con.sql(author_sql.statement(table.sql))
                returned = dict(zip(relation.columns, map(str, relation.types), strict=True))
        except (duckdb.Error, TimeoutError) as error:
            raise _refusal(
                table,
                error_text(error, hide=False) if isinstance(error, duckdb.Error) else str(error),
                f"correct the SQL: it reads {', '.join(sorted(tables))}",
            ) from None
    _check_columns(table, returned)
    try:
        sources = lineage.personal_sources(tables, personal, author_sql.statement(table.sql))
    except TimeoutError as error:
        raise _refusal(table, str(error), "simplify the SQL, for example its nesting") from error
    for column, depends in zip(returned, sources, strict=True):
        if depends and column in table.features and column not in table.personal:
            raise _refusal(
                table,
                f"feature {column!r} depends on personal data ({', '.join(depends)})",
                "list it under personal, or leave it out",
            )


def _check_columns(table: FeatureTable, returned: dict[str, str]) -> None:
    """Compare what the SQL returns with what the table declares.

    Raises:
        SpecError: a column is missing, is not declared, or has another type.
    """
    declared = {**table.entity, VALID_FROM: "timestamp", **table.features}
    if missing := [c for c in declared if c not in returned]:
        raise _refusal(
            table, f"it does not return the column {missing[0]!r}", f"it returns: {', '.join(returned)}"
        )
    if unknown := [c for c in returned if c not in declared]:
        raise _refusal(
            table, f"it returns {unknown[0]!r}, which is not declared", "add it to features, or leave it out"
        )
    for column, kind in declared.items():
        if not readable(returned[column], kind):
            raise _refusal(
                table,
                f"column {column!r} is declared {kind}, and the SQL returns {returned[column]}",
                "declare its type, or convert it with CAST",
            )


def period_sql(start: datetime | None, end: datetime | None) -> str:
    """The SQL of `PERIOD`: start and end of a partition, in UTC without a zone; nulls where there is none."""
    values = (f"CAST({'NULL' if t is None else text_literal(str(t))} AS TIMESTAMP)" for t in (start, end))
    return "SELECT {} AS starts_at, {} AS ends_at".format(*values)


def computed_sql(table: FeatureTable, reads: HistoryRange) -> str:
    """The SQL of a partition of a table: its columns with their declared types, of times within the partition."""
    kinds = {**table.entity, VALID_FROM: "timestamp", **table.features}
    columns = ", ".join(
        f"CAST({quote_identifier(c)} AS {SQL_TYPES[kind]}) AS {quote_identifier(c)}"
        for c, kind in kinds.items()
    )
    present = " AND ".join(f"{quote_identifier(c)} IS NOT NULL" for c in table.entity)
    return (
        f"SELECT DISTINCT {columns} FROM (\n{author_sql.statement(table.sql)}\n) WHERE {present} AND "
        f"{VALID_FROM} >= TIMESTAMP '{reads.start}' AND {VALID_FROM} < TIMESTAMP '{reads.end}'"
    )


def _refusal(table: FeatureTable, cause: str, remedy: str, at: str = "") -> SpecError:
    return SpecError(f"feature table {table.name}: features.sql{at}: {cause}", remedy)
