"""Publish validated rows and labels to the lake, and put bad ones in quarantine.

Everything streams from DuckDB into Delta tables, which are replaced one partition or one range of partitions at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from perennial.core.errors import SpecError
from perennial.core.partitions import DAILY, Cadence
from perennial.core.sql import HIDDEN_VALUE, SQL_TYPES, quote_identifier, row_group_rows, text_literal
from perennial.features import author_sql
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import table_definitions
from perennial.ingestion.typed_rows import UNCAST_PREFIX
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session
from perennial.storage.landing import LandedFile
from perennial.validation.validator import ValidationFindings

#: Rows that are published at a time, fewer if they have many columns.
BATCH_ROWS = 65_536
#: Columns of quarantine beside the key's.
QUARANTINE_COLUMNS = 6
#: Longer text is cut in quarantine; the row's key identifies the full text in the landed file.
MAX_TEXT_LENGTH = 1000
#: Columns of the partitions with rows that one commit writes, each partition's counted: the lake's writer needs 20 KB
#: for each of them until the commit ends.
MAX_OPEN_COLUMNS = 4096
#: Seconds in which the type of a label is determined; nothing is read for it.
TYPE_SECONDS = 10.0
_INTEGERS = ("BOOLEAN", "BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT", "UBIGINT", "UINTEGER")
#: Types that `label_type` has found: each step needs the same one several times.
_label_types: dict[tuple[Any, ...], str] = {}


class UnreadableError(Exception):
    """Rows that were validated cannot be read a second time.

    Its argument is why: a text, or the error, whose text may quote rows.
    """


class Replaced(NamedTuple):
    """Partitions that were replaced: version of the table, and `delta_tables.files_digest` of each that has rows."""

    version: int
    digests: dict[str, str]


@dataclass(frozen=True)
class ValidatedBatch:
    """Files that were validated together.

    Attributes:
        feed: the files' feed.
        files: the files.
        findings: the result of the validation.
        cast_failures: see `typed_rows.create_landed_view`.
    """

    feed: FeedSchema
    files: list[LandedFile]
    findings: ValidationFindings
    cast_failures: Mapping[str, str]


def partition_date_sql(files: list[LandedFile], cadence: Cadence = DAILY, delay: int = 0) -> str:
    """SQL of the key of a row's partition, or of the one that is ``delay`` partitions later."""
    days = [cadence.shift(file.day, delay) if delay else file.day for file in files]
    if len(days) == 1:
        return text_literal(days[0])
    return f"([{', '.join(text_literal(d) for d in days)}])[__file + 1]"


def partitions_condition(files: list[LandedFile], days: set[str]) -> str:
    """SQL condition of the rows of some partitions."""
    indices = [str(i) for i, file in enumerate(files) if file.day in days]
    return "TRUE" if len(indices) == len(files) else f"__file IN ({', '.join(indices) or '-1'})"


def published_rows_sql(batch: ValidatedBatch, days: set[str]) -> str:
    """SQL of the rows of some partitions that are published."""
    columns = ", ".join(quote_identifier(c) for c in batch.feed.columns)
    return (
        f"SELECT {columns}, {partition_date_sql(batch.files)} AS partition_date FROM {batch.findings.source} "
        f"WHERE {partitions_condition(batch.files, days)} AND NOT coalesce(({batch.findings.bad}), FALSE)"
    )


