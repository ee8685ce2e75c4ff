"""Publish validated rows and labels to the lake, and put bad ones in quarantine.

Everything streams from DuckDB into Delta tables, which are replaced one partition or one range of partitions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from perennial.core import dates
from perennial.core.errors import SpecError
from perennial.core.sql import HIDDEN_VALUE, SQL_TYPES, quote_identifier, text_literal
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.storage.landing import TEXT_PREFIX, FeedSchema, LandedFile
from perennial.validation.validator import ValidationFindings

BATCH_ROWS = 65_536
#: Longer text is cut in quarantine; the row's key identifies the full text in the landed file.
MAX_TEXT_LENGTH = 1000
_INTEGERS = ("BOOLEAN", "BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT", "UBIGINT", "UINTEGER")


class UnreadableError(Exception):
    """Rows that were validated cannot be read a second time."""


@dataclass(frozen=True)
class ValidatedBatch:
    """Files that were validated together.

    Attributes:
        feed: the files' feed.
        files: the files.
        findings: the result of the validation.
        cast_failures: see `landing.create_landed_view`.
    """

    feed: FeedSchema
    files: list[LandedFile]
    findings: ValidationFindings
    cast_failures: Mapping[str, str]


def partition_date_sql(files: list[LandedFile], shift_days: int = 0) -> str:
    """SQL of a row's partition date, ``shift_days`` later."""
    days = [dates.add_days(file.day, shift_days) for file in files]
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
    spec: ModelSpec, batch: ValidatedBatch, days: set[str], run_id: str, shift_days: int = 0
) -> str:
    """SQL of the rows that go to quarantine: key, feed, values as JSON, reasons, run.

    Args:
        spec: the model.
        batch: the validated files.
        days: partition dates of the files whose rows are wanted.
        run_id: of the Airflow run.
        shift_days: days from a file's date to the partition of the records (labels arrive with a later partition).
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
    return (
        f"SELECT {keys}, {text_literal(feed.kind)} AS feed, {partition_date_sql(files)} AS feed_date, "
        f"to_json({{{cells}}})::VARCHAR AS row_values, "
        f"list_filter([{reasons or 'NULL'}], lambda r: r IS NOT NULL) AS reasons, "
        f"{text_literal(run_id)} AS run_id, {partition_date_sql(files, shift_days)} AS partition_date "
        f"FROM {findings.source} "
        f"WHERE {partitions_condition(files, days)} AND coalesce(({findings.bad}), FALSE)"
    )


def _quarantined_value(column: str, declared: str, batch: ValidatedBatch) -> str:
    """SQL of a value in quarantine: personal data hidden, long text cut, other types as text."""
    name = quote_identifier(column)
    if column in batch.feed.personal:
        return text_literal(HIDDEN_VALUE)
    if column in batch.cast_failures:
        return f"left({quote_identifier(TEXT_PREFIX + column)}, {MAX_TEXT_LENGTH})"
    if declared == "string":
        cut = f"left({name}, {MAX_TEXT_LENGTH}) || '… (' || length({name}) || ' characters)'"
        return f"CASE WHEN length({name}) > {MAX_TEXT_LENGTH} THEN {cut} ELSE {name} END"
    return f"{name}::VARCHAR" if declared in ("number", "date", "timestamp") else name


def stopped_partition_sql(spec: ModelSpec, day: str, reasons: list[str], run_id: str) -> str:
    """SQL of the quarantine record of a stopped partition, which has only the reasons."""
    keys = ", ".join(
        f"NULL::{SQL_TYPES[spec.data.columns[k]]} AS {quote_identifier(k)}" for k in spec.data.key
    )
    texts = ", ".join(text_literal("partition stopped: " + r) for r in reasons)
    return (
        f"SELECT {keys}, 'partition' AS feed, {text_literal(day)} AS feed_date, NULL::VARCHAR AS row_values, "
        f"[{texts}] AS reasons, {text_literal(run_id)} AS run_id, {text_literal(day)} AS partition_date"
    )


def replace_partitions(
    con: duckdb.DuckDBPyConnection, uri: str, sql: str, span: dates.DateRange, expected: int | None = None
) -> int:
    """Replace a range of partitions of a table by the rows of a query, streaming.

    Args:
        con: DuckDB connection.
        uri: the table.
        sql: the query.
        span: the partitions.
        expected: number of rows that the query must give.

    Returns:
        The version of the table with these rows.

    Raises:
        UnreadableError: not all rows could be read, or their number differs; nothing was published.
    """
    causes: list[str] = []
    try:
        return delta_tables.replace(uri, lambda: _reader(con, sql, expected, causes), span.start, span.end)
    except Exception as error:
        if not causes:
            raise
        raise UnreadableError(causes[0]) from error


def _reader(
    con: duckdb.DuckDBPyConnection, sql: str, expected: int | None, causes: list[str]
) -> pa.RecordBatchReader:
    """Read a query; errors while reading, or a wrong number of rows, are added to ``causes``."""
    try:
        reader = con.sql(sql).to_arrow_reader(BATCH_ROWS)
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException):
        raise
    except duckdb.Error as error:
        causes.append(str(error))
        raise

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        try:
            for batch in reader:
                rows += batch.num_rows
                yield batch
        except Exception as error:
            causes.append(str(error))
            raise
        finally:
            reader.close()  # otherwise the connection could not be used again
        if expected is not None and rows != expected:
            causes.append(f"{rows} rows were read, {expected} were validated: the file changed in between")
            raise ValueError(causes[0])  # ends the write before it is committed

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def label_type(spec: ModelSpec, columns: Mapping[str, str]) -> str:
    """The SQL type of published labels: BIGINT, DOUBLE or VARCHAR.

    Args:
        spec: the model.
        columns: declared type of each column that ``label.expression`` may use.

    Raises:
        SpecError: ``label.expression`` fails on these columns, or gives another type.
    """
    con = duckdb.connect(config={"autoinstall_known_extensions": False})
    con.execute("SET enable_external_access=false; SET lock_configuration=true")
    typed = ", ".join(f"NULL::{SQL_TYPES[kind]} AS {quote_identifier(c)}" for c, kind in columns.items())
    try:
        sql_type = str(
            con.execute(f"SELECT typeof(({spec.label.expression})) FROM (SELECT {typed})").fetchall()[0][0]
        )
    except duckdb.Error as error:
        raise SpecError(
            f"model.yaml: label.expression {spec.label.expression!r} fails: {str(error).splitlines()[0]}",
            f"write SQL that uses these columns: {', '.join(columns)}",
            model=spec.name,
        ) from error
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


def label_value_sql(expression: str, sql_type: str) -> str:
    """SQL of a label; NaN is a missing value."""
    value = f"({expression})::{sql_type}"
    return f"CASE WHEN NOT isnan({value}) THEN {value} END" if sql_type == "DOUBLE" else value


def labels_sql(spec: ModelSpec, batch: ValidatedBatch, days: set[str], sql_type: str, delay_days: int) -> str:
    """SQL of the labels that are published: key, label, and the partition that they arrived with.

    Args:
        spec: the model.
        batch: the validated files that the labels are computed from.
        days: partition dates of the rows that the labels belong to.
        sql_type: the labels' type, see `label_type`.
        delay_days: days from a row's partition to the one that its label arrives with.
    """
    keys = ", ".join(quote_identifier(k) for k in spec.data.key)
    return (
        f"SELECT {keys}, {label_value_sql(spec.label.expression, sql_type)} AS label, "
        f"{partition_date_sql(batch.files, delay_days)} AS arrived, "
        f"{partition_date_sql(batch.files)} AS partition_date FROM {batch.findings.source} "
        f"WHERE {partitions_condition(batch.files, days)} AND NOT coalesce(({batch.findings.bad}), FALSE)"
    )
