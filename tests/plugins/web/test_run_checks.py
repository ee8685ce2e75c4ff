"""Runs and backfills that are refused when they are asked for, by the middleware around Airflow's own routes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.revoked_token import RevokedToken
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from perennial.spec.model_spec import ModelSpec
from perennial_airflow.dag_factory.factory import STAGES
from perennial_airflow.plugin import PerennialPlugin

RUNS, BACKFILLS = "/api/v2/dags/flight_late.data/dagRuns", "/api/v2/backfills"


@pytest.fixture
def browser(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a client of a server with our middleware, which answers 200 with the body that reaches its routes."""
    monkeypatch.setattr(RevokedToken, "is_revoked", lambda *_, **__: False)  # it would ask a database
    with DAG("other.data", schedule=None) as other:
        from airflow.providers.standard.operators.empty import EmptyOperator

        EmptyOperator(task_id="t")
    dags = {
        dag.dag_id: DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
        for dag in (other, *(make(spec) for make in STAGES.values()))
    }
    manager, app = init_auth_manager(), FastAPI()
    app.state.dag_bag = SimpleNamespace(get_latest_version_of_dag=lambda dag_id, session: dags.get(dag_id))

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def echo(path: str, request: Request) -> str:
        return (await request.body()).decode()

    middleware, *_ = PerennialPlugin().fastapi_root_middlewares
    app.add_middleware(middleware["middleware"], *middleware["args"], **middleware["kwargs"])

    def client(role: str | None = "OP") -> TestClient:
        headers = {}
        if role:
            token = manager.generate_jwt(SimpleAuthManagerUser(username="somebody", role=role))
            headers = {"Authorization": f"Bearer {token}"}
        return TestClient(app, headers=headers)

    return client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RUNS, {"conf": {"start": "2013-02-01", "end": None, "force": False}}),
        (RUNS, {"conf": {}, "partition_key": "2013-02-01"}),
        (RUNS, {"conf": None, "partition_key": "2013-02-01"}),
        (RUNS, {"partition_key": "2013-02-01"}),
        (
            "/api/v2/dags/flight_late.monitor/dagRuns",
            {"conf": {"as_of": "2013-02-01"}, "partition_key": "2013-02-01"},
        ),
        ("/api/v2/dags/flight_late.rollback/dagRuns", {"conf": {"reason": "bad"}}),
        ("/api/v2/dags/other.data/dagRuns", {"conf": {"anything": 1}}),
        ("/api/v2/dags/none.data/dagRuns", {"conf": {"anything": 1}}),
        (f"{RUNS}/some_run/clear", {"conf": {"anything": 1}}),
        (BACKFILLS, {"dag_id": "flight_late.data", "dag_run_conf": {"start": "", "force": True}}),
        (BACKFILLS, {"dag_id": "flight_late.data"}),
        (BACKFILLS, {"dag_id": 7, "dag_run_conf": {"x": 1}}),
        (BACKFILLS, ["no", "object"]),
    ],
)
def test_what_is_not_refused_arrives_as_it_was(browser: Any, path: str, body: Any) -> None:
    answer = browser().post(path, json=body)
    assert answer.status_code == 200 and json.loads(answer.json()) == body


def test_what_is_no_json_is_left_to_airflow(browser: Any) -> None:
    assert browser().post(RUNS, content=b"{").json() == "{"
    assert browser().get(RUNS).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "cause"),
    [
        (RUNS, {"conf": {"strat": "2013-02-01"}}, "flight_late.data has no field 'strat' (did you mean 'start'?)"),
        ("/flow/api/v2/dags/flight_late%2Edata/dagRuns", {"conf": {"x": 1}}, "flight_late.data has no field 'x'"),
        ("/api/v2/dags/flight_late.rollback/dagRuns", {"conf": {"reason": "bad", "version": 1}},
         "no field 'version' (did you mean 'to_version'?)"),
        (RUNS, {}, "neither a partition key nor a first partition"),
        (RUNS, {"conf": {"end": "2013-02-01"}}, "neither a partition key nor a first partition (end: 2013-02-01)"),
        (RUNS, {"conf": {"start": "2013-02-01"}, "partition_key": "2013-02-01"},
         "the run has partition key 2013-02-01 and also start 2013-02-01"),
        (RUNS, {"conf": {"start": "2013-02-02", "end": "2013-02-01"}}, "end 2013-02-01 is before start 2013-02-02"),
        (RUNS, {"conf": {"start": "2013-02-02", "end": "2999-02-01"}}, "last partition 2999-02-01 is in the future"),
        (RUNS, {"partition_key": "2999-02-01"}, "the partition key 2999-02-01 is in the future"),
        ("/api/v2/dags/flight_late.train/dagRuns", {"conf": {"as_of": "2013-02-01"}, "partition_key": "2013-02-02"},
         "the run has partition key 2013-02-02 and also as_of 2013-02-01"),
        (BACKFILLS, {"dag_id": "flight_late.data", "dag_run_conf": {"start": "2013-02-01"}},
         "a backfill of flight_late.data has one run for each partition"),
        (f"{BACKFILLS}/dry_run", {"dag_id": "flight_late.monitor", "dag_run_conf": {"as_of": "2013-02-01"}},
         "leave as_of empty"),
    ],
)  # fmt: skip
def test_what_could_only_fail_is_refused_with_its_reason(
    browser: Any, path: str, body: dict[str, Any], cause: str
) -> None:
    answer = browser().post(path, json=body)
    assert answer.status_code == 400
    assert cause in answer.json()["detail"] and "What to do: " in answer.json()["detail"]


@pytest.mark.parametrize("role", [None, "VIEWER"])
def test_who_may_not_start_the_dag_learns_nothing_of_it(browser: Any, role: str | None) -> None:
    """Airflow itself refuses these; the route of this test does not."""
    body = {"conf": {"strat": "2013-02-01"}}
    assert browser(role).post(RUNS, json=body).status_code == 200
    forged = browser(None)
    forged.headers["Authorization"] = "Bearer forged"
    assert forged.post(RUNS, json=body).status_code == 200
