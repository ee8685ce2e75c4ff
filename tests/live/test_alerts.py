"""What people are told, by a real Airflow: of data that does not come, and that it came."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from perennial import incidents
from perennial.spec import ModelSpec
from support import toys
from support.live import Live

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_late"


class Hook(BaseHTTPRequestHandler):
    """Notes what it is told."""

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Hook) as found:
        found.told = []
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def notices(server: Any) -> list[dict[str, Any]]:
    """What was told of incidents; the rest are digests."""
    return [t for t in server.told if "signal" in t]


def await_(what: Callable[[], bool], patience: float, why: Callable[[], object]) -> None:
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(1)


def test_data_that_does_not_come_is_told_while_it_is_waited_for(live: Live, server: Any) -> None:
    """The nightly run of a new model starts at once; it may take a minute; the feed is silent at first."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    channels = [
        {"name": "hook", "kind": "webhook", "url": f"http://127.0.0.1:{server.server_port}/", "digest": True}
    ]
    spec: ModelSpec = toys.model(
        live.spec.folder.parent, NAME, data={"arrival": "wait"}, alerts={"channels": channels},
        limits={"data": {"retries": 0, "deadline_minutes": 1}}, schedule={"start": yesterday, "data": "0 0 * * *"},
    )  # fmt: skip
    dag = f"{NAME}.data"
    await_(lambda: dag in live.airflow.paused(), 150, live.airflow.import_errors)
    await_(lambda: bool(notices(server)), 240, lambda: live.airflow.runs(dag))
    (told,) = notices(server)
    assert told["title"] == f"{NAME}: deadline:data is bad, partition {yesterday}"
    assert "is not published 1 minutes after its run was queued; the run is running" in told["reason"]
    assert told["log"].endswith(f"/dags/{dag}/runs/{told['run_id']}")
    toys.land(spec, yesterday, 1)
    await_(lambda: len(notices(server)) > 1, 200, lambda: live.airflow.runs(dag))
    assert notices(server)[1]["title"] == f"{NAME}: deadline:data is well again, partition {yesterday}"
    assert incidents.read(NAME).open == []
    live.airflow.trigger("perennial.digest")
    ended = f"Ended\n- {NAME}: deadline:data, bad from {yesterday} to {yesterday}"
    await_(lambda: any(ended in t["text"] for t in server.told), 120, lambda: server.told)
