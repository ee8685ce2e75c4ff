"""Published rows with their declared columns and types, as the SQL of features reads them."""

from __future__ import annotations

import re

import duckdb

from perennial.core.sql import NUMERIC_SQL_TYPES, SQL_TYPES, quote_identifier, text_literal
from perennial.spec.model_spec import ModelSpec
from perennial.storage.delta_tables import PARTITION

#: Declared types that have all values of another one.
_WIDER = {"integer": "number", "date": "timestamp"}
#: Declared types of stored and of read columns whose values are the same.
_READABLE = {*((kind, kind) for kind in SQL_TYPES), *_WIDER.items()}


def input_columns(spec: ModelSpec) -> dict[str, str]:
    """The declared columns that the SQL may read, and their types, without a label column."""
    label = spec.label.expression if spec.label.source is None else None
    return {column: kind for column, kind in spec.data.columns.items() if column != label}


def empty_rows_sql(spec: ModelSpec, *, joined: bool = True) -> str:
    """Compose SQL that returns the `input_columns` with their types, and no rows.

    Args:
        spec: the model.
        joined: whether they have the columns of the feature tables, too.
    """
    columns = (
        f"CAST(NULL AS {SQL_TYPES[kind]}) AS {quote_identifier(column)}"
        for column, kind in (input_columns(spec) | (spec.table_columns if joined else {})).items()
    )
    return f"SELECT {', '.join(columns)} LIMIT 0"


def declared_rows_sql(con: duckdb.DuckDBPyConnection, spec: ModelSpec, source: str) -> str:
    """Compose SQL that returns the `input_columns` of rows with their declared types.

    Partitions from before a column was declared have no value of it: null. A version that was trained before a column's
    type became wider gets the type that it was trained with, or an error. A value of a column with any other type is an
    error when it is read: DuckDB does not read columns that the features do not need.

    Args:
        con: the connection that reads the rows.
        spec: the model.
        source: SQL of the rows.
    """
    relation = con.sql(f"SELECT * FROM ({source}) LIMIT 0")
    stored = dict(zip(relation.columns, map(str, relation.types), strict=True))
    selected, unreadable = [], []
    for column, kind in input_columns(spec).items():
        name, declared = quote_identifier(column), SQL_TYPES[kind]
        actual, wider = stored.get(column), _WIDER.get(kind)
        if wider and (actual is None or _kind(actual) == wider):
            exact, message = (
                f"TRY_CAST({name} AS {declared})",
                f"column {column} has a value that is no {kind}",
            )
            name = (
                f"CASE WHEN {name} IS NULL OR {exact} = {name} THEN {exact} ELSE error({text_literal(message)}) END "
                f"AS {name}"
            )
        elif actual is not None and (_kind(actual), kind) not in _READABLE:
            message = text_literal(f"{_type_message(column, kind)}{actual} in the published rows")
            unreadable.append(
                f"CAST(CASE WHEN {name} IS NULL THEN NULL ELSE error({message}) END AS {declared}) AS {name}"
            )
        selected.append(name)
    if spec.feature_tables and PARTITION in stored:
        # Values that become known after the partition are not for them.
        selected.append(PARTITION)
    if unreadable:  # before UNION, which would need a type of both
        source = f"SELECT * REPLACE ({', '.join(unreadable)}) FROM ({source})"
    return f"SELECT {', '.join(selected)} FROM (({source}) UNION ALL BY NAME ({empty_rows_sql(spec, joined=False)}))"


def _type_message(column: str, kind: str) -> str:
    """How the message of `declared_rows_sql` about a column of another type begins."""
    return f"column {column!r} is declared {kind}, and is "


def changed_type(spec: ModelSpec, error: Exception) -> str:
    """What an error says about a column that has another type than the declared one; empty if it is about nothing such.

    Composed of names and types alone: the rest of the text may be from the data.
    """
    for column, kind in input_columns(spec).items():
        _, message, rest = str(error).partition(_type_message(column, kind))
        if message and (actual := re.match("[A-Z_ ]+", rest)):
            return f"{message}{actual[0].strip()} in the published rows"
    return ""


def readable(sql_type: str, kind: str) -> bool:
    """Whether values of one of DuckDB's types are values of a declared type."""
    return (_kind(sql_type), kind) in _READABLE


def _kind(sql_type: str) -> str:
    """The declared type that a type of DuckDB's belongs to; the type itself if it is none of them."""
    name = sql_type.split("(")[0]
    if name in ("FLOAT", "DOUBLE", "DECIMAL"):
        return "number"
    if name in NUMERIC_SQL_TYPES - {"BOOLEAN"}:
        return "integer"
    if name.startswith("TIMESTAMP"):
        return "timestamp"
    return {"VARCHAR": "string", "ENUM": "string"}.get(name, name.lower())
