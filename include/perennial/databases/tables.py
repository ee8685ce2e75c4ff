"""Writes partitions of rows to a table of a database, each partition in one transaction.

A table that is missing is created. A partition's earlier rows are deleted and the new ones inserted in the same
transaction, so that a reader sees either, and a repeated run adds nothing.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from perennial.core.errors import DatabaseError
from perennial.core.sql import quote_identifier
from perennial.databases import connections
from perennial.databases._postgresql import PostgresDatabase
from perennial.databases._sqlite import BUSY_SECONDS, HEALS
from perennial.databases.connections import Connection

__all__ = ["TablePartition", "replace_partition"]

_REMEDY = "name another table in predictions.table, or rename this one: it is then created"


@dataclass(frozen=True)
class TablePartition:
    """A partition of a table.

    Attributes:
        table: name of the table; in PostgreSQL also ``schema.table``.
        key: columns of the primary key of a table that is created.
        column: the column of the partition.
        value: the partition's value in it.
        schema: the columns: text, 64-bit integers and floats, booleans, dates, timestamps.
    """

    table: str
    key: Sequence[str]
    column: str
    value: str
    schema: pa.Schema


def replace_partition(name: str, partition: TablePartition, batches: Iterator[pa.RecordBatch]) -> int:
    """Replace the rows of a partition.

    Args:
        name: of the connection.
        partition: where the rows go.
        batches: the rows.

    Returns:
        The number of rows written.

    Raises:
        DatabaseError: the database does not answer, refuses to be written, or has a table of other columns; the
            earlier rows stay.
    """
    connection = connections.find(name)
    replace = _replace_in_sqlite if connection.kind == "sqlite" else _replace_in_postgresql
    return replace(connection, partition, batches)


# --- PostgreSQL


def _replace_in_postgresql(
    connection: Connection, partition: TablePartition, batches: Iterator[pa.RecordBatch]
) -> int:
    namespace, _, bare = partition.table.rpartition(".")
    quoted = ".".join(map(quote_identifier, filter(None, (namespace, bare))))
    kinds = {item.name: _postgresql_type(item.type) for item in partition.schema}
    with PostgresDatabase.open(connection, True, write=True) as database:
        # One writer at a time: of two that begin together, neither would see the rows of the other, and delete them.
        database.fetch("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text", _row(quoted))
        columns = database.fetch(
            "SELECT __a.attname::text AS __column, __t.typname::text AS __type FROM pg_catalog.pg_attribute AS __a "
            "JOIN pg_catalog.pg_type AS __t ON __t.oid = __a.atttypid "
            "WHERE __a.attrelid = to_regclass($1) AND __a.attnum > 0 AND NOT __a.attisdropped",
            _row(quoted),
        )
        if len(columns):
            present = dict(zip(*(column.to_pylist() for column in columns.columns), strict=True))
            same = {"varchar": "text"}
            _refuse_other_columns(
                connection, partition.table, kinds, {c: same.get(t, t) for c, t in present.items()}
            )
        else:
            defined = ", ".join(f"{quote_identifier(column)} {kind}" for column, kind in kinds.items())
            database.execute(f"CREATE TABLE {quoted} ({defined}, PRIMARY KEY ({_names(partition.key)}))")
        database.execute(
            f"DELETE FROM {quoted} WHERE {quote_identifier(partition.column)} = $1", _row(partition.value)
        )
        reader = pa.RecordBatchReader.from_batches(partition.schema, batches)
        rows = database.append(bare, namespace or None, reader)
        database.commit()
    return rows


def _names(columns: Sequence[str]) -> str:
    return ", ".join(map(quote_identifier, columns))


def _row(value: str) -> pa.RecordBatch:
    return pa.record_batch({"value": pa.array([value], pa.string())})


def _postgresql_type(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    types = {
        pa.string(): "text", pa.int64(): "int8", pa.float64(): "float8", pa.bool_(): "bool", pa.date32(): "date"
    }  # fmt: skip
    return types[kind]


def _refuse_other_columns(
    connection: Connection, table: str, needed: dict[str, str], present: dict[str, str]
) -> None:
    """Refuse a table whose columns are not exactly those needed.

    Raises:
        DatabaseRequestError: they are not.
    """
    problems = [f"column {name!r} is missing" for name in needed if name not in present]
    problems += [f"column {name!r} is no column of predictions" for name in present if name not in needed]
    problems += [
        f"column {name!r} has type {present[name]}, not {kind}"
        for name, kind in needed.items()
        if present.get(name, kind) != kind
    ]
    if problems:
        raise connection.error(f"table {table} has other columns: {'; '.join(problems[:6])}", _REMEDY)


# --- SQLite


def _replace_in_sqlite(
    connection: Connection, partition: TablePartition, batches: Iterator[pa.RecordBatch]
) -> int:
    quoted, schema, rows = quote_identifier(partition.table), partition.schema, 0
    try:
        with closing(sqlite3.connect(connection.path, timeout=BUSY_SECONDS, isolation_level=None)) as con:
            con.execute("BEGIN IMMEDIATE")
            present = [row[1] for row in con.execute(f"PRAGMA table_info({quoted})")]
            if present:
                _refuse_other_columns(
                    connection, partition.table, dict.fromkeys(schema.names, ""), dict.fromkeys(present, "")
                )
            else:
                defined = ", ".join(
                    f"{quote_identifier(item.name)} {_sqlite_type(item.type)}" for item in schema
                )
                con.execute(f"CREATE TABLE {quoted} ({defined}, PRIMARY KEY ({_names(partition.key)}))")
            column = quote_identifier(partition.column)
            con.execute(f"DELETE FROM {quoted} WHERE {column} = ?", (partition.value,))
            marks = ", ".join("?" * len(schema))
            insert = f"INSERT INTO {quoted} ({_names(schema.names)}) VALUES ({marks})"
            for batch in batches:
                columns = [[_sqlite_value(v) for v in column.to_pylist()] for column in batch.columns]
                con.executemany(insert, zip(*columns, strict=True))
                rows += len(batch)
            con.execute("COMMIT")
    except sqlite3.Error as error:
        raise _sqlite_error(connection, partition.table, error) from None
    return rows


def _sqlite_error(connection: Connection, table: str, error: sqlite3.Error) -> DatabaseError:
    heals = bool(HEALS.search(str(error)))
    remedy = (
        "run it again" if heals else "correct the connection, or let this user write the file and its folder"
    )
    return connection.error(f"table {table} cannot be written: {error}", remedy, heals=heals)


def _sqlite_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "INTEGER"
    return "REAL" if pa.types.is_floating(kind) else "TEXT"


def _sqlite_value(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None).isoformat(" ")
    return value.isoformat() if isinstance(value, dt.date) else value
