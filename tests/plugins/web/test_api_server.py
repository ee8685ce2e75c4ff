"""The console as a part of Airflow's whole API server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType
from fastapi.testclient import TestClient

KEY = "2013-04-02"


@pytest.fixture
def running(api_server: Any, server_lake: None) -> Iterator[str]:
    """The model that a run of data works for."""
    run = DagRun(dag_id="well.data", run_id="manual__1", run_type=DagRunType.MANUAL, state=DagRunState.RUNNING,
                 partition_key=KEY, run_after=datetime.now(UTC))  # fmt: skip
    with create_session() as session:
        session.add(run)
    yield "well"
    with create_session() as session:
        session.delete(session.merge(run))


def ask(server: Any, path: str, role: str = "", **headers: str) -> Any:
    """The answer to a browser without a cookie; with ``role``, to a client with a token."""
    if role:
        user = SimpleAuthManagerUser(username="somebody", role=role)
        headers["Authorization"] = f"Bearer {get_auth_manager().generate_jwt(user)}"
    return TestClient(server).get(path, headers=headers, follow_redirects=False)


def test_the_api_server_shows_the_console_with_what_runs_and_leads_to_the_login(
    api_server: Any, running: str
) -> None:
    page = f"/perennial/models/{running}"
    login = ask(api_server, page, Accept="text/html").headers["location"]
    form = ask(api_server, login).headers["location"]
    assert login == f"/api/v2/auth/login?next=%2Fperennial%2Fmodels%2F{running}"
    assert form.endswith(f"?next=%2Fperennial%2Fmodels%2F{running}")
    (run,) = ask(api_server, "/perennial/models.json", "VIEWER").json()["running"][running]
    assert (run["stage"], run["state"], run["partition"]) == ("data", "running", KEY)
    assert f"running {KEY}" in ask(api_server, page, "VIEWER").text
    plugins = ask(api_server, "/api/v2/plugins", "ADMIN").json()["plugins"]
    views = [[v["name"], v["href"]] for p in plugins if p["name"] == "perennial" for v in p["external_views"]]
    of_run = "/perennial/dags/{DAG_ID}/runs/{RUN_ID}"
    assert views == [
        ["Models", "/perennial/"], ["Model", "/perennial/dags/{DAG_ID}"], ["Report", of_run], ["Report", of_run],
    ]  # fmt: skip
