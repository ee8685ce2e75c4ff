"""PostgreSQL through ADBC: a query is read by a cursor of the server, so that neither side holds all its rows."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

import adbc_driver_manager
import adbc_driver_postgresql.dbapi
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core import query_text
from perennial.core.errors import DatabaseError, DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier
from perennial.databases.connections import BATCH_CELLS, Connection, QueryColumn

#: Parameters of the connection, unless its URI sets them: a server that is gone is noticed within a minute or so.
_CONNECTION_PARAMETERS = {
    "connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3",
    "tcp_user_timeout": "60000", "application_name": "perennial", "client_encoding": "UTF8",
}  # fmt: skip
_TEXT = ("text", "varchar", "bpchar", "name", "char", "citext", "uuid", "json", "jsonb", "xml")
#: PostgreSQL's types that are read as each type of a spec; enumerations are texts as well.
_MATCHES: dict[str, tuple[str, ...]] = {
    "string": _TEXT,
    "integer": ("int2", "int4", "int8"),
    "number": ("int2", "int4", "int8", "float4", "float8", "numeric"),
    "boolean": ("bool",),
    "date": ("date",),
    "timestamp": ("timestamp", "timestamptz"),
}
#: What the server converts a column of each declared type to, and the Arrow type that it arrives as. Session and
#: timestamps are in UTC.
_READ_AS: dict[str, tuple[str, pa.DataType]] = {
    "string": ("text", pa.string()),
    "integer": ("int8", pa.int64()),
    "number": ("float8", pa.float64()),
    "boolean": ("bool", pa.bool_()),
    "date": ("date", pa.date32()),
    "timestamp": ("timestamp", pa.timestamp("us")),
}
#: Earliest date and time of PostgreSQL, as days and microseconds since 1970. The driver shifts infinite ones, and times
#: beyond the range of 64 bits, to a value below.
_EARLIEST = {"date": -2_440_588, "timestamp": -2_440_588 * 86_400_000_000}
#: Classes of SQLSTATE that time heals: no connection, conflict of transactions, resources, an operator's intervention
#: (a statement that runs too long is one), a lock that is not available.
_HEALS = ("08", "40", "53", "57", "58", "55P03")
#: Classes whose messages quote names of the query, but no values.
_WITHOUT_VALUES = (*_HEALS, "0A", "25", "28", "3D", "3F", "42")
#: What the messages of a refused login say: such a failure has no SQLSTATE.
_REFUSED = re.compile(
    r"password|authentication|no pg_hba\.conf entry|does not exist|permission denied|is not permitted|"
    r"invalid (?:URI|connection|port|percent|integer)|SSL|certificate|missing \"=\"|root\.crt|end of string"
)
#: Bytes of a batch of rows that are aimed at.
_BATCH_BYTES = 16 << 20


class PostgresDatabase:
    """An open connection to PostgreSQL.

    Args:
        connection: the connection.
        con: the driver's connection, within a transaction.
        hide: no message may quote values.
        write: whether transactions may write.
    """

    def __init__(self, connection: Connection, con: Any, hide: bool, write: bool) -> None:
        self._connection, self._con, self._hide, self._write = connection, con, hide, write
        self._start_transaction()

    def begin(self) -> None:
        """See `connections.Database`."""
        with self.translated():
            self._con.rollback()
        self._start_transaction()

    def _start_transaction(self) -> None:
        """Set what holds until the transaction ends: a pool of connections may keep no other settings."""
        self._deadline = time.monotonic() + settings().query_seconds
        self.execute("SET LOCAL TimeZone = 'UTC'")
        if not self._write:
            self.execute("SET TRANSACTION READ ONLY")

    @classmethod
    @contextmanager
    def open(cls, connection: Connection, hide: bool, *, write: bool = False) -> Iterator[PostgresDatabase]:
        """Connect, for reading unless ``write``; see `databases.open_database`."""
        try:
            con = adbc_driver_postgresql.dbapi.connect(_complete(connection.uri))
        except adbc_driver_manager.Error as error:
            raise _refused(connection, error) from None
        try:
            yield cls(connection, con, hide, write)
        finally:
            with suppress(adbc_driver_manager.Error):
                con.rollback()
            with suppress(adbc_driver_manager.Error):
                con.close()

    def execute(self, sql: str, parameters: pa.RecordBatch | None = None) -> None:
        """Run a statement without a result, within the time that the connection has left."""
        with self.translated(), self._con.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {self._milliseconds_left()}")
            cursor.execute(sql, parameters)

    def fetch(self, sql: str, parameters: pa.RecordBatch | None = None) -> pa.Table:
        """Run a statement, and return its rows."""
        options = {"adbc.postgresql.use_copy": "false"}  # COPY would run queries only
        with self.translated(), self._con.cursor(adbc_stmt_kwargs=options) as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {self._milliseconds_left()}")
            cursor.execute(sql, parameters)
            table: pa.Table = cursor.fetch_arrow_table()
            return table

    def append(self, table: str, namespace: str | None, rows: pa.RecordBatchReader) -> int:
        """Append rows to a table, by COPY; returns their number."""
        with self.translated(), self._con.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {self._milliseconds_left()}")
            return int(cursor.adbc_ingest(table, rows, mode="append", db_schema_name=namespace))

    def commit(self) -> None:
        """End the transaction."""
        with self.translated():
            self._con.commit()

    def columns(self, sql: str) -> list[QueryColumn]:
        """See `connections.Database`."""
        statement = _with_parameters(sql)
        with self.translated(), self._con.cursor() as cursor:
            schema = cursor.adbc_execute_schema(statement)
        return self._described(schema)

    def suggest_types(self, sql: str) -> dict[str, str]:
        """See `connections.Database`."""
        preferred = ("integer", "boolean", "number", "date", "timestamp", "string")
        kinds = {c.name: next((k for k in preferred if k in c.matches), None) for c in self.columns(sql)}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def _described(self, schema: pa.Schema) -> list[QueryColumn]:
        types = [(item.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for item in schema]
        known = {name for names in _MATCHES.values() for name in names}
        enums = self._enumerations(sorted({name for name in types if name not in known}))
        columns = []
        for item, name in zip(schema, types, strict=True):
            matches = {declared for declared, names in _MATCHES.items() if name in names}
            columns.append(
                QueryColumn(item.name, name, frozenset(matches | ({"string"} if name in enums else set())))
            )
        return columns

    def _enumerations(self, names: Sequence[str]) -> set[str]:
        """The types that are enumerations, of some types."""
        if not names:
            return set()
        rows = self.fetch(
            "SELECT DISTINCT typname::text AS __name FROM pg_catalog.pg_type WHERE typtype = 'e'"
        )
        return set(names) & set(rows["__name"].to_pylist())

    def first_cell(self, sql: str, start: datetime, end: datetime) -> Any:
        """See `connections.Database`."""
        some = f"SELECT * FROM (\n{_with_parameters(sql)}\n) AS __q LIMIT 1"
        rows = self.fetch(some, _parameters(sql, start, end))
        return rows.column(0)[0].as_py() if rows.num_rows else None

    def read(
        self, sql: str, start: datetime, end: datetime, columns: Mapping[str, str]
    ) -> Generator[pa.RecordBatch, None, None]:
        """See `connections.Database`."""
        names = ", ".join(
            f"__q.{quote_identifier(name)}::{_READ_AS[declared][0]} AS {quote_identifier(name)}"
            for name, declared in columns.items()
        )
        self.execute(
            f"DECLARE __rows NO SCROLL CURSOR FOR SELECT {names} FROM (\n{_with_parameters(sql)}\n) AS __q",
            _parameters(sql, start, end),
        )
        schema = pa.schema([(name, _READ_AS[declared][1]) for name, declared in columns.items()])
        rows = max(1, min(10_000, BATCH_CELLS // 10 // len(columns)))
        while True:
            table = self.fetch(f"FETCH FORWARD {rows} FROM __rows")
            if not len(table):
                return
            for batch in table.to_batches():
                arrays = [
                    self._array(name, declared, batch.column(i))
                    for i, (name, declared) in enumerate(columns.items())
                ]
                yield pa.record_batch(arrays, schema=schema)
            wanted = rows * _BATCH_BYTES // max(1, table.nbytes)
            rows = max(1, min(wanted, 4 * rows, BATCH_CELLS // len(columns) or 1))

    def _array(self, name: str, declared: str, column: pa.Array[Any]) -> pa.Array[Any]:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            raise DataError(
                f"column {name!r} has a text that is not UTF-8", "correct it in the database"
            ) from None
        if earliest := _EARLIEST.get(declared):
            least = pc.min(column.cast(pa.int32() if declared == "date" else pa.int64())).as_py()
            if least is not None and least < earliest:
                raise DataError(
                    f"column {name!r} has an infinite {declared}, or one beyond the year 294246",
                    f"convert it in the query: CASE WHEN isfinite({name}) THEN {name} END",
                )
        return column.cast(_READ_AS[declared][1])

    def _milliseconds_left(self) -> int:
        left = int((self._deadline - time.monotonic()) * 1000)
        if left <= 0:
            raise self._too_long()
        return left

    def _too_long(self) -> DatabaseError:
        return self._connection.error(
            f"it ran for more than {settings().query_seconds} seconds",
            "simplify the query, or add an index; or raise PERENNIAL_QUERY_SECONDS", heals=True,
        )  # fmt: skip

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise an error of the driver within the block as one of ours."""
        try:
            yield
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            failure = self._failure(error)
        else:
            return
        raise failure

    def _failure(self, error: Exception) -> DatabaseError:
        state = getattr(error, "sqlstate", None) or ""
        if state == "57014" and time.monotonic() >= self._deadline - 0.1:
            return self._too_long()
        heals = state.startswith(_HEALS) or not state
        shown = not self._hide or (state and state.startswith(_WITHOUT_VALUES)) or not state
        text = _message(error) if shown else "values are not shown: they may be personal data"
        remedy = (
            "check the server and the network; then run it again"
            if heals
            else "correct the query, the database, or the rights of the connection's user; `perennial check` tries "
            "the query"
        )
        reason = f"{text} (SQLSTATE {state})" if state else text
        return self._connection.error(f"it failed: {reason}", remedy, heals=heals)


