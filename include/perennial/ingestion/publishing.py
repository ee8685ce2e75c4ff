"""Validated rows and labels on their way into the lake: what is good is published, the rest goes to quarantine.

Everything streams from DuckDB into the lake. A table is replaced date by date, or a run of dates at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from perennial.core import dates
from perennial.core.errors import SpecError
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.storage.landing import FeedSchema, LandedFile

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

BATCH = 65_536
HIDDEN = "(personal data)"
#: Text beyond this many characters is cut in quarantine; the row's key leads to the whole.
LONG_TEXT = 1000


class UnreadableError(Exception):
    """Rows that were validated cannot be read again."""


def partition_date_sql(landed: list[LandedFile], shift: int = 0) -> str:
    """SQL of the partition date of a row."""
    days = [dates.add_days(file.day, shift) for file in landed]
    if len(days) == 1:
        return text_literal(days[0])
    return f"([{', '.join(text_literal(d) for d in days)}])[__file + 1]"


def partitions_condition(landed: list[LandedFile], days: set[str]) -> str:
    """SQL condition of the rows of some dates."""
    wanted = [str(i) for i, file in enumerate(landed) if file.day in days]
    return "TRUE" if len(wanted) == len(landed) else f"__file IN ({', '.join(wanted) or '-1'})"


def published_rows_sql(
    columns: Mapping[str, str], landed: list[LandedFile], source: str, bad: str, days: set[str]
) -> str:
    """SQL of the rows that are published."""
    listed = ", ".join(quote_identifier(c) for c in columns)
    return (f"SELECT {listed}, {partition_date_sql(landed)} AS partition_date FROM {source} "
            f"WHERE {partitions_condition(landed, days)} AND NOT coalesce(({bad}), FALSE)")  # fmt: skip


def quarantined_rows_sql(
    spec: ModelSpec, feed: FeedSchema, landed: list[LandedFile], source: str, reasons: dict[str, str], days: set[str],
    run_id: str, unread: Iterable[str] = (), shift: int = 0,
) -> str:  # fmt: skip
    """SQL of the rows that go to quarantine: key, feed, values as JSON, reasons, run.

    Args:
        shift: days from the file's date to the partition that the records belong to (labels come with a later one).
    """
    keys = ", ".join(
        f"TRY_CAST({quote_identifier(k)} AS {SQL_TYPES[spec.data.columns[k]]}) AS {quote_identifier(k)}"
        for k in spec.data.key
    )
    cells = ", ".join(
        f"{text_literal(c)}: {_cell(c, kind, feed, set(unread))}" for c, kind in feed.columns.items()
    )
    why = ", ".join(f"CASE WHEN ({sql}) THEN {text_literal(label)} END" for label, sql in reasons.items())
    bad = " OR ".join(f"({sql})" for sql in reasons.values()) or "FALSE"
    return (
        f"SELECT {keys}, {text_literal(feed.what)} AS feed, {partition_date_sql(landed)} AS feed_date, "
        f"to_json({{{cells}}})::VARCHAR AS row_values, "
        f"list_filter([{why or 'NULL'}], lambda r: r IS NOT NULL) AS reasons, "
        f"{text_literal(run_id)} AS run_id, {partition_date_sql(landed, shift)} AS partition_date "
        f"FROM {source} WHERE {partitions_condition(landed, days)} AND coalesce(({bad}), FALSE)"
    )


def _cell(column: str, kind: str, feed: FeedSchema, unread: set[str]) -> str:
    """A value as quarantine shows it: personal data masked, long text cut, what no JSON number can say as text."""
    name = quote_identifier(column)
    if column in feed.personal:
        return text_literal(HIDDEN)
    if column in unread:
        return f"left({quote_identifier('__text_' + column)}, {LONG_TEXT})"
    if kind == "string":
        cut = f"left({name}, {LONG_TEXT}) || '… (' || length({name}) || ' characters)'"
        return f"CASE WHEN length({name}) > {LONG_TEXT} THEN {cut} ELSE {name} END"
    return f"{name}::VARCHAR" if kind in ("number", "date", "timestamp") else name


def stopped_partition_sql(spec: ModelSpec, day: str, reasons: list[str], run_id: str) -> str:
    """SQL of the record that a stopped partition leaves in quarantine: no row, only why."""
    keys = ", ".join(
        f"NULL::{SQL_TYPES[spec.data.columns[k]]} AS {quote_identifier(k)}" for k in spec.data.key
    )
    why = ", ".join(text_literal("partition stopped: " + r) for r in reasons)
    return (f"SELECT {keys}, 'partition' AS feed, {text_literal(day)} AS feed_date, NULL::VARCHAR AS row_values, "
            f"[{why}] AS reasons, {text_literal(run_id)} AS run_id, {text_literal(day)} AS partition_date")  # fmt: skip


def replace_partitions(
    con: duckdb.DuckDBPyConnection, uri: str, sql: str, start: str, end: str, expected: int | None = None
) -> int:
    """Replace the partitions ``start`` to ``end`` of a table by the rows of a query, streaming.

    Args:
        expected: rows that the query must give.

    Returns:
        The version that holds them.

    Raises:
        UnreadableError: the rows did not come to their end, or were not as many; nothing was published then.
    """
    causes: list[str] = []
    try:
        return delta_tables.replace(uri, lambda: _counted(con, sql, expected, causes), start, end)
    except Exception as error:
        if not causes:
            raise
        raise UnreadableError(causes[0]) from error


def _counted(
    con: duckdb.DuckDBPyConnection, sql: str, expected: int | None, causes: list[str]
) -> pa.RecordBatchReader:
    import duckdb
    import pyarrow as pa

    try:
        reader = con.sql(sql).to_arrow_reader(BATCH)
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
            reader.close()  # or the connection could not be used again
        if expected is not None and rows != expected:
            causes.append(f"{rows} rows came where {expected} were validated: it changed while it was read")
            raise ValueError(causes[0])  # ends the write before it is committed

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def label_type(spec: ModelSpec, columns: Mapping[str, str]) -> str:
    """The SQL type in which labels are kept: BIGINT, DOUBLE or VARCHAR.

    Raises:
        SpecError: ``label.expression`` does not work on the label feed's columns.
    """
    import duckdb

    con = duckdb.connect(config={"autoinstall_known_extensions": False})
    con.execute("SET enable_external_access=false; SET lock_configuration=true")
    typed = ", ".join(f"NULL::{SQL_TYPES[kind]} AS {quote_identifier(c)}" for c, kind in columns.items())
    try:
        kind = str(
            con.execute(f"SELECT typeof(({spec.label.expression})) FROM (SELECT {typed})").fetchall()[0][0]
        )
    except duckdb.Error as error:
        raise SpecError(f"model.yaml: label.expression {spec.label.expression!r} fails: {str(error).splitlines()[0]}",
                        f"write SQL over these columns: {', '.join(columns)}", model=spec.name) from error  # fmt: skip
    if kind in ("BOOLEAN", "BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT", "UBIGINT", "UINTEGER"):
        return "BIGINT"
    if kind in ("DOUBLE", "FLOAT") or kind.startswith("DECIMAL"):
        return "DOUBLE"
    if kind == "VARCHAR":
        return "VARCHAR"
    raise SpecError(f"model.yaml: label.expression gives a {kind}", "make it a number, a yes or no, or a text",
                    model=spec.name)  # fmt: skip


def label_value_sql(expression: str, kind: str) -> str:
    """SQL of a label; NaN is a missing one."""
    value = f"({expression})::{kind}"
    return f"CASE WHEN NOT isnan({value}) THEN {value} END" if kind == "DOUBLE" else value


def labels_sql(
    spec: ModelSpec, landed: list[LandedFile], source: str, bad: str, days: set[str], kind: str, arrives: int
) -> str:
    """SQL of the labels that are published: key, label, the partition that brought them."""
    keys = ", ".join(quote_identifier(k) for k in spec.data.key)
    return (
        f"SELECT {keys}, {label_value_sql(spec.label.expression, kind)} AS label, {partition_date_sql(landed, arrives)} AS arrived, "
        f"{partition_date_sql(landed)} AS partition_date FROM {source} "
        f"WHERE {partitions_condition(landed, days)} AND NOT coalesce(({bad}), FALSE)"
    )


def summary(counts: dict[str, Any]) -> str:
    """Counts in words, most first."""
    return ", ".join(
        f"{n} × {label}" for label, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
