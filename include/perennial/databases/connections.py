"""Connections to databases, each by its name.

A connection named ``warehouse`` is a URI in the environment variable ``PERENNIAL_CONNECTION_WAREHOUSE``, such as
``postgresql://user:password@host:5432/database`` or ``sqlite:////folder/file.db``. In Airflow, the plugin hands over
the Airflow connection of that name (`provided`). A URI may hold a password: no message, manifest or log shows it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote

from perennial.core.errors import DatabaseError, DatabaseRequestError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BATCH_CELLS", "PREFIX", "Connection", "Database", "QueryColumn", "find", "is_defined", "provided"]

#: What the names of environment variables with the URIs of connections begin with.
PREFIX = "PERENNIAL_CONNECTION_"
#: Cells of a batch of rows; a batch has fewer rows the more columns there are.
BATCH_CELLS = 1_000_000
_SCHEMES = {"postgresql": "postgresql", "postgres": "postgresql", "sqlite": "sqlite"}
#: URIs that were handed over in this process, by the name of their connection.
_provided: dict[str, str] = {}


@dataclass(frozen=True)
class Connection:
    """A connection of a known kind.

    Attributes:
        name: its name.
        kind: ``postgresql`` or ``sqlite``.
        uri: address and credentials; never shown.
    """

    name: str
    kind: str
    uri: str = field(repr=False)

    @property
    def address(self) -> str:
        """Host, port and database, or the file: what messages may show."""
        if self.kind == "sqlite":
            return str(self.path)
        return self.uri.partition("://")[2].partition("?")[0].rpartition("@")[2] or "the default server"

    @property
    def path(self) -> Path:
        """The file of an SQLite database: absolute, or relative to the current folder if that is where it lies."""
        text = unquote(self.uri.partition("://")[2].partition("?")[0]).lstrip("/")
        relative = Path(text).resolve()
        return relative if text and relative.exists() and not Path("/", text).exists() else Path("/", text)

    def hide(self, text: str) -> str:
        """A driver's message without the URI and the passwords in it."""
        address, _, query = self.uri.partition("://")[2].partition("?")
        secrets = [self.uri, address.rpartition("@")[0].partition(":")[2]]
        secrets += [value for name, value in parse_qsl(query) if "password" in name]
        for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def error(self, cause: str, remedy: str, *, heals: bool = False) -> DatabaseError:
        """The error about this connection."""
        kind = DatabaseError if heals else DatabaseRequestError
        return kind(f"connection {self.name} ({self.address}): {self.hide(cause)}", remedy)


@dataclass(frozen=True)
class QueryColumn:
    """A column of a query.

    Attributes:
        name: its name.
        type: the database's name of its type; empty where the database has none.
        matches: the types of a spec that it can be read as.
    """

    name: str
    type: str
    matches: frozenset[str]


class Database(Protocol):
    """An open connection, for queries in its own SQL."""

    def begin(self) -> None:
        """Forget the queries so far, failed ones too: those that follow have the whole time that a query has.

        Raises:
            DatabaseError: the database does not answer any more.
        """

    def columns(self, sql: str) -> list[QueryColumn]:
        """The columns of a query, in its order, without running it.

        Args:
            sql: a query with the placeholders of `perennial.core.query_text`.

        Raises:
            DatabaseError: the database does not answer, or refuses the query.
        """

    def suggest_types(self, sql: str) -> dict[str, str]:
        """The type of a spec that each column of a query can be read as; others are left out.

        Args:
            sql: a query without placeholders.

        Raises:
            DatabaseError: as for `columns`.
        """

    def first_cell(self, sql: str, start: datetime, end: datetime) -> Any:
        """The first cell of the first row of a query; None if it has no row.

        Args:
            sql: the query.
            start: first moment of the partition, in UTC.
            end: first moment after it, in UTC.

        Raises:
            DatabaseError: as for `read`.
        """

    def read(
        self, sql: str, start: datetime, end: datetime, columns: Mapping[str, str]
    ) -> Generator[pa.RecordBatch, None, None]:
        """Run a query, and read its rows in batches that fit into memory.

        Args:
            sql: the query.
            start: first moment of the partition, in UTC.
            end: first moment after it, in UTC.
            columns: the columns to read, with the types that the spec declares.

        Raises:
            DatabaseError: the database does not answer, or not in time; or it refuses the query.
            DataError: a value has another type than the declared one.
        """


def is_defined(name: str) -> bool:
    """Whether there is a connection of a name."""
    return bool(_uri(name))


def _uri(name: str) -> str:
    return (os.environ.get(PREFIX + name.upper()) or _provided.get(name, "")).strip()


def find(name: str) -> Connection:
    """Look up a connection.

    Raises:
        DatabaseRequestError: it is not defined, or has no usable URI.
    """
    variable = PREFIX + name.upper()
    uri = _uri(name)
    remedy = (
        f"set {variable} to a URI: postgresql://user:password@host:5432/database, or sqlite:////folder/file.db; in "
        f"Airflow, an Airflow connection {name!r} does as well, for steps that run in the worker"
    )
    if not uri:
        raise DatabaseRequestError(f"connection {name} is not defined", remedy)
    scheme, separator, _ = uri.partition("://")
    kind = _SCHEMES.get(scheme.partition("+")[0].lower()) if separator else None
    if kind is None:
        raise DatabaseRequestError(
            f"connection {name} is no URI of PostgreSQL or SQLite (it is not shown: it may hold a password)",
            remedy,
        )
    return Connection(name, kind, f"{kind}://{uri.partition('://')[2]}")


@contextmanager
def provided(uris: Mapping[str, str]) -> Iterator[None]:
    """Hand connections over to what runs in the block; those of the environment come first.

    Args:
        uris: URI of each connection, by its name.
    """
    before = dict(_provided)
    _provided.update(uris)
    try:
        yield
    finally:
        _provided.clear()
        _provided.update(before)
