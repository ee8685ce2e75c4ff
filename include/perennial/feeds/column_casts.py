"""Columns of Parquet files: which can be read as a declared type, and the SQL that does it without losing a value.

A file's type need not be the declared one. Writers change it without a change of the data: pandas writes integers
with a missing value as floats, databases export keys as decimals, Spark has no unsigned integers. So a cell counts, not
its column's type: one whose value the declared type has is read, any other goes to quarantine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from perennial.core.sql import SQL_TYPES
from perennial.feeds import text_casts
from perennial.feeds.text_casts import TextFormat

if TYPE_CHECKING:
    import pyarrow as pa

#: DuckDB's types of integers that BIGINT holds.
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
#: Those of integers beyond BIGINT.
_WIDE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT", "BIGNUM")
#: Those of floats, with the largest magnitude below which no two integers are the same float.
_FLOATS = {"FLOAT": 2**24, "DOUBLE": 2**53}
#: Those of times that count nanoseconds, which the lake's tables do not have.
_NANOSECONDS = ("TIMESTAMP_NS", "TIMESTAMPTZ_NS")
#: The declared types that columns of each kind can be read as; the first is the one that a new spec declares.
_READABLE: dict[str, tuple[str, ...]] = {
    "null": ("string", "boolean", "integer", "number", "date", "timestamp"),
    "text": ("string", "boolean", "integer", "number", "date", "timestamp"),
    "bytes": ("string",),
    "time": ("string",),
    "boolean": ("boolean", "integer", "number"),
    "integer": ("integer", "number", "boolean"),
    "decimal": ("number", "integer", "boolean"),
    "float": ("number", "integer", "boolean"),
    "date": ("date", "timestamp"),
    "timestamp": ("timestamp", "date"),
}
#: Decimal digits beyond which DuckDB reads a decimal as a float.
_MAX_DECIMAL_DIGITS = 38


class Cast(NamedTuple):
    """SQL of a cell as its declared type.

    Attributes:
        value: the value; null if the cell is missing or cannot be read.
        missing: condition that the cell is missing; empty if every cell can be read.
    """

    value: str
    missing: str = ""


def readable_types(arrow_type: pa.DataType) -> tuple[str, ...]:
    """The declared types that a Parquet column can be read as, the most natural one first; empty if there are none."""
    import pyarrow.types as t

    if t.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if getattr(arrow_type, "extension_name", "") in ("arrow.uuid", "arrow.json"):
        return _READABLE["time"]  # text, and nothing else
    types = _READABLE.get(_kind(arrow_type), ())
    if t.is_decimal(arrow_type):
        if arrow_type.precision > _MAX_DECIMAL_DIGITS:
            return ("number",)
        if arrow_type.scale <= 0:
            return ("integer", "number", "boolean", "string")  # a text, where keys are beyond 64 bits
    return types


def _kind(arrow_type: pa.DataType) -> str:
    import pyarrow.types as t

    kinds = {
        "null": t.is_null(arrow_type),  # the type of a column that has no values
        "text": t.is_string(arrow_type) or t.is_large_string(arrow_type) or t.is_string_view(arrow_type),
        "bytes": t.is_binary(arrow_type) or t.is_large_binary(arrow_type) or t.is_binary_view(arrow_type),
        "time": t.is_time(arrow_type),
        "boolean": t.is_boolean(arrow_type),
        "integer": t.is_integer(arrow_type),
        "decimal": t.is_decimal(arrow_type),
        "float": t.is_floating(arrow_type),
        "date": t.is_date(arrow_type),
        "timestamp": t.is_timestamp(arrow_type),
    }
    return next((kind for kind, matches in kinds.items() if matches), "")


def cast_sql(
    cell: str, declared: str, file_type: str, text_format: TextFormat | None = None, column: str = ""
) -> Cast:
    """Cast a Parquet cell to its declared type, which is one of its `readable_types`.

    Args:
        cell: the quoted column.
        declared: declared type.
        file_type: DuckDB's type of the column.
        text_format: how text cells are written.
        column: the column, which may have a date format of its own.
    """
    text_format = text_format or TextFormat()
    null = f"{cell} IS NULL"
    if file_type == '"NULL"':
        return Cast(f"CAST({cell} AS {SQL_TYPES[declared]})")
    if declared == "string":
        if file_type == "BLOB":  # Spark writes text as bytes for old readers
            return Cast(f"TRY(decode({cell}))", null)
        return Cast(text_casts.without_nulls(f"{cell}::VARCHAR", cell, text_format))
    if file_type == "VARCHAR":
        missing = f"({null} OR {text_casts.missing_sql(cell, text_format)})"
        return Cast(text_casts.cast_sql(cell, declared, text_format, column), missing)
    casts = {"integer": _integer, "number": _number, "boolean": _boolean, "date": _date}
    return casts.get(declared, _timestamp)(cell, file_type)


def _integer(cell: str, file_type: str) -> Cast:
    if file_type in (*_INTEGERS, "BOOLEAN"):
        return Cast(f"{cell}::BIGINT")
    value = f"TRY_CAST({cell} AS BIGINT)"
    if file_type in _FLOATS:
        # Beyond this, an integer may have become another one when it was written as a float.
        whole = f"{cell} = trunc({cell}) AND abs({cell}) <= {_FLOATS[file_type]}"
        return Cast(f"CASE WHEN {whole} THEN {value} END", f"({cell} IS NULL OR isnan({cell}))")
    if file_type.startswith("DECIMAL") and not file_type.endswith(",0)"):  # the cast would round
        value = f"CASE WHEN {cell} = trunc({cell}) THEN {value} END"
    return Cast(value, f"{cell} IS NULL")


def _number(cell: str, file_type: str) -> Cast:
    if file_type in _FLOATS:  # NaN is a missing value
        return Cast(f"CASE WHEN NOT isnan({cell}) THEN {cell}::DOUBLE END")
    return Cast(f"{cell}::DOUBLE")


def _boolean(cell: str, file_type: str) -> Cast:
    if file_type == "BOOLEAN":
        return Cast(cell)
    missing = f"({cell} IS NULL OR isnan({cell}))" if file_type in _FLOATS else f"{cell} IS NULL"
    return Cast(f"CASE WHEN {cell} = 0 THEN FALSE WHEN {cell} = 1 THEN TRUE END", missing)


def _date(cell: str, file_type: str) -> Cast:
    if file_type == "DATE":
        return Cast(f"CASE WHEN isfinite({cell}) THEN {cell} END", f"{cell} IS NULL")
    if file_type in _NANOSECONDS:  # no part of a day is rounded away
        midnight, moment = f"epoch_ns({cell}) % {86_400 * 10**9} = 0", _timestamp(cell, file_type).value
    else:
        moment = _in_utc(cell, file_type)
        midnight = f"isfinite({moment}) AND {moment} = date_trunc('day', {moment})"
    return Cast(f"CASE WHEN {midnight} THEN CAST({moment} AS DATE) END", f"{cell} IS NULL")


def _timestamp(cell: str, file_type: str) -> Cast:
    """Times are in UTC; those of nanoseconds are cut to microseconds: a rounded one could be in the next day."""
    if file_type == "DATE":
        return Cast(f"CASE WHEN isfinite({cell}) THEN TRY_CAST({cell} AS TIMESTAMP) END", f"{cell} IS NULL")
    if file_type in _NANOSECONDS:
        count = f"epoch_ns({cell})"  # null if it is infinite
        return Cast(
            f"make_timestamp({count} // 1000 - ({count} % 1000 < 0)::BIGINT)",
            f"{cell} IS NULL",
        )
    moment = _in_utc(cell, file_type)
    return Cast(f"CASE WHEN isfinite({moment}) THEN {moment} END", f"{cell} IS NULL")


def _in_utc(cell: str, file_type: str) -> str:
    zoned = file_type == "TIMESTAMP WITH TIME ZONE"
    return f"({cell} AT TIME ZONE 'UTC')" if zoned else f"{cell}::TIMESTAMP"
