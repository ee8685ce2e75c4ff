"""The running stack that the live tests share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from rich.console import Console

from perennial.core.partitions import Cadence, Unit
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import Stack
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.sample.plan import Plan
from perennial.spec.model_spec import ModelSpec
from support import toys

BROKEN = "broken_on_purpose"
#: Twelve days of history and three nights; the second is monitored, and a training for it is triggered by hand.
PLAN = Plan("toy_live", toys.FIRST, "2024-01-12", "2024-01-15", False, manual_training_on="2024-01-14")


#: When the latest scheduled runs of `FEEDS` are due; the next ones are an hour after it, or more.
DUE = datetime.now(UTC) - timedelta(minutes=2)


class Feed(NamedTuple):
    """A feed of files, or of a database.

    Attributes:
        every: length of a partition.
        schedule: of data and monitoring, as a strftime format of `DUE`.
        window: length of its windows.
        source: its files below a folder; empty for the tables of `DATABASE`.
    """

    every: Unit
    schedule: str
    window: str
    source: str = ""

    @property
    def cadence(self) -> Cadence:
        """Its partitions."""
        return Cadence(self.every)

    @property
    def latest(self) -> str:
        """The partition that is due."""
        return self.cadence.last_ended(DUE)

    @property
    def first(self) -> str:
        """The first partition of its history."""
        return self.cadence.shift(self.latest, 1 - HISTORY - BACKFILL - MISSED)

    @property
    def cron(self) -> str:
        """Its schedule; every month has a 28th."""
        due = DUE.replace(day=min(DUE.day, 28)) if "%d" in self.schedule else DUE
        return f"{due:{self.schedule}}"


#: Partitions of the history on which the first champion is trained, of a backfill, and of the downtime after it.
HISTORY, BACKFILL, MISSED = 30, 2, 3
FEEDS = {
    "toy_hourly": Feed("hour", "%M * * * *", "24 hours", "{date}/{hour}.parquet"),
    "toy_weekly": Feed("week", "%M %H * * %w", "8 partitions", "{date}.parquet"),
    "toy_monthly": Feed("month", "%M %H %d * *", "7 months", "{year}-{month}.parquet"),
    "toy_database": Feed("day", "%M %H * * *", "8 days"),
}
#: The connection of the feed without files, and the table of its predictions.
DATABASE, PREDICTIONS = "toy_shop", "toy_predictions"


def feed_model(root: Path, name: str, *, ended: bool) -> ModelSpec:
    """Write the model of a feed.

    Args:
        root: the folder of the models.
        name: of the feed and the model.
        ended: whether the schedule ended before the tests began: then only these start runs.
    """
    feed = FEEDS[name]
    rows: Any = f"{{landing}}/{name}/{feed.source}"
    labels: Any = f"{{landing}}/{name}_labels/{feed.source}"
    table = {}
    if not feed.source:
        within = "FROM toy_rows WHERE seen_at >= {start} AND seen_at < {end}"
        rows = {"connection": DATABASE, "sql": f"SELECT * {within}"}
        labels = {
            "connection": DATABASE,
            "sql": f"SELECT id, y FROM toy_labels WHERE id IN (SELECT id {within})",
        }
        table = {"connection": DATABASE, "table": PREDICTIONS}
    start = f"{feed.first}-01"[:10]
    return toys.model(
        root, name, data={"source": rows, "every": feed.every}, label={"source": labels, "arrives_after": "0 days"},
        training={"holdout": feed.window, "rounds": 5}, limits={"data": {"retries": 0}},
        monitoring={"window": feed.window}, predictions=table,
        schedule={"start": start, "data": feed.cron, "monitor": feed.cron} | ({"end": start} if ended else {}),
    )  # fmt: skip


@dataclass(frozen=True)
class Live:
    """A running stack.

    Attributes:
        config: ports and folders of the stack.
        airflow: a client of its Airflow.
        spec: the model of `PLAN`.
        others: the models of other tests, by name.
        user: the home folder of the processes' user.
        log: file of the displayed progress.
        messages: what the models' webhook has received so far.
    """

    config: Stack
    airflow: Airflow
    spec: ModelSpec
    others: dict[str, ModelSpec]
    user: Path
    log: Path
    messages: list[dict[str, Any]]

    def board(self) -> ProgressDisplay:
        """A progress display that appends to `log`."""
        return ProgressDisplay(Console(file=self.log.open("a"), width=200))

    def runs_of(self, dag: str, key: str) -> list[dict[str, Any]]:
        """The runs of a DAG for one partition."""
        return [r for r in self.airflow.runs(dag) if r["partition_key"] == key]


class _Hook(BaseHTTPRequestHandler):
    """Stores the messages that it receives, each once: one that is not answered in time is sent again."""

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stored: list[dict[str, Any]] = self.server.messages  # type: ignore[attr-defined]
        if not message.get("id") or message["id"] not in {earlier.get("id") for earlier in stored}:
            stored.append(message)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a webhook; yields its address, and the list of the messages that it receives."""
    with HTTPServer(("127.0.0.1", 0), _Hook) as server:
        server.messages = []  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", server.messages  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def await_(condition: Callable[[], Any], timeout: float, why: Callable[[], object]) -> Any:
    """Wait until ``condition`` returns something true, and return it; after ``timeout`` seconds fail with ``why()``."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, why()
        time.sleep(0.3)
    return value
