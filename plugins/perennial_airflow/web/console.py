"""The console inside Airflow: its users, their permissions, its runs, and links to its pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.api_fastapi.core_api.security import get_user
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from fastapi import FastAPI
from sqlalchemy import select

from perennial.console import app as console_app
from perennial.console.actions import STAGES
from perennial.console.host import Link, RunningWork
from perennial_airflow.web.links import PREFIX as PREFIX
from perennial_airflow.web.links import ui_path, ui_url
from perennial_airflow.web.operations import AirflowOperations


class AirflowHost:
    """Airflow's API server, which the console is a part of."""

    name = ""
    user = staticmethod(get_user)
    operations = AirflowOperations()

    def visible(self, user: Any, models: Collection[str]) -> set[str]:
        """The models whose DAG ``monitor`` the user may see."""
        manager = get_auth_manager()
        return {
            model
            for model in models
            if manager.is_authorized_dag(method="GET", details=DagDetails(id=f"{model}.monitor"), user=user)
        }

    def running(self, models: Collection[str]) -> Mapping[str, list[RunningWork]]:
        """The queued and running runs of the models' DAGs."""
        ids = {f"{model}.{stage}" for model in models for stage in STAGES}
        active = (DagRunState.QUEUED, DagRunState.RUNNING)
        columns = (DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.partition_key)
        with create_session() as session:
            rows = session.execute(select(*columns).where(DagRun.state.in_(active))).all()
        work: dict[str, list[RunningWork]] = defaultdict(list)
        for dag_id, run_id, state, partition in rows:
            if dag_id in ids:
                model, _, stage = dag_id.partition(".")
                url = ui_path(f"/dags/{dag_id}/runs/{quote(run_id)}")
                work[model].append(RunningWork(stage, str(state), partition or "", url))
        return work

    def links(self, model: str) -> list[Link]:
        """The DAGs of a model, and its assets."""
        dags = [Link(f"DAG {stage}", ui_path(f"/dags/{model}.{stage}")) for stage in STAGES]
        return [*dags, Link("Assets", ui_path(f"/assets?{urlencode({'name_pattern': f'/{model}'})}"))]

    def login_url(self, path: str) -> str:
        """Airflow's login, whichever auth manager it has."""
        return ui_path(f"/api/v2/auth/login?{urlencode({'next': ui_url(f'{PREFIX}{path}')})}")


def create_app() -> FastAPI:
    """The application that is mounted under `PREFIX`."""
    return console_app.create_app(AirflowHost())
