"""A feed that is a query: the same steps as with files, from SQLite and from a real PostgreSQL server."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import adbc_driver_postgresql.dbapi
import pytest

from perennial.core import dates
from perennial.core.errors import DatabaseError, DatabaseRequestError, DataError, time_heals
from perennial.ingestion import query_feed
from perennial.ingestion.run import row_inputs, rows_feed
from perennial.lifecycle import backlog
from perennial.spec.sources import QuerySource
from perennial.storage import manifests
from support.databases import postgres
from support.small_model import DAY, SmallModel, rows

NEXT, THIRD = dates.add_days(DAY, 1), dates.add_days(DAY, 2)
SQL = 'SELECT * FROM events WHERE "at" >= {start} AND "at" < {end};  -- one day'


class Events(Protocol):
    """The table ``events`` of a database."""

    def execute(self, *statements: str) -> None: ...

    def add(self, day: str, **changes: Any) -> None: ...


class SqliteEvents:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.execute(
            'CREATE TABLE events (id TEXT, at TEXT, amount REAL, count INTEGER, kind TEXT, ok BOOLEAN, "on" DATE, '
            "phone TEXT, extra BLOB)"
        )

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as con, con:
            for statement in statements:
                con.execute(statement)

    def add(self, day: str, **changes: Any) -> None:
        table = rows(day, **changes).to_pylist()
        values = [
            tuple(str(v) if isinstance(v, dt.date) else v for v in row.values()) for row in reversed(table)
        ]
        with closing(sqlite3.connect(self.path)) as con, con:
            con.executemany(f"INSERT INTO events VALUES ({', '.join('?' * 8)}, NULL)", values)


class PostgresEvents:
    def __init__(self, server: postgres.Server) -> None:
        self.server, self.database = server, server.new_database()
        self.execute(
            'CREATE TABLE events (id text, "at" timestamptz, amount numeric(10, 2), count int, kind varchar(5), '
            'ok bool, "on" date, phone text, extra bytea)'
        )

    def execute(self, *statements: str) -> None:
        self.server.execute(*statements, database=self.database)

    def add(self, day: str, **changes: Any) -> None:
        def literal(value: Any) -> str:
            if value is None:
                return "NULL"
            return f"'{value}+00'" if isinstance(value, dt.datetime) else f"'{value}'"

        table = reversed(rows(day, **changes).to_pylist())
        values = ", ".join(f"({', '.join(map(literal, row.values()))}, NULL)" for row in table)
        self.execute(f"INSERT INTO events VALUES {values}")


@pytest.fixture(params=["sqlite", "postgresql"])
def events(
    request: pytest.FixtureRequest, small_model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Events:
    made: SqliteEvents | PostgresEvents
    if request.param == "sqlite":
        made = SqliteEvents(tmp_path / "events.db")
        monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", f"sqlite:///{made.path}")
    else:
        server = request.getfixturevalue("postgres_server")
        made = PostgresEvents(server)
        monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", server.uri(made.database))
    small_model.changes = {"source": {"sql": SQL, "connection": "shop"}}
    return made


def test_the_rows_of_a_partition_are_published_as_from_a_file(
    small_model: SmallModel, events: Events
) -> None:
    for day in (DAY, NEXT, THIRD):
        events.add(day)
    result = small_model.run(DAY, NEXT)
    assert (result["status"], result["rows_out"], result["quarantined"]) == ("published", 80, 0)
    published = small_model.table()
    small_model.changes = {}
    for day in (DAY, NEXT):
        small_model.land(rows(day), day)
    small_model.run(DAY, NEXT, force=True)
    assert small_model.table() == published


def test_the_bounds_are_those_of_days_in_the_zone_of_the_feed(
    small_model: SmallModel, events: Events
) -> None:
    """Rows are at each hour of a day in UTC; in New York it begins at 5 o'clock, and one day has 23 hours."""
    small_model.changes["timezone"] = "America/New_York"
    for day in ("2020-03-07", "2020-03-08", "2020-03-09", "2020-03-10"):
        events.add(day, n=24)
    counts = [small_model.run(day)["rows_out"] for day in ("2020-03-07", "2020-03-08", "2020-03-09")]
    assert counts == [24, 23, 24]
    times = [row["at"] for row in small_model.table() if row["partition_date"] == "2020-03-08"]
    assert min(times) == dt.datetime(2020, 3, 8, 5) and max(times) == dt.datetime(2020, 3, 9, 3)
    assert small_model.spec.cadence.event_limit("2020-03-08") == dt.datetime(2020, 3, 10, 4)


