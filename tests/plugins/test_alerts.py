"""Alerts, against a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from perennial.spec import ModelSpec
from perennial_airflow import alerts


class Hook(BaseHTTPRequestHandler):
    """Notes what it is told; answers 500 on /broken, and not in time on /slow."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((self.path, self.headers["Content-Type"], json.loads(body)))
        if self.path == "/slow":
            self.server.release.wait(10)
        self.send_response(500 if self.path == "/broken" else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Hook) as found:
        found.told, found.release = [], threading.Event()
        found.url = f"http://127.0.0.1:{found.server_port}"
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.release.set()
        found.shutdown()
        thread.join()


def context(error: object, **wishes: str) -> Any:
    task = SimpleNamespace(
        dag_id="flight_late.data", task_id="data", run_id="manual__1", try_number=3, log_url="http://ui/log"
    )
    run = SimpleNamespace(partition_key=None if wishes else "2013-02-01")
    return {"task_instance": task, "dag_run": run, "params": wishes, "exception": error}


FAILURE = AirflowFailException(
    "model flight_late, partition 2013-02-01: the file is empty\n  What to do: send it again"
)


def test_a_failure_is_told(server: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/hook")
    alerts.on_failure(spec)(context(FAILURE))
    ((path, kind, told),) = server.told
    assert (path, kind) == ("/hook", "application/json")
    assert told == {
        "model": "flight_late", "stage": "data", "task": "data", "run_id": "manual__1", "partition": "2013-02-01",
        "try_number": 3, "owner": spec.owner, "cause": str(FAILURE), "log": "http://ui/log",
    }  # fmt: skip


def test_webhooks_of_the_spec_are_told_too_and_each_once(
    server: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/a")
    both = spec.model_copy(update={"alerts": [f"{server.url}/a", f"{server.url}/broken", f"{server.url}/b"]})
    alerts.on_failure(both)(context(FAILURE))
    assert [path for path, _, _ in server.told] == ["/a", "/broken", "/b"]


def test_a_range_is_named(spec: ModelSpec) -> None:
    told = alerts.describe(spec, context(FAILURE, start="2013-01-01", end="2013-01-31"))
    assert told["partition"] == "2013-01-01..2013-01-31"


def test_values_of_the_data_are_not_told(spec: ModelSpec) -> None:
    told = alerts.describe(spec, context(ValueError("could not convert string to float: 'N12345'")))
    assert told["cause"] == "ValueError: see the task's log"


def test_nothing_configured_nothing_sent(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "post", lambda *_: pytest.fail("something was sent"))
    alerts.on_failure(spec)(context(FAILURE))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense", "http://[broken"]
)
def test_an_alert_that_cannot_be_sent_fails_nothing(
    url: str, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", url)
    alerts.on_failure(spec)(context(FAILURE))


def test_a_webhook_that_does_not_answer_is_given_up(
    server: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT", 0.3)
    assert alerts.post(f"{server.url}/slow", {}) is False


def test_half_a_context_is_enough(server: Any, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's DAG processor calls the hook for a task whose worker was killed, with less in hand."""
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/hook")
    task = SimpleNamespace(dag_id="flight_late.train", task_id="train", run_id="manual__1", try_number=1)
    alerts.on_failure(spec)({"task_instance": task})
    ((_, _, told),) = server.told
    assert (told["stage"], told["partition"], told["log"]) == ("train", None, None)
