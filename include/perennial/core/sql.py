"""Names, values and conditions as SQL text.

Everything from a spec or a suite that becomes part of SQL goes through this module.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

SQL_TYPES = {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN", "date": "DATE",
             "timestamp": "TIMESTAMP"}  # fmt: skip

NUMERIC = ("integer", "number")

#: Names of this library in SQL (aliases, views, parameters, columns beside the users') begin with this. No name of a
#: user may, so that the two never meet.
INTERNAL_PREFIX = "__"
#: Texts that stand for a missing value in a text file, for columns of any type but string.
MISSING_MARKERS = ("", "NA", "N/A", "NULL", "null", "None", "NaN", "nan")
#: Shown in place of a value of a column of personal data.
HIDDEN_VALUE = "(personal data)"
#: Cells of a row group of Parquet: the groups of several threads must fit into memory, however many columns there are.
MAX_GROUP_CELLS = 4_000_000
#: Cells of a batch of rows in memory.
_MAX_BATCH_CELLS = 8_000_000
#: Rows that DuckDB's row groups have at least.
_MIN_GROUP_ROWS = 2048

#: DuckDB's types of numbers and booleans, which convert to DOUBLE without an error; DECIMAL without its precision.
NUMERIC_SQL_TYPES = {
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
    "FLOAT", "DOUBLE", "DECIMAL",
}  # fmt: skip
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def row_group_rows(columns: int) -> int:
    """Rows of a row group of a Parquet file with so many columns."""
    return max(_MIN_GROUP_ROWS, MAX_GROUP_CELLS // max(1, columns))


def batch_rows(most: int, columns: int) -> int:
    """Rows of a batch in memory: ``most``, or fewer of a table with very many columns."""
    return min(most, max(_MIN_GROUP_ROWS, _MAX_BATCH_CELLS // max(1, columns)))


def copy_to_parquet(query: str, path: str, columns: int) -> str:
    """SQL that writes a query, or a relation, with so many columns to a Parquet file."""
    source = f"({query})" if query.startswith("SELECT") else query
    return (
        f"COPY {source} TO {text_literal(path)} "
        f"(FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE {row_group_rows(columns)})"
    )


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shorten(value: Any) -> str:
    """Shorten a value's representation for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def fold_identifier(name: str) -> str:
    """A column's name as SQL compares it: without the case of ASCII letters, the only ones whose case it ignores."""
    return name.translate(_LOWER)


def same_identifier(
    names: Iterable[str], fold: Callable[[str], str] = fold_identifier
) -> tuple[str, str] | None:
    """The first two names that SQL does not distinguish; None if there are none.

    Args:
        names: the names.
        fold: removes what is not distinguished; ``str.lower`` for columns of the lake, because Delta tables ignore the
            case of every alphabet.
    """
    first: dict[str, str] = {}
    for name in names:
        folded = fold(name)
        if folded in first:
            return first[folded], name
        first[folded] = name
    return None


def quote_identifier(name: str) -> str:
    """Quote a column's name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: str) -> str:
    """Quote a string as a SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_literal(value: Any, kind: str) -> str:
    """Write a value as a SQL literal that can be compared with a column of a declared type.

    Args:
        value: a JSON value, or a date.
        kind: the declared type: a key of `SQL_TYPES`.

    Raises:
        ValueError: the value does not have that type.
    """
    if kind in NUMERIC and is_number(value):
        whole = isinstance(value, int) or (kind == "integer" and value.is_integer())
        return str(int(value)) if whole and abs(value) < 2**63 else f"{float(value)!r}::DOUBLE"
    if kind == "boolean" and isinstance(value, bool):
        return str(value).upper()
    if kind == "string" and isinstance(value, str):
        return text_literal(value)
    if kind in ("date", "timestamp") and isinstance(value, str | date):
        try:
            moment = value if isinstance(value, date) else datetime.fromisoformat(value)
            if isinstance(moment, datetime) and moment.tzinfo:
                moment = moment.astimezone(UTC).replace(tzinfo=None)
        except (ValueError, OverflowError):
            raise ValueError(f"{shorten(value)} is not a {kind}: write it as ISO 8601") from None
        if kind == "timestamp":
            return f"TIMESTAMP '{moment.isoformat().replace('T', ' ')}'"
        if isinstance(moment, datetime) and moment.time() != datetime.min.time():
            raise ValueError(f"{shorten(value)} has a time of day; the column is a date")
        return f"DATE '{moment.isoformat()[:10]}'"
    raise ValueError(f"{shorten(value)} is not a value of type {kind}, which the column is declared to be")


def condition_columns(tree: Any) -> set[str]:
    """The columns that a ``row_condition`` reads, as far as it can be translated."""
    if not isinstance(tree, dict):
        return set()
    parts = [condition_columns(part) for part in tree.get("conditions") or []]
    column = tree.get("column")
    return set().union(*parts, {str(column.get("name"))} if isinstance(column, dict) else set())


def row_condition_sql(tree: Any, columns: Mapping[str, str]) -> str:
    """Translate a ``row_condition`` of Great Expectations, a JSON object, to SQL that is never null.

    Args:
        tree: the condition.
        columns: declared type of each column.

    Raises:
        ValueError: it is a string (pandas or Spark syntax), or names something unknown.
    """
    if not isinstance(tree, dict):
        raise ValueError("conditions in pandas or Spark syntax are not supported: use a condition object")
    if tree.get("type") in ("and", "or") and isinstance(tree.get("conditions"), list) and tree["conditions"]:
        word = f" {tree['type'].upper()} "
        return "(" + word.join(row_condition_sql(c, columns) for c in tree["conditions"]) + ")"
    column = tree.get("column")
    name = str(column.get("name")) if isinstance(column, dict) else str(column)
    if name not in columns or not isinstance(column, dict):
        raise ValueError(f"column {name!r} is not in data.columns")
    if tree.get("type") == "nullity":
        return f"({quote_identifier(name)} IS {'' if tree.get('is_null') else 'NOT '}NULL)"
    operator, value = tree.get("operator"), tree.get("parameter")
    if tree.get("type") != "comparison" or operator not in ("==", "!=", "<", "<=", ">", ">=", "IN", "NOT_IN"):
        raise ValueError(f"unknown condition {shorten(tree)}")
    if operator in ("IN", "NOT_IN"):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{operator} needs a list with at least one value")
        items = ", ".join(sql_literal(v, columns[name]) for v in value)
        # As in pandas, a missing value is not in any set: NOT IN holds for it.
        missing = "FALSE" if operator == "IN" else "TRUE"
        return f"coalesce({quote_identifier(name)} {operator.replace('_', ' ')} ({items}), {missing})"
    missing = "TRUE" if operator == "!=" else "FALSE"
    sign = {"==": "=", "!=": "<>"}.get(operator, operator)
    return f"coalesce({quote_identifier(name)} {sign} {sql_literal(value, columns[name])}, {missing})"