def test_the_same_rows_are_published_once_in_whichever_order_they_come(
    small_model: SmallModel, events: Events
) -> None:
    events.add(DAY)
    first = small_model.run()
    assert small_model.run()["status"] == "unchanged"
    events.execute("DELETE FROM events")
    events.add(DAY)
    events.execute(
        "CREATE TABLE other AS SELECT * FROM events ORDER BY amount DESC", "DROP TABLE events",
        "ALTER TABLE other RENAME TO events",
    )  # fmt: skip
    assert small_model.run()["status"] == "unchanged"
    events.execute("UPDATE events SET extra = NULL")  # a column that is not declared
    assert small_model.run()["status"] == "unchanged"
    assert small_model.run(force=True)["version"] > first["version"]
    events.execute("UPDATE events SET amount = amount + 1 WHERE count = 7")
    assert small_model.run()["status"] == "published"
    assert not list((small_model.folder / "home" / "tmp").glob("data-*"))


def test_bad_rows_go_to_quarantine_and_missing_values_stay_missing(
    small_model: SmallModel, events: Events
) -> None:
    events.add(DAY, amount=[-1.0, None, *map(float, range(38))], on=[None] * 40)
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (39, 1)
    table = {row["id"]: row for row in small_model.table()}
    assert table[f"{DAY}-1"]["amount"] is None
    assert all(row["on"] is None for row in table.values())


def test_labels_come_from_a_query_once_it_gives_some(small_model: SmallModel, events: Events) -> None:
    sql = 'SELECT id, amount AS value FROM events WHERE "at" >= {start} AND "at" < {end} AND amount > 35'
    small_model.label["source"] = {"sql": sql, "connection": "shop"}
    small_model.label["columns"] = {"id": "string", "value": "number"}
    events.add(DAY)
    events.add(NEXT)
    events.execute("UPDATE events SET amount = 1")
    assert small_model.run(DAY, NEXT)["labels"] == 0
    assert backlog.unlabelled(small_model.spec, NEXT).overdue == [DAY]
    events.execute("UPDATE events SET amount = 36 WHERE count < 5")
    result = small_model.run(NEXT)
    assert (result["labels"], result["status"]) == (5, "published")
    assert small_model.run(NEXT)["status"] == "unchanged"
    assert backlog.unlabelled(small_model.spec, NEXT).overdue == []


