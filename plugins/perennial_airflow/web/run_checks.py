"""Refuses runs and backfills of our DAGs that could only fail, when the UI or the REST API is asked for them.

Airflow checks each field of a trigger form, but ignores what the form does not have, and has no check of a whole
configuration, or of how it fits the partition key. The command line does not pass here: its runs end at their first
task, by `run_request.check_conf`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user
from airflow.utils.session import create_session
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security.utils import get_authorization_scheme_param

from perennial_airflow import run_request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TRIGGER = re.compile(r"/api/v2/dags/([^/]+)/dagRuns$")
_BACKFILL = re.compile(r"/api/v2/backfills(/dry_run)?$")
#: Modules of the operators by which our DAGs are told from others.
_OUR_MODULES = "perennial_airflow."


class RunChecks:
    """ASGI middleware of the API server.

    Args:
        app: what handles the requests that are not refused.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 with the problem, or pass the request on unchanged."""
        path = str(scope.get("path", ""))
        is_post = scope["type"] == "http" and scope.get("method") == "POST"
        trigger, backfill = _TRIGGER.search(path), _BACKFILL.search(path)
        if not is_post or not (trigger or backfill):
            await self.app(scope, receive, send)
            return
        body, messages = await _read(receive)
        requested = _requested(body, unquote(trigger[1]) if trigger else None)
        problem = ""
        if requested and await _may_trigger(Request(scope), requested.dag_id):
            problem = await asyncio.to_thread(
                _problem, scope["app"].state.dag_bag, requested, backfill=bool(backfill)
            )
        if problem:
            await JSONResponse({"detail": problem}, status_code=400)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)


async def _read(receive: Receive) -> tuple[bytes, list[Message]]:
    """The body of a request, and its messages, for those who read it next."""
    messages: list[Message] = []
    while True:
        messages.append(message := await receive())
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(m.get("body", b"") for m in messages), messages


class _Requested(NamedTuple):
    """A run, or the runs of a backfill, that somebody asks for."""

    dag_id: str
    conf: Mapping[str, Any]
    key: str | None


def _requested(body: bytes, dag_id: str | None) -> _Requested | None:
    """What a request is for; None if it is for something else, which is Airflow's to refuse."""
    try:
        content = json.loads(body)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    conf, key = content.get("dag_run_conf" if dag_id is None else "conf"), content.get("partition_key")
    dag_id, conf = dag_id or content.get("dag_id"), {} if conf is None else conf
    if isinstance(dag_id, str) and isinstance(conf, dict) and isinstance(key, str | None):
        return _Requested(dag_id, conf, key or None)
    return None


async def _may_trigger(request: Request, dag_id: str) -> bool:
    """Whether the request comes from a user who may start the DAG; nobody else learns its fields."""
    from fastapi.security import HTTPAuthorizationCredentials

    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    bearer = HTTPAuthorizationCredentials(scheme=scheme, credentials=token) if token else None
    try:
        user = await get_user(request, None, bearer)
    except HTTPException:
        return False
    details = DagDetails(id=dag_id)
    return await asyncio.to_thread(
        lambda: get_auth_manager().is_authorized_dag(
            method="POST", access_entity=DagAccessEntity.RUN, details=details, user=user
        )
    )


def _problem(dag_bag: Any, requested: _Requested, *, backfill: bool) -> str:
    """Why one of our DAGs must not run as requested; empty if it may, and for other DAGs."""
    with create_session() as session:
        dag = dag_bag.get_latest_version_of_dag(requested.dag_id, session=session)
    if dag is None or not any(_module(task).startswith(_OUR_MODULES) for task in dag.tasks):
        return ""
    problem = run_request.conf_problem(
        requested.dag_id, requested.conf, list(dag.params), backfill=backfill, key=requested.key
    )
    return str(problem) if problem else ""


def _module(task: Any) -> str:
    """Module of the operator of a task as Airflow stores it."""
    return str(getattr(task, "task_module", None) or getattr(task, "_task_module", ""))


__all__ = ["RunChecks"]