def _with_parameters(sql: str) -> str:
    """A query with the parameters of PostgreSQL, numbered without a gap."""
    used = query_text.placeholders(sql)
    return query_text.with_parameters(sql, {name: f"(${i}::timestamptz)" for i, name in enumerate(used, 1)})


def _parameters(sql: str, start: datetime, end: datetime) -> pa.RecordBatch | None:
    """The values of the parameters of a query; None if it has none."""
    bounds, used = {"start": start, "end": end}, query_text.placeholders(sql)
    columns = {name: pa.array([bounds[name]], pa.timestamp("us", "UTC")) for name in used}
    return pa.record_batch(columns) if columns else None


def _complete(uri: str) -> str:
    """A URI with the parameters of `_CONNECTION_PARAMETERS` that it does not set."""
    address, _, query = uri.partition("?")
    given = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
    added = urlencode({name: value for name, value in _CONNECTION_PARAMETERS.items() if name not in given})
    return f"{address}?{'&'.join(filter(None, (query, added)))}"


def _message(error: Exception) -> str:
    """The first line that PostgreSQL wrote, without what the driver adds."""
    details = dict(getattr(error, "details", None) or ())
    if primary := details.get(b"PG_DIAG_MESSAGE_PRIMARY"):
        return str(primary.decode("utf-8", "replace"))[:300]
    text = re.sub(r"^[A-Z_ ]+: (\[libpq\] )?", "", str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _refused(connection: Connection, error: Exception) -> DatabaseError:
    """The error about a server that cannot be reached, or refuses the login."""
    text = _message(error)
    reason = next((part for part in ("FATAL:", "failed:", "address:") if part in text), "")
    shown = text.partition(reason)[2].strip() if reason else ""
    if _REFUSED.search(text):
        # without a reason of the server, the text quotes the URI
        cause = (
            shown or "its URI, or a parameter of it, is not valid (it is not shown: it may hold a password)"
        )
        return connection.error(f"it refuses the login: {cause}" if shown else cause,
                                "correct the connection, or the rights of its user")  # fmt: skip
    return connection.error(
        f"it cannot be reached: {shown or 'no answer'}", "check the server and the network; then run it again",
        heals=True,
    )  # fmt: skip
