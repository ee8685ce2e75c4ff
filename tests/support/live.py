"""The stack that the live tests share, as their fixtures give it."""

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
from perennial.local_stack.progress import Board
from perennial.local_stack.sample.plan import Plan
from perennial.spec.model_spec import ModelSpec
from support import toys

BROKEN = "broken_on_purpose"
#: Twelve days of history, three nights, of which the second is monitored, and trained for by hand.
PLAN = Plan("toy_live", toys.FIRST, "2024-01-12", "2024-01-15", False, manual_training_on="2024-01-14")


@dataclass(frozen=True)
class Live:
    """A running stack.

    Attributes:
        spec: the model of `PLAN`. others: the models that other tests have, by name.
        user: what the processes take for the user's home folder.
        log: what the board has shown so far goes there.
        told: what the models' webhook was told so far.
    """

    config: Stack
    airflow: Airflow
    spec: ModelSpec
    others: dict[str, ModelSpec]
    user: Path
    log: Path
    told: list[dict[str, Any]]

    def board(self) -> Board:
        """A board that appends to `log`."""
        return Board(Console(file=self.log.open("a"), width=200))

    def runs_of(self, dag: str, key: str) -> list[dict[str, Any]]:
        """The runs of a DAG for one partition."""
        return [r for r in self.airflow.runs(dag) if r["partition_key"] == key]


class _Hook(BaseHTTPRequestHandler):
    """Notes what it is told."""

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's address, and the list of what it is told."""
    with HTTPServer(("127.0.0.1", 0), _Hook) as server:
        server.told = []  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", server.told  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def await_(what: Callable[[], Any], patience: float, why: Callable[[], object]) -> Any:
    """What ``what`` returns once that is true; fails, and says why, after ``patience`` seconds."""
    end = time.monotonic() + patience
    while not (value := what()):
        assert time.monotonic() < end, why()
        time.sleep(0.3)
    return value
