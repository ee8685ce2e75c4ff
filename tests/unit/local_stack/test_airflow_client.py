"""The client of Airflow's REST API: what it does when the server is busy, refuses, or is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from perennial.core.errors import PerennialError
from perennial.local_stack import airflow_client
from perennial.local_stack.airflow_client import Airflow

Answers = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], Airflow]:
    """Makes a client whose server is a function, and which does not wait between attempts."""
    monkeypatch.setattr(airflow_client.time, "sleep", lambda seconds: None)

    def make(answers: Answers) -> Airflow:
        made = Airflow("http://airflow", "admin", "secret")
        made._http = httpx.Client(base_url="http://airflow", transport=httpx.MockTransport(answers))
        return made

    return make


def test_it_logs_in_when_asked_and_keeps_the_token(client: Callable[[Answers], Airflow]) -> None:
    seen: list[str] = []

    def answers(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        if request.url.path == "/auth/token":
            assert json.loads(request.content) == {"username": "admin", "password": "secret"}
            return httpx.Response(201, json={"access_token": "t"})
        if request.headers.get("Authorization") != "Bearer t":
            return httpx.Response(401)
        return httpx.Response(
            200, json={"dags": [{"dag_id": "a.data", "is_paused": True}], "total_entries": 1}
        )

    airflow = client(answers)
    assert airflow.paused() == airflow.paused() == {"a.data": True}
    assert seen == ["/api/v2/dags", "/auth/token", "/api/v2/dags", "/api/v2/dags"]


def test_all_pages_are_read(client: Callable[[Answers], Airflow]) -> None:
    known = [f"m{i:03}.data" for i in range(250)]

    def answers(request: httpx.Request) -> httpx.Response:
        start = int(request.url.params["offset"])
        dags = [
            {"dag_id": name, "is_paused": False} for name in known[start : start + 100]
        ]  # as Airflow caps it
        return httpx.Response(200, json={"dags": dags, "total_entries": len(known)})

    assert list(client(answers).paused()) == known


def test_a_wrong_password_is_told(client: Callable[[Answers], Airflow]) -> None:
    airflow = client(lambda request: httpx.Response(401, json={"detail": "no"}))
    with pytest.raises(PerennialError, match="does not accept the user admin"):
        airflow.paused()


def test_a_run_is_triggered_once_however_often_the_server_stumbles(
    client: Callable[[Answers], Airflow],
) -> None:
    runs: list[dict[str, Any]] = []
    stumbles = iter([True, False, True, False])

    def answers(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if body["dag_run_id"] in [run["dag_run_id"] for run in runs]:
            return httpx.Response(409, json={"detail": "exists"})
        if next(stumbles):  # before the run is there
            return httpx.Response(500, json={"detail": "database is locked"})
        runs.append(body)
        return httpx.Response(500, json={"detail": "database is locked"})  # after it is

    run = client(answers).trigger("a.data", key="2024-01-05")
    assert [r["dag_run_id"] for r in runs] == [run]
    assert runs[0]["partition_key"] == "2024-01-05" and runs[0]["logical_date"] is None


def test_a_run_that_exists_at_the_first_attempt_is_an_error(client: Callable[[Answers], Airflow]) -> None:
    with pytest.raises(PerennialError, match="409"):
        client(lambda request: httpx.Response(409, json={"detail": "exists"})).trigger(
            "a.data", key="2024-01-05"
        )


def test_a_refusal_is_passed_on_with_its_reason(client: Callable[[Answers], Airflow]) -> None:
    with pytest.raises(PerennialError, match="not a valid partition key"):
        client(lambda request: httpx.Response(400, json={"detail": "not a valid partition key"})).trigger(
            "a.data"
        )


def test_a_server_that_is_restarted_is_waited_for(client: Callable[[Answers], Airflow]) -> None:
    calls: list[str] = []

    def answers(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        if len(calls) < 40:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"dags": [], "total_entries": 0})

    assert client(answers).paused() == {}
    assert len(calls) == 40


def test_a_server_that_is_gone_is_told_with_the_way_out(
    client: Callable[[Answers], Airflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow_client, "RESTART_SECONDS", 0.2)

    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(PerennialError, match="make status"):
        client(gone).paused()
    assert client(gone).health() == {}


def test_health_survives_an_answer_that_is_no_json(client: Callable[[Answers], Airflow]) -> None:
    assert client(lambda request: httpx.Response(200, text="<html>")).health() == {}


def test_why_a_run_failed_is_read_from_its_log(client: Callable[[Answers], Airflow]) -> None:
    log = [
        {"event": "starting"},
        {
            "event": "Task failed",
            "error_detail": [
                {"exc_type": "DataError", "exc_value": "model a, partition 2024-01-05: file is missing"}
            ],
        },
    ]

    def answers(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/taskInstances"):
            tasks = [{"task_id": "data", "state": "failed", "try_number": 2}]
            return httpx.Response(200, json={"task_instances": tasks})
        assert request.url.path.endswith("/taskInstances/data/logs/2")
        return httpx.Response(200, json={"content": log})

    told = client(answers).failure_reason("a.data", "r1")
    assert told == "task data: DataError: model a, partition 2024-01-05: file is missing"
    assert client(answers).retry_reason("a.data", "r1") is None
