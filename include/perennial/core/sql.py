"""Names, values and conditions as SQL text. Nothing from a spec or a suite reaches SQL in any other way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

SQL_TYPES = {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN", "date": "DATE",
             "timestamp": "TIMESTAMP"}  # fmt: skip

NUMERIC = ("integer", "number")

#: Texts that stand for a missing value in a text file, where the column is no text.
MISSING_MARKERS = ("", "NA", "N/A", "NULL", "null", "None", "NaN", "nan")
#: Shown in place of a value of a column of personal data.
HIDDEN_VALUE = "(personal data)"

#: DuckDB's types of numbers and booleans, which convert to DOUBLE without an error; DECIMAL without its precision.
NUMERIC_SQL_TYPES = {
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
    "FLOAT", "DOUBLE", "DECIMAL",
}  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def quote_identifier(name: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: str) -> str:
    """A string as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def sql_literal(value: Any, kind: str) -> str:
    """A value to compare with a column of declared type ``kind``, as SQL writes it.

    Raises:
        ValueError: it is not a value of that type.
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
        except ValueError:
            raise ValueError(f"{short(value)} is not a {kind}: write it as ISO 8601") from None
        if isinstance(moment, datetime) and moment.tzinfo:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        if kind == "timestamp":
            return f"TIMESTAMP '{moment.isoformat().replace('T', ' ')}'"
        if isinstance(moment, datetime) and moment.time() != datetime.min.time():
            raise ValueError(f"{short(value)} has a time of day; the column is a date")
        return f"DATE '{moment.isoformat()[:10]}'"
    raise ValueError(f"{short(value)} is not a value of type {kind}, which the column is declared to be")


def condition(tree: Any, columns: Mapping[str, str]) -> str:
    """A ``row_condition`` (Great Expectations' condition objects as JSON) as SQL, never null.

    Raises:
        ValueError: it is a text (pandas or Spark syntax), or names something unknown.
    """
    if not isinstance(tree, dict):
        raise ValueError("conditions in pandas or Spark syntax are not supported: use a condition object")
    if tree.get("type") in ("and", "or") and isinstance(tree.get("conditions"), list) and tree["conditions"]:
        word = f" {tree['type'].upper()} "
        return "(" + word.join(condition(c, columns) for c in tree["conditions"]) + ")"
    name = str((tree.get("column") or {}).get("name"))
    if name not in columns:
        raise ValueError(f"column {name!r} is not in data.columns")
    if tree.get("type") == "nullity":
        return f"({quote_identifier(name)} IS {'' if tree.get('is_null') else 'NOT '}NULL)"
    operator, value = tree.get("operator"), tree.get("parameter")
    if tree.get("type") != "comparison" or operator not in ("==", "!=", "<", "<=", ">", ">=", "IN", "NOT_IN"):
        raise ValueError(f"unknown condition {short(tree)}")
    if operator in ("IN", "NOT_IN"):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{operator} needs a list with a value in it")
        items = ", ".join(sql_literal(v, columns[name]) for v in value)
        # pandas says that a missing value is not in any set: NOT IN holds for it
        missing = "FALSE" if operator == "IN" else "TRUE"
        return f"coalesce({quote_identifier(name)} {operator.replace('_', ' ')} ({items}), {missing})"
    missing = "TRUE" if operator == "!=" else "FALSE"
    sign = {"==": "=", "!=": "<>"}.get(operator, operator)
    return f"coalesce({quote_identifier(name)} {sign} {sql_literal(value, columns[name])}, {missing})"
