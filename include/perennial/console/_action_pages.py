"""The pages of actions: what will happen, the confirmation, and the run that it started."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from perennial.alerting import mutes
from perennial.console import _action_plans, _csrf, _run_page, access, overview, rendering, report_files
from perennial.console._action_plans import ACTIONS, Action, Plan, Situation
from perennial.console.access import User
from perennial.console.actions import MuteSignal, Need, Operations, Pause, RefusedError
from perennial.core.errors import PerennialError
from perennial.lifecycle import ledger_anchors
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind

#: Bytes of a form; the longest reason has 500 characters.
MAX_FORM = 32_768
#: Characters of a reason.
MIN_REASON, MAX_REASON = 3, 500


@dataclass(frozen=True)
class ActionPage:
    """The page of an action.

    Attributes:
        model: name of the model.
        action: name of the action.
        title: of the action.
        plan: what will happen.
        reason: that was entered.
        refusal: why it was not done; empty before the confirmation.
    """

    model: str
    action: str
    title: str
    plan: Plan
    reason: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Offer:
    """An action that a model's page offers.

    Attributes:
        name: of the action.
        title: of its button.
        command: does the same on the command line; empty where only Airflow can do it.
    """

    name: str
    title: str
    command: str = ""


@dataclass(frozen=True)
class _Asked:
    """A request for an action, by somebody who may do it."""

    request: Request
    user: Any
    model: str
    action: Action
    operations: Operations
    allowed: set[Need]
    values: dict[str, str] = field(default_factory=dict)


def add_routes(app: FastAPI) -> None:
    """Add the pages of actions; each route refuses where the host performs none."""
    for ending in (".json", ""):  # first, since the path without an ending fits as well
        app.get(f"/models/{{model}}/actions/{{action}}{ending}")(_show)
        app.get(f"/dags/{{dag_id}}/runs/{{run_id}}{ending}")(_run)
    app.post("/models/{model}/actions/{action}")(_perform)


def offers(request: Request, model: str, user: Any) -> list[Offer]:
    """The actions that a user may do; with commands instead, where the console itself does none."""
    operations = access.host_of(request).operations
    if operations is None:
        return [Offer(a.name, a.title, a.command.format(model=model)) for a in ACTIONS.values() if a.command]
    allowed = operations.may(user, model, _all_needs())
    return [Offer(a.name, a.title) for a in ACTIONS.values() if a.needs & allowed]


def _all_needs() -> set[Need]:
    return {need for action in ACTIONS.values() for need in action.needs}


def _authorise(request: Request, model: str, action: str, user: Any, values: Mapping[str, str]) -> _Asked:
    """Refuse what is no action, and who may not do it."""
    access.authorise(request, model, user)
    operations = access.host_of(request).operations
    if action not in ACTIONS or operations is None:
        raise HTTPException(404, "The console has no such action here.")
    allowed = operations.may(user, model, _all_needs())
    if not ACTIONS[action].needs & allowed:
        raise HTTPException(403, f"You are not allowed to do this: {ACTIONS[action].title}.")
    return _Asked(request, user, model, ACTIONS[action], operations, allowed, dict(values))


async def _show(request: Request, model: str, action: str, user: User) -> Response:
    """What an action will do."""
    asked = await run_in_threadpool(_authorise, request, model, action, user, dict(request.query_params))
    return _page(asked, await _plan(asked))


async def _perform(request: Request, model: str, action: str, user: User) -> Response:
    """Do it, after everything was checked again."""
    if not _csrf.is_same_origin(request):
        raise HTTPException(403, "This form was sent by another site.")
    values = await _form(request)
    token, shown = values.pop("token", ""), values.pop("plan", "")
    reason, choice = values.pop("reason", "").strip(), values.pop("do", "")
    asked = await run_in_threadpool(_authorise, request, model, action, user, values)
    if not _csrf.is_valid(token, asked.operations.credential(request), _purpose(asked)):
        return _page(
            asked, await _plan(asked), reason, "Your login was renewed. Look again, and confirm.", 403
        )
    plan = await _plan(asked)
    if missing := plan.needs - asked.allowed:
        dags = ", ".join(sorted(f"{model}.{need.stage}" for need in missing))
        raise HTTPException(403, f"You are not allowed to do this with {dags}.")
    if not plan.operations or choice not in dict(plan.buttons):
        return _page(asked, plan, reason, plan.problem or "Nothing was done: a choice is missing.", 400)
    if shown != _digest(plan):
        refusal = "Nothing was done: what would happen has changed since this page was shown. Look again."
        return _page(asked, plan, reason, refusal, 409)
    if not MIN_REASON <= len(reason) <= MAX_REASON:
        refusal = f"Say why, in {MIN_REASON} to {MAX_REASON} characters, not only spaces."
        return _page(asked, plan, reason, refusal, 422)
    return await _do(asked, plan, reason, choice)


async def _do(asked: _Asked, plan: Plan, reason: str, choice: str) -> Response:
    """Perform the operations, and lead to what they began."""
    path = f"/models/{asked.model}"
    stages = [operation.stage for operation in plan.operations if isinstance(operation, Pause)]
    try:
        for operation in plan.operations:
            if isinstance(operation, MuteSignal):
                path = await run_in_threadpool(_mute, asked, operation, reason)
            else:
                path = await asked.operations.perform(
                    asked.request, asked.model, operation, reason=reason, choice=choice
                )
        if stages:
            await run_in_threadpool(_record_pause, asked, stages, reason, choice)
    except RefusedError as error:
        return _page(asked, plan, reason, error.detail, error.status_code)
    except PerennialError as error:
        return _page(asked, plan, reason, f"{error.cause}. {error.remedy}", 503)
    return RedirectResponse(f"{rendering.base_path(asked.request)}{path}", 303, rendering.HEADERS)


def _mute(asked: _Asked, operation: MuteSignal, reason: str) -> str:
    actor = asked.operations.name_of(asked.user)
    with ledger_anchors.anchored(asked.model):
        mutes.mute_by_hand(overview.load_spec(asked.model), operation.signal, operation.until, reason, actor)
    return f"/models/{asked.model}#incidents"


def _record_pause(asked: _Asked, stages: list[str], reason: str, choice: str) -> None:
    """Say in the ledger who paused or resumed the DAGs, and why: Airflow has no place for the reason."""
    with ledger_anchors.anchored(asked.model):
        ledger.append(
            asked.model,
            kind=LedgerKind.SCHEDULES,
            decision=Decision.PAUSED if choice == "pause" else Decision.RESUMED,
            reason=reason,
            actor=asked.operations.name_of(asked.user),
            evidence={"stages": stages},
        )


async def _plan(asked: _Asked) -> Plan:
    """The plan for what the user chose."""
    questions = (
        await asked.operations.questions(asked.request, asked.model) if asked.action.name == "answer" else []
    )
    paused = await asked.operations.paused(asked.request, asked.model)

    def make() -> Plan:
        situation = Situation(overview.load_spec(asked.model), asked.allowed, asked.values, questions, paused)
        return _action_plans.plan(asked.action.name, situation)

    return await run_in_threadpool(make)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise HTTPException(413, "The form is too long.")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


def _page(asked: _Asked, plan: Plan, reason: str = "", refusal: str = "", status: int = 200) -> Response:
    content = ActionPage(asked.model, asked.action.name, asked.action.title, plan, reason, refusal)
    may = plan.needs <= asked.allowed
    return access.page(
        asked.request, "action.html", content, status=status, may=may, digest=_digest(plan),
        token=_csrf.token(asked.operations.credential(asked.request), _purpose(asked)),
        conf=lambda operation: json.dumps(operation.conf, ensure_ascii=False),
    )  # fmt: skip


def _purpose(asked: _Asked) -> str:
    return f"{asked.model}\n{asked.action.name}"


def _digest(plan: Plan) -> str:
    """Identifies what was shown, so that nothing else is done."""
    shown = [[type(o).__name__, asdict(o)] for o in (*plan.operations, *plan.then)]
    return hashlib.sha256(json.dumps(shown, default=str, sort_keys=True).encode()).hexdigest()


async def _run(request: Request, dag_id: str, run_id: str, user: User) -> Response:
    """A run: who started it and why, what it did, and its reports."""
    model, _, stage = dag_id.partition(".")
    await run_in_threadpool(access.authorise, request, model, user)
    operations = access.host_of(request).operations
    details = await operations.run(request, dag_id, run_id) if operations else None
    if details is None or not stage:
        raise HTTPException(404, f"There is no run {run_id} of {dag_id}.")
    content = await run_in_threadpool(_run_page.compose, model, stage, details)
    if content is None:
        raise HTTPException(404, f"{dag_id} is not a DAG of one of Perennial's models.")
    return access.page(request, "run.html", content, titles=report_files.TITLES, quote=quote)
