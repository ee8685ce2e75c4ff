"""Databases that feeds are read from.

PostgreSQL is read through ADBC (https://arrow.apache.org/adbc): rows arrive as Arrow batches with the types of the
database. SQLite has no types of columns, only of cells; it is read through Python's own driver, and each cell must fit
the type that the spec declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perennial.databases import connections
from perennial.databases.connections import Database

__all__ = ["open_database"]


@contextmanager
def open_database(name: str, *, hide: bool) -> Iterator[Database]:
    """Open a connection for reading.

    Args:
        name: of the connection.
        hide: no message may quote values, because some of them may be personal data.

    Raises:
        DatabaseError: the database does not answer, or refuses the login.
    """
    connection = connections.find(name)
    # imported where they are needed: the drivers load Arrow
    if connection.kind == "sqlite":
        from perennial.databases._sqlite import SqliteDatabase

        with SqliteDatabase.open(connection, hide) as sqlite:
            yield sqlite
    else:
        from perennial.databases._postgresql import PostgresDatabase

        with PostgresDatabase.open(connection, hide) as postgres:
            yield postgres