def quarantined_rows_sql(
    spec: ModelSpec, batch: ValidatedBatch, days: set[str], run_id: str, delay: int = 0
) -> str:
    """SQL of the rows that go to quarantine: key, feed, values as JSON, reasons, run.

    Args:
        spec: the model.
        batch: the validated files.
        days: partition dates of the files whose rows are wanted.
        run_id: of the Airflow run.
        delay: partitions from a file's to the one of the records (labels arrive with a later partition).
    """
    feed, files, findings = batch.feed, batch.files, batch.findings
    keys = ", ".join(
        f"TRY_CAST({quote_identifier(k)} AS {SQL_TYPES[spec.data.columns[k]]}) AS {quote_identifier(k)}"
        for k in spec.data.key
    )
    cells = ", ".join(
        f"{text_literal(c)}: {_quarantined_value(c, declared, batch)}" for c, declared in feed.columns.items()
    )
    reasons = ", ".join(
        f"CASE WHEN ({sql}) THEN {text_literal(label)} END" for label, sql in findings.reasons.items()
    )
    name = spec.lake_column
    return (
        f"SELECT {keys}, {text_literal(feed.kind)} AS {name('feed')}, "
        f"{partition_date_sql(files)} AS {name('feed_date')}, "
        f"to_json({{{cells}}})::VARCHAR AS {name('row_values')}, "
        f"list_filter([{reasons or 'NULL'}], lambda __reason: __reason IS NOT NULL)::VARCHAR[] AS {name('reasons')}, "
        f"{text_literal(run_id)} AS {name('run_id')}, "
        f"{partition_date_sql(files, spec.cadence, delay)} AS partition_date "
        f"FROM {findings.source} "
        f"WHERE {partitions_condition(files, days)} AND coalesce(({findings.bad}), FALSE)"
    )


def _quarantined_value(column: str, declared: str, batch: ValidatedBatch) -> str:
    """SQL of a value in quarantine: personal data hidden, long text cut, other types as text."""
    name = quote_identifier(column)
    if column in batch.feed.personal:
        return text_literal(HIDDEN_VALUE)
    if column in batch.cast_failures:
        text = f"coalesce({quote_identifier(UNCAST_PREFIX + column)}, {name}::VARCHAR)"
        return f"left({text}, {MAX_TEXT_LENGTH})"
    if declared == "string":
        cut = f"left({name}, {MAX_TEXT_LENGTH}) || '… (' || length({name}) || ' characters)'"
        return f"CASE WHEN length({name}) > {MAX_TEXT_LENGTH} THEN {cut} ELSE {name} END"
    return f"{name}::VARCHAR" if declared in ("number", "date", "timestamp") else name


def stopped_partitions_sql(spec: ModelSpec, reasons: Mapping[str, list[str]], run_id: str) -> str:
    """SQL of the quarantine records of stopped partitions, which have only the reasons.

    Args:
        spec: the model.
        reasons: why each partition was stopped, by its date; at least one.
        run_id: of the Airflow run.
    """
    keys = ", ".join(
        f"NULL::{SQL_TYPES[spec.data.columns[k]]} AS {quote_identifier(k)}" for k in spec.data.key
    )
    records = ", ".join(
        f"({text_literal(day)}, [{', '.join(text_literal('partition stopped: ' + r) for r in texts)}])"
        for day, texts in reasons.items()
    )
    name = spec.lake_column
    return (
        f"SELECT {keys}, 'partition' AS {name('feed')}, __day AS {name('feed_date')}, "
        f"NULL::VARCHAR AS {name('row_values')}, __reasons AS {name('reasons')}, "
        f"{text_literal(run_id)} AS {name('run_id')}, __day AS partition_date "
        f"FROM (VALUES {records}) AS __stopped(__day, __reasons)"
    )


