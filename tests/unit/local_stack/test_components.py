"""The state of a component in words: what it does, why it was restarted, what to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from perennial.local_stack import components, processes
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import Stack
from support.servers import free_port

STEADY = {"status": "healthy"}


@pytest.fixture
def config(tmp_path: Path) -> Stack:
    (tmp_path / "run").mkdir()
    return Stack(tmp_path, free_port(), free_port(), (free_port(), free_port()), free_port())


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()


def airflow(health: dict[str, Any] | None) -> Airflow:
    """A client of an API server with this health; None if the server does not answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        if health is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=health)

    client = Airflow("http://airflow", "admin", "secret")
    client._http = httpx.Client(base_url="http://airflow", transport=httpx.MockTransport(answer))
    return client


def health(process: psutil.Process, seconds: float) -> dict[str, Any]:
    """A health answer whose scheduler had its latest heartbeat so many seconds after the process began."""
    began = datetime.fromtimestamp(process.create_time(), UTC)
    beat = (began + timedelta(seconds=seconds)).isoformat()
    return {"metadatabase": STEADY, "scheduler": STEADY | {"latest_scheduler_heartbeat": beat}}


def record(config: Stack, name: str, process: psutil.Process | None = None, **notes: Any) -> None:
    created = process.create_time() if process else 1.0
    identity = {"pid": process.pid if process else 2**22 - 1, "created": created}
    processes.write_record(name, config.state, identity | notes)


def state(config: Stack, client: Airflow, name: str = "scheduler") -> components.ComponentState:
    return next(item for item in components.states(config, client) if item.name == name)


def test_the_heartbeat_of_a_killed_predecessor_does_not_count(config: Stack, process: psutil.Process) -> None:
    record(config, "scheduler", process)
    assert state(config, airflow(health(process, 5))).works
    starting = state(config, airflow(health(process, -5)))
    assert not starting.works and "has no heartbeat yet" in starting.text


def test_a_component_that_hangs_is_told_from_one_that_starts(
    config: Stack, process: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(config, "scheduler", process)
    lost = health(process, 5)
    lost["scheduler"]["status"] = "unhealthy"
    assert state(config, airflow(lost)).text.startswith("starting for ")
    monkeypatch.setattr(components, "START_TIMEOUT", 0)
    hanging = state(config, airflow(lost))
    assert not hanging.works and hanging.text.startswith("has had no heartbeat since ")
    assert f"kill -9 {process.pid}" in hanging.remedy and "scheduler.log" in hanging.remedy


def test_one_missing_server_is_not_blamed_on_the_others(config: Stack, process: psutil.Process) -> None:
    record(config, "scheduler", process)
    record(config, components.SUPERVISOR, process)
    items = {item.name: item for item in components.states(config, airflow(None))}
    assert items["scheduler"].works and items["scheduler"].text == components.UNKNOWN
    assert not items[components.API_SERVER].works


def test_the_wait_for_a_restart_is_told_with_count_time_and_reason(
    config: Stack, process: psutil.Process
) -> None:
    ended = time.mktime((2026, 5, 4, 3, 2, 1, 0, 0, -1))
    notes = {"restarts": 4, "ended": ended, "reason": "was killed by SIGKILL", "retry_at": time.time() + 60}
    record(config, "scheduler", None, **notes)
    record(config, components.SUPERVISOR, process)
    waiting = state(config, airflow(None))
    assert not waiting.works
    assert waiting.text.startswith(
        "does not run; it was killed by SIGKILL at 2026-05-04 03:02:01; restart 4 in "
    )
    assert waiting.remedy == (
        f"read {config.logs}/scheduler.log; if nobody killed it, the machine ran out of memory: free some"
    )
    # nothing is started again once the supervisor is gone
    (config.state / "supervisor.json").unlink()
    assert state(config, airflow(None)).remedy == "make start starts it"


def test_a_migration_that_runs_or_fails_is_what_is_waited_for(config: Stack, process: psutil.Process) -> None:
    assert components.DATABASE not in {item.name for item in components.states(config, airflow(None))}
    record(config, components.DATABASE, process)
    assert state(config, airflow(None), components.DATABASE).text == "runs"
    record(config, components.SUPERVISOR, process)
    notes = {"restarts": 1, "ended": 1.0, "reason": "ended with exit status 1", "retry_at": time.time() + 60}
    record(config, components.DATABASE, None, **notes)
    failed = state(config, airflow(None), components.DATABASE)
    assert not failed.works and "it ended with exit status 1 at " in failed.text
