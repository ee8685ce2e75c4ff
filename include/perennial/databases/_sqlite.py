"""SQLite through Python's own driver: cells have types, columns have none."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa

from perennial.core import query_text
from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier
from perennial.databases.connections import BATCH_CELLS, Connection, QueryColumn

#: Seconds for which a database that another process writes is waited for.
BUSY_SECONDS = 30.0
#: Python types of the cells that are read as a declared type, and the Arrow type of the column. Dates and times are
#: texts in SQLite; they are parsed after they were read.
_TYPES: dict[str, tuple[frozenset[type], pa.DataType]] = {
    "string": (frozenset({str}), pa.string()),
    "integer": (frozenset({int}), pa.int64()),
    "number": (frozenset({int, float}), pa.float64()),
    "boolean": (frozenset({int}), pa.bool_()),
    "date": (frozenset({str}), pa.string()),
    "timestamp": (frozenset({str}), pa.string()),
}
_PARAMETERS = {name: f":{name}" for name in query_text.PLACEHOLDERS}
_NAMES: dict[type, str] = {str: "text", int: "integer", float: "real", bytes: "blob"}
_DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
#: What the messages say that time heals.
HEALS = re.compile(r"locked|busy|interrupted|disk I/O|disk is full")


class SqliteDatabase:
    """An open SQLite file.

    Args:
        connection: the connection.
        con: the driver's connection, for reading only.
        hide: no message may quote values.
    """

    def __init__(self, connection: Connection, con: sqlite3.Connection, hide: bool) -> None:
        self._connection, self._con, self._hide = connection, con, hide

    @classmethod
    @contextmanager
    def open(cls, connection: Connection, hide: bool) -> Iterator[SqliteDatabase]:
        """Open the file for reading; see `databases.open_database`."""
        path = connection.path
        if not path.is_file():
            raise connection.error(
                "there is no such file", "correct the path of the connection, or create the database"
            )
        con = None
        try:
            con = sqlite3.connect(
                f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, check_same_thread=False
            )
            con.execute("SELECT count(*) FROM main.sqlite_schema")
        except sqlite3.Error as error:
            if con:
                con.close()
            raise connection.error(
                f"it cannot be opened: {error}", "check that the file is an SQLite database that this user can read",
                heals=bool(HEALS.search(str(error))),
            ) from None  # fmt: skip
        try:
            yield cls(connection, con, hide)
        finally:
            con.close()

    def begin(self) -> None:
        """See `connections.Database`; each query has its own transaction and its own time."""

    def columns(self, sql: str) -> list[QueryColumn]:
        """See `connections.Database`."""
        with self._running():
            cursor = self._con.execute(
                f"SELECT * FROM (\n{query_text.with_parameters(sql, _PARAMETERS)}\n) LIMIT 0",
                dict.fromkeys(query_text.PLACEHOLDERS, ""),
            )
        names = [item[0] for item in cursor.description]
        # SQLite numbers a name that occurs again: id, id:1
        repeated = {name for name in names if (stem := re.fullmatch(r"(.+):\d+", name)) and stem[1] in names}
        shown = [name.rpartition(":")[0] if name in repeated else name for name in names]
        return [QueryColumn(name, "", frozenset(_TYPES)) for name in shown]

    def suggest_types(self, sql: str) -> dict[str, str]:
        """See `connections.Database`; SQLite has to look at all cells."""
        names = [column.name for column in self.columns(sql)]
        counts = [
            f"count(*) FILTER (WHERE typeof({cell}) = '{kind}'{condition})"
            for cell in map(quote_identifier, names)
            for kind, condition in (
                ("integer", ""), ("real", ""), ("text", ""), ("blob", ""),
                ("text", f" AND {cell} GLOB '{_DATE}*'"), ("text", f" AND {cell} GLOB '{_DATE}'"),
            )
        ]  # fmt: skip
        values: list[int] = []
        with self._running():
            for i in range(0, len(counts), 1200):  # SQLite has 2,000 columns at most
                values += self._con.execute(
                    f"SELECT {', '.join(counts[i : i + 1200])} FROM (\n{sql}\n)"
                ).fetchone()
        kinds = {name: _suggestion(*values[6 * i : 6 * i + 6]) for i, name in enumerate(names)}
        return {name: kind for name, kind in kinds.items() if kind}

    def first_cell(self, sql: str, start: datetime, end: datetime) -> Any:
        """See `connections.Database`."""
        with self._running():
            row = self._con.execute(
                query_text.with_parameters(sql, _PARAMETERS),
                {"start": bound_text(start), "end": bound_text(end)},
            ).fetchone()
        return row[0] if row else None

    def read(
        self, sql: str, start: datetime, end: datetime, columns: Mapping[str, str]
    ) -> Generator[pa.RecordBatch, None, None]:
        """See `connections.Database`; columns of dates and times are texts."""
        names = ", ".join(f"__q.{quote_identifier(name)}" for name in columns)
        statement = f"SELECT {names} FROM (\n{query_text.with_parameters(sql, _PARAMETERS)}\n) AS __q"
        schema = pa.schema([(name, _TYPES[declared][1]) for name, declared in columns.items()])
        with self._running():
            cursor = self._con.execute(statement, {"start": bound_text(start), "end": bound_text(end)})
            while rows := cursor.fetchmany(max(1, min(50_000, BATCH_CELLS // len(columns)))):
                cells = zip(columns.items(), zip(*rows, strict=True), strict=True)
                arrays = [self._array(name, declared, column) for (name, declared), column in cells]
                yield pa.record_batch(arrays, schema=schema)

    def _array(self, name: str, declared: str, cells: Sequence[Any]) -> pa.Array[Any]:
        kinds = set(map(type, cells)) - {type(None)}
        allowed, arrow = _TYPES[declared]
        wrong: list[str] = sorted(_NAMES[kind] for kind in kinds - allowed)
        if declared == "boolean" and not wrong and not {*cells} <= {0, 1, None}:
            wrong = ["integer other than 0 and 1"]
        if wrong:
            raise DataError(
                f"column {name!r} is declared {declared}; the query gives {', '.join(wrong)}"
                + ("" if declared in ("string", "integer", "number", "boolean") else ", not text"),
                _remedy(declared),
            )
        if declared == "boolean":
            return pa.array([None if cell is None else bool(cell) for cell in cells], arrow)
        if declared == "number":
            return pa.array([None if cell is None else float(cell) for cell in cells], arrow)
        return pa.array(cells, arrow)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Limit the time of what is read in the block, and translate the driver's errors."""
        seconds = settings().query_seconds
        expired = threading.Event()

        def interrupt() -> None:
            expired.set()
            self._con.interrupt()

        timer = threading.Timer(seconds, interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning) as error:
            if expired.is_set():
                raise self._connection.error(
                    f"the query ran for more than {seconds} seconds",
                    "simplify it, or add an index; or raise PERENNIAL_QUERY_SECONDS", heals=True,
                ) from None  # fmt: skip
            raise self._translated(error) from None
        finally:
            timer.cancel()

    def _translated(self, error: sqlite3.Error | sqlite3.Warning) -> Exception:
        text = str(error)
        if "Could not decode to UTF-8" in text:
            column = re.match(r"Could not decode to UTF-8 column '(.*)' with text", text, re.DOTALL)
            named = f"column {column[1]!r}" if column else "a text"
            return DataError(f"{named} is not UTF-8", "correct the text in the database")
        if isinstance(error, sqlite3.DataError | sqlite3.IntegrityError) and self._hide:
            text = type(error).__name__
        return self._connection.error(
            f"the query fails: {text}",
            "correct the query, or the database; `perennial check` tries the query",
            heals=bool(HEALS.search(text)),
        )


def _suggestion(integers: int, reals: int, texts: int, blobs: int, times: int, days: int) -> str:
    """The type that all cells of a column have, by their numbers; empty if there is none."""
    if blobs or (texts and (integers or reals)):
        return ""
    if texts:
        return "date" if days == texts else "timestamp" if times == texts else "string"
    return "number" if reals else "integer" if integers else ""


def _remedy(declared: str) -> str:
    if declared == "timestamp":
        return (
            "let the query give text such as 2024-05-01 06:30:00: datetime(column, 'unixepoch') for seconds"
        )
    return "convert it in the query, by CAST or CASE, or declare another type"


def bound_text(moment: datetime) -> str:
    """A bound of a partition as a text that compares with dates and times in SQLite, however exact these are."""
    return moment.strftime("%Y-%m-%d" if not (moment.hour or moment.minute) else "%Y-%m-%d %H:%M")