def test_a_range_is_read_by_one_connection_though_a_partition_fails(
    small_model: SmallModel, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "CASE WHEN amount < 0 THEN CAST(json(kind) AS TEXT) ELSE kind END AS kind"
    small_model.changes["source"]["sql"] = SQL.replace(
        "*", f'id, "at", amount, count, {kind}, ok, "on", phone'
    )
    for day in (DAY, NEXT, THIRD):
        events.add(day, **({"amount": [-1.0] * 40} if day == NEXT else {}))
    opened: list[str] = []
    for driver in (sqlite3, adbc_driver_postgresql.dbapi):

        def connect(*arguments: Any, real: Any = driver.connect, **options: Any) -> Any:
            opened.append(arguments[0])
            return real(*arguments, **options)

        monkeypatch.setattr(driver, "connect", connect)
    with pytest.raises(DatabaseRequestError, match=f"partition {NEXT}: the query data.source"):
        small_model.run(DAY, THIRD)
    assert {row["partition_date"] for row in small_model.table()} == {DAY, THIRD}
    assert len(opened) == 1


def test_catching_up_publishes_the_partitions_of_the_schedule_that_are_missing(
    small_model: SmallModel, events: Events
) -> None:
    for day in (DAY, NEXT, THIRD):
        events.add(day)
    spec = small_model.spec
    spec = spec.model_copy(
        update={"schedule": spec.schedule.model_copy(update={"start": dt.date(2020, 3, 1)})}
    )
    assert backlog.unpublished(spec, THIRD).overdue == [DAY, NEXT, THIRD]
    events.execute(f"UPDATE events SET id = 'x' WHERE id LIKE '{NEXT}%'")  # duplicates stop the partition
    from perennial.steps.data import data

    result = data(spec, start=THIRD, catch_up=True)
    assert (result["partitions"], result["late"]) == ([THIRD], [DAY])
    later = backlog.unpublished(spec, THIRD)
    assert (later.overdue, later.failed) == ([NEXT], [])  # the rows may have been corrected since
    events.execute("UPDATE events SET id = id || count WHERE id = 'x'")
    assert data(spec, start=THIRD, catch_up=True)["late"] == [NEXT]
    assert manifests.read("small", "data", NEXT)


def test_a_partition_without_rows_is_not_published(small_model: SmallModel, events: Events) -> None:
    with pytest.raises(DataError, match=r"the query data\.source of connection shop holds no rows"):
        small_model.run()


def test_a_query_without_rows_is_no_failure_before_the_first_rows(
    small_model: SmallModel, events: Events
) -> None:
    events.execute("ALTER TABLE events RENAME TO others")
    with pytest.raises(DatabaseRequestError, match="events"):
        small_model.run(catch_up=True)
    events.execute("ALTER TABLE others RENAME TO events")
    assert small_model.run(catch_up=True)["status"] == "not begun"
    events.add(DAY)
    assert small_model.run(catch_up=True)["status"] == "published"
    with pytest.raises(DataError, match="holds no rows"):
        small_model.run(NEXT, catch_up=True)


def test_a_partition_that_has_not_ended_is_refused(small_model: SmallModel, events: Events) -> None:
    today = dt.datetime.now(dt.UTC).date().isoformat()
    with pytest.raises(DataError, match="has not ended"):
        small_model.run(today)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1, {start}", "begins with SELECT"),
        ("SELECT nothing FROM events WHERE kind = {start}", "nothing"),
        ("SELECT * FROM nowhere WHERE a = {start}", "nowhere"),
        ("SELECT * FROM events WHERE = {start}", "syntax error"),
        ("SELECT id, count FROM events WHERE kind > CAST({start} AS TEXT)", "'at' .timestamp. is missing"),
        ("SELECT *, id FROM events WHERE kind > CAST({start} AS TEXT)", "'id' occurs more than once"),
    ],
)
def test_a_query_that_does_not_fit_needs_a_person(
    small_model: SmallModel, events: Events, sql: str, message: str
) -> None:
    small_model.changes = {"source": {"sql": sql, "connection": "shop"}}
    with pytest.raises((DataError, DatabaseRequestError, ValueError), match=message) as caught:
        small_model.run()
    assert not time_heals(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_query_only_reads(small_model: SmallModel, events: Events) -> None:
    sql = "WITH gone AS (DELETE FROM events RETURNING *) SELECT * FROM gone WHERE CAST({start} AS TEXT) > ''"
    events.add(DAY)
    small_model.changes = {"source": {"sql": sql, "connection": "shop"}}
    with pytest.raises(DatabaseRequestError):
        small_model.run()
    small_model.changes = {"source": {"sql": SQL, "connection": "shop"}}
    assert small_model.run()["rows_out"] == 40


def test_a_query_that_takes_too_long_is_stopped(
    small_model: SmallModel, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_QUERY_SECONDS", "1")
    events.add(DAY)
    slow = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) "
        'SELECT events.* FROM events, (SELECT max(i) AS i FROM n) AS m WHERE "at" > {start} AND m.i > 0'
    )
    small_model.changes = {"source": {"sql": slow, "connection": "shop"}}
    with pytest.raises(DatabaseError, match="more than 1 seconds") as caught:
        small_model.run()
    assert time_heals(caught.value)


