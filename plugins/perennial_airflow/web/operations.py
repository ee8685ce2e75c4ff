"""What the console's actions do in Airflow: runs, backfills, answers, pauses, each by Airflow's own REST API."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import quote

import httpx
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param

from perennial.console.actions import (
    REASON,
    STAGES,
    Answer,
    Backfill,
    Need,
    Operation,
    Pause,
    Question,
    RefusedError,
    Run,
    RunDetails,
)
from perennial_airflow.web import api_access
from perennial_airflow.web.links import ui_path

#: What each permission of the console is for Airflow's auth manager.
_RIGHTS: dict[str, tuple[Any, DagAccessEntity | None]] = {
    "run": ("POST", DagAccessEntity.RUN),
    "edit": ("PUT", None),
    "answer": ("PUT", DagAccessEntity.HITL_DETAIL),
}
_TIMES = {"queued_at": "queued_at", "started_at": "start_date", "ended_at": "end_date"}
#: Active runs of a backfill.
MAX_ACTIVE_RUNS = 4


class AirflowOperations:
    """Airflow's REST API, for the user of each request."""

    def may(self, user: Any, model: str, needs: Collection[Need]) -> set[Need]:
        """The permissions of the user among those that are needed."""
        manager = get_auth_manager()

        def is_allowed(need: Need) -> bool:
            method, entity = _RIGHTS[need.right]
            details = DagDetails(id=f"{model}.{need.stage}")
            return manager.is_authorized_dag(method=method, access_entity=entity, details=details, user=user)

        return {need for need in needs if is_allowed(need)}

    def name_of(self, user: Any) -> str:
        """Name of a user, as Airflow names them in runs."""
        return str(user.get_name())

    def credential(self, request: Request) -> str:
        """The user's session: its token, from where Airflow takes it."""
        scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
        return (
            token if scheme.lower() == "bearer" and token else request.cookies.get(COOKIE_NAME_JWT_TOKEN, "")
        )

    async def questions(self, request: Request, model: str) -> list[Question]:
        """The approvals that wait, the latest partition first."""
        dag_id = f"{model}.monitor"
        content = await _json(
            request, "GET", f"/dags/{dag_id}/dagRuns/~/hitlDetails",
            params={"state": "awaiting_input", "response_received": "false", "limit": 100},
        )  # fmt: skip
        questions = []
        for item in content["hitl_details"]:
            task = item["task_instance"]
            partition = str(task.get("partition_key") or "")
            questions.append(
                Question(
                    "monitor", str(task["dag_run_id"]), str(task["task_id"]), str(item["subject"] or ""),
                    str(item["body"] or ""), list(item["options"]), partition, int(task["map_index"]),
                )
            )  # fmt: skip
        return sorted(questions, key=lambda question: question.partition, reverse=True)

    async def paused(self, request: Request, model: str) -> dict[str, bool]:
        """Whether the DAG of each stage is paused, of those that Airflow knows."""
        answers = {stage: await api_access.call(request, "GET", f"/dags/{model}.{stage}") for stage in STAGES}
        return {
            stage: bool(answer.json()["is_paused"]) for stage, answer in answers.items() if answer.is_success
        }

    async def run(self, request: Request, dag_id: str, run_id: str) -> RunDetails | None:
        """A run, with the permissions of the user."""
        answer = await api_access.call(
            request, "GET", f"/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"
        )
        if answer.status_code == 404:
            return None
        content = _checked(answer)
        return RunDetails(
            dag_id=dag_id, run_id=run_id, state=str(content["state"]),
            partition=str(content.get("partition_key") or ""), conf=dict(content["conf"] or {}),
            note=str(content.get("note") or ""), user=str(content.get("triggering_user_name") or ""),
            url=ui_path(f"/dags/{quote(dag_id)}/runs/{quote(run_id)}"),
            **{name: str(content.get(key) or "") for name, key in _TIMES.items()},
        )  # fmt: skip

    async def perform(
        self, request: Request, model: str, operation: Operation, *, reason: str, choice: str
    ) -> str:
        """Do something in the name of the user; returns the path of the console's page that shows it."""
        match operation:
            case Run():
                return await _start(request, f"{model}.{operation.stage}", operation, reason)
            case Backfill():
                await _backfill(request, f"{model}.{operation.stage}", operation, reason)
            case Answer(question):
                return await _answer(request, f"{model}.{question.stage}", question, choice, reason)
            case Pause():
                await _json(
                    request,
                    "PATCH",
                    f"/dags/{model}.{operation.stage}",
                    json={"is_paused": choice == "pause"},
                )
            case _:
                raise TypeError(f"not an operation of Airflow: {operation}")
        return f"/models/{model}"


async def _start(request: Request, dag_id: str, run: Run, reason: str) -> str:
    """Trigger one run."""
    body: dict[str, Any] = {"logical_date": None, "conf": _conf(run.conf, reason), "note": reason}
    if run.partition:
        body["partition_key"] = run.partition
    content = await _json(request, "POST", f"/dags/{dag_id}/dagRuns", json=body)
    return f"/dags/{dag_id}/runs/{quote(content['dag_run_id'], safe='')}"


async def _backfill(request: Request, dag_id: str, backfill: Backfill, reason: str) -> None:
    """Create a backfill, which also does partitions again whose runs ended."""
    body = {
        "dag_id": dag_id,
        "from_date": backfill.start.isoformat(),
        "to_date": backfill.end.isoformat(),
        "reprocess_behavior": "completed",
        "max_active_runs": MAX_ACTIVE_RUNS,
        "dag_run_conf": _conf(backfill.conf, reason),
    }
    await _json(request, "POST", "/backfills", json=body)


async def _answer(request: Request, dag_id: str, question: Question, choice: str, reason: str) -> str:
    """Answer a task that waits for a person."""
    run = quote(question.run_id, safe="")
    path = f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{question.task_id}/{question.map_index}/hitlDetails"
    await _json(request, "PATCH", path, json={"chosen_options": [choice], "params_input": {"reason": reason}})
    return f"/dags/{dag_id}/runs/{run}"


def _conf(conf: dict[str, Any], reason: str) -> dict[str, Any]:
    """The configuration with the reason in its place."""
    return {name: reason if value == REASON else value for name, value in conf.items()}


async def _json(request: Request, method: str, path: str, **arguments: Any) -> dict[str, Any]:
    """The answer of the REST API.

    Raises:
        RefusedError: it refuses.
    """
    return _checked(await api_access.call(request, method, path, **arguments))


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_success:
        return dict(answer.json())
    try:
        detail = answer.json().get("detail")
    except (ValueError, AttributeError):
        detail = answer.text
    raise RefusedError(answer.status_code, f"Airflow refuses it: {detail}"[:1000])


__all__ = ["AirflowOperations"]
