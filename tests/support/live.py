"""The running stack that the live tests share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console

from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import Stack
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.sample.plan import Plan
from perennial.spec.model_spec import ModelSpec
from support import toys

BROKEN = "broken_on_purpose"
#: Twelve days of history and three nights; the second is monitored, and a training for it is triggered by hand.
PLAN = Plan("toy_live", toys.FIRST, "2024-01-12", "2024-01-15", False, manual_training_on="2024-01-14")


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
    """Stores the messages that it receives."""

    def do_POST(self) -> None:
        self.server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
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