def test_a_connection_that_is_not_defined_is_named(small_model: SmallModel, events: Events) -> None:
    small_model.changes = {"source": {"sql": SQL, "connection": "other"}}
    with pytest.raises(DatabaseRequestError, match="PERENNIAL_CONNECTION_OTHER"):
        small_model.run()
    assert row_inputs(small_model.spec)


def test_personal_values_are_in_no_message(small_model: SmallModel, events: Events) -> None:
    events.add(DAY)
    sql = 'SELECT *, CAST(phone AS INTEGER) AS wrong FROM events WHERE "at" > {start} ORDER BY wrong'
    small_model.changes = {"source": {"sql": sql, "connection": "shop"}}
    try:
        small_model.run()
    except (DataError, DatabaseError) as error:
        assert "170" not in str(error)


READY = "SELECT count(*) > 0 FROM loads WHERE until >= {end}"


def declare_loads(events: Events, model: SmallModel, **source: Any) -> None:
    model.changes["source"] = {"sql": SQL, "connection": "shop", "ready": READY} | source
    kind = "timestamptz" if isinstance(events, PostgresEvents) else "TEXT"
    events.execute(f"CREATE TABLE loads (until {kind})")


def test_a_partition_is_not_read_before_it_is_ready(small_model: SmallModel, events: Events) -> None:
    declare_loads(events, small_model)
    small_model.suite = []
    feed, source = rows_feed(small_model.spec), small_model.spec.data.source
    assert isinstance(source, QuerySource)
    events.add(DAY)
    assert not query_feed.is_ready(feed, source, DAY)
    with pytest.raises(DataError, match="connection shop is not ready"):
        small_model.run()
    events.execute(f"INSERT INTO loads VALUES ('{THIRD}')")
    assert query_feed.is_ready(feed, source, DAY) and not query_feed.is_ready(feed, source, THIRD)
    # no rows are no fault of a partition that is complete
    result = small_model.run(DAY, NEXT)
    assert (result["partitions"], result["rows_out"]) == ([DAY, NEXT], 40)
    # when it is ready does not influence the result
    inputs = row_inputs(small_model.spec)
    declare = {"sql": SQL, "connection": "shop"}
    small_model.changes["source"] = declare
    assert row_inputs(small_model.spec) == inputs
    assert query_feed.is_ready(feed, QuerySource(**declare), DAY)
    assert not query_feed.is_ready(feed, QuerySource(**declare), THIRD)


def test_labels_that_are_not_ready_are_waited_for(small_model: SmallModel, events: Events) -> None:
    declare_loads(events, small_model, ready=None)
    sql = 'SELECT id, amount AS value FROM events WHERE "at" >= {start} AND "at" < {end}'
    small_model.label["source"] = {"sql": sql, "connection": "shop", "ready": READY}
    for day in (DAY, NEXT):
        events.add(day)
    assert small_model.run(DAY, NEXT)["labels"] == 0
    events.execute(f"INSERT INTO loads VALUES ('{NEXT}')")
    assert small_model.run(NEXT)["labels"] == 40


def test_partitions_without_rows_are_asked_for_again(small_model: SmallModel, events: Events) -> None:
    small_model.changes["arrival"], small_model.start = "optional", DAY
    events.add(DAY)
    days = dates.dates(DAY, dates.add_days(DAY, backlog.RECHECKED + 2))
    small_model.run(days[0], days[-2])
    assert backlog.empty(small_model.spec, days[-2]) == days[2:-1]
    assert backlog.unpublished(small_model.spec, days[-2]).overdue == []
    late = small_model.run(days[-1], catch_up=True)
    assert "late" not in late
    events.add(days[1])
    events.add(days[4])
    late = small_model.run(days[-1], catch_up=True)
    assert late["late"] == [days[4]]
    assert {row["partition_date"] for row in small_model.table()} == {DAY, days[4]}
    assert small_model.run(days[1])["rows_out"] == 40