def divide_into_commits(rows: Mapping[str, int], columns: int) -> Iterator[dict[str, int]]:
    """Divide partitions into those of one commit each, in order.

    Args:
        rows: rows of each partition, by date.
        columns: columns that are written.
    """
    group: dict[str, int] = {}
    room = most = max(1, MAX_OPEN_COLUMNS // columns)
    for day, count in sorted(rows.items()):
        if count and not room:
            yield group
            group, room = {}, most
        group[day] = count
        room -= bool(count)
    if group:
        yield group


def replace_partitions(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    kind: str,
    sql: str,
    days: Collection[str],
    expected: int | None = None,
    files: Sequence[LandedFile] = (),
    condition: str = "",
) -> Replaced:
    """Replace partitions of a table by the rows of a query in one commit, streaming.

    Args:
        con: DuckDB connection.
        spec: the model.
        kind: kind of the table.
        sql: the query.
        days: dates of the partitions; at least one.
        expected: number of rows that the query must give.
        files: the landed files that the query reads; nothing is published if one of them is replaced meanwhile.
        condition: SQL condition of the rows of these partitions that are replaced; all of them when empty.

    Returns:
        What the table holds of these rows.

    Raises:
        UnreadableError: not all rows could be read, their number differs, or a file was replaced; nothing was
            published.
    """
    writer = table_definitions.writer_of(spec, kind)
    version = writer.replace(
        lambda: _reader(con, sql, expected, files), min(days), max(days), days=days, condition=condition
    )
    written = writer.files_by_partition()
    return Replaced(version, {d: delta_tables.files_digest(written[d]) for d in days if d in written})


def quarantine(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    batch: ValidatedBatch,
    quarantined: Mapping[str, int],
    run_id: str,
    delay: int = 0,
) -> None:
    """Replace the quarantine of a batch's files by their bad rows, or labels.

    Args:
        con: DuckDB connection.
        spec: the model.
        batch: the validated files.
        quarantined: number of bad rows of each file, by its date.
        run_id: of the Airflow run.
        delay: partitions from a file's to the one of the records (labels arrive with a later partition).
    """
    present = set(delta_tables.partitions(delta_tables.table_uri("quarantine", spec.name)))
    replaced = {d: n for d, n in quarantined.items() if n or spec.cadence.shift(d, delay) in present}
    for days in divide_into_commits(replaced, len(spec.data.key) + QUARANTINE_COLUMNS):
        sql = quarantined_rows_sql(spec, batch, set(days), run_id, delay)
        replace_quarantine(con, spec, batch.feed.kind, sql, days, delay, sum(days.values()), batch.files)


def quarantine_stopped(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, stopped: Mapping[str, list[str]], run_id: str
) -> None:
    """Replace the quarantine of stopped partitions by the reasons why they were stopped.

    Args:
        con: DuckDB connection.
        spec: the model.
        stopped: the reasons of each partition, by date.
        run_id: of the Airflow run.
    """
    for days in divide_into_commits(dict.fromkeys(stopped, 1), len(spec.data.key) + QUARANTINE_COLUMNS):
        sql = stopped_partitions_sql(spec, {day: stopped[day] for day in days}, run_id)
        replace_quarantine(con, spec, "rows", sql, days)


def replace_quarantine(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    feed: str,
    sql: str,
    days: Collection[str],
    delay: int = 0,
    expected: int | None = None,
    files: Sequence[LandedFile] = (),
) -> None:
    """Replace the quarantine of the rows, or of the labels, of some files.

    One commit replaces the records of one feed only, since other runs may write those of the other at the same time.

    Args:
        con: DuckDB connection.
        spec: the model.
        feed: kind of the feed, ``rows`` or ``labels``.
        sql: query of the records.
        days: dates of the files. Labels of other dates may be in the same partition, after a change of
            ``label.arrives_after``.
        delay: partitions from a file's to the one of its records.
        expected: number of records that the query must give.
        files: the landed files that the query reads.
    """
    condition = (
        f"{spec.lake_column('feed')} {'=' if feed == 'labels' else '<>'} 'labels' "
        f"AND {spec.lake_column('feed_date')} IN ({', '.join(map(text_literal, sorted(days)))})"
    )
    shifted = [spec.cadence.shift(day, delay) for day in days] if delay else days
    replace_partitions(con, spec, "quarantine", sql, shifted, expected, files, condition)


def _reader(
    con: duckdb.DuckDBPyConnection,
    sql: str,
    expected: int | None,
    files: Sequence[LandedFile],
) -> pa.RecordBatchReader:
    """Read a query; what ends it before it has given all rows is an `UnreadableError`, which ends the write, too."""
    try:
        relation = con.sql(sql)
        rows_at_a_time = min(BATCH_ROWS, row_group_rows(len(relation.columns)))
        reader = relation.to_arrow_reader(rows_at_a_time)
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException):
        raise
    except duckdb.Error as error:
        raise UnreadableError(error) from error

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        try:
            while (batch := _next_batch(con, reader)) is not None:
                rows += batch.num_rows
                yield batch
        except Exception as error:
            raise UnreadableError(error) from error
        finally:
            reader.close()  # otherwise the connection could not be used again
        if replaced := [file.uri for file in files if file.changed]:
            raise UnreadableError(f"{replaced[0]} was replaced while it was read")
        if expected is not None and rows != expected:
            raise UnreadableError(
                f"{rows} rows were read, {expected} were validated: the file changed in between"
            )

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _next_batch(con: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    with duckdb_session.time_limit(con):
        return next(reader, None)


def label_type(spec: ModelSpec) -> str:
    """The SQL type of published labels: BIGINT, DOUBLE or VARCHAR.

    Raises:
        SpecError: ``label.expression`` is refused, fails on the columns of its feed, or gives another type.
    """
    columns = spec.label.columns if spec.label.source else spec.data.columns
    key = (spec.label.source is None, spec.label.expression, *columns.items())
    if key not in _label_types:
        _label_types[key] = _find_label_type(spec, columns)
    return _label_types[key]


def _find_label_type(spec: ModelSpec, columns: Mapping[str, str]) -> str:
    con = duckdb_session.connect_small()
    duckdb_session.lock(con)
    author_sql.check_label(con, spec)
    typed = ", ".join(f"NULL::{SQL_TYPES[kind]} AS {quote_identifier(c)}" for c, kind in columns.items())
    try:
        with duckdb_session.time_limit(con, TYPE_SECONDS):
            types = con.execute(
                f"SELECT typeof({author_sql.label_sql(spec)}) FROM (SELECT {typed})"
            ).fetchall()
    except (duckdb.Error, TimeoutError) as error:
        raise SpecError(
            f"model.yaml: label.expression {spec.label.expression!r} fails: {str(error).splitlines()[0]}",
            f"write SQL that uses these columns: {', '.join(columns)}",
            model=spec.name,
        ) from error
    sql_type = str(types[0][0])
    if sql_type in _INTEGERS:
        return "BIGINT"
    if sql_type in ("DOUBLE", "FLOAT") or sql_type.startswith("DECIMAL"):
        return "DOUBLE"
    if sql_type == "VARCHAR":
        return "VARCHAR"
    raise SpecError(
        f"model.yaml: label.expression has type {sql_type}",
        "make it a number, a boolean or a text",
        model=spec.name,
    )


def label_value_sql(spec: ModelSpec, sql_type: str) -> str:
    """SQL of a label that `label_type` has checked; NaN is a missing value."""
    value = f"{author_sql.label_sql(spec)}::{sql_type}"
    return f"CASE WHEN NOT isnan({value}) THEN {value} END" if sql_type == "DOUBLE" else value


def labels_sql(spec: ModelSpec, batch: ValidatedBatch, days: set[str], sql_type: str, delay: int) -> str:
    """SQL of the labels that are published: key, label, and the partition that they arrived with.

    Args:
        spec: the model.
        batch: the validated files that the labels are computed from.
        days: partition dates of the rows that the labels belong to.
        sql_type: the labels' type, see `label_type`.
        delay: number of partitions from a row's to the one that its label arrives with.
    """
    keys = ", ".join(quote_identifier(k) for k in spec.data.key)
    return (
        f"SELECT {keys}, {label_value_sql(spec, sql_type)} AS {spec.lake_column('label')}, "
        f"{partition_date_sql(batch.files, spec.cadence, delay)} AS {spec.lake_column('arrived')}, "
        f"{partition_date_sql(batch.files)} AS partition_date FROM {batch.findings.source} "
        f"WHERE {partitions_condition(batch.files, days)} AND NOT coalesce(({batch.findings.bad}), FALSE)"
    )
