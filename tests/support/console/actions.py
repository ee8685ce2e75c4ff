"""Actions of the console on one model, as a browser does them: look, then confirm what was shown."""

from __future__ import annotations

import re
from typing import Any

import httpx
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.orm import Session

from support.console.world import KEYS

MODEL = "drifted"
ACTIONS = f"/perennial/models/{MODEL}/actions"
#: A complete choice for each action that can be shown without a task that waits.
CHOICES = {
    "run": {"stage": "score", "start": KEYS[2], "end": KEYS[3]},
    "retrain": {},
    "rollback": {},
    "promote": {"version": "1"},
    "mute": {},
    "pause": {},
}


def fields(page: str) -> dict[str, str]:
    """The hidden fields of the confirmation."""
    form = page[page.index('method="post"') :]
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form))


def confirm(
    client: httpx.Client, action: str, choices: dict[str, str], do: str = "start", **changes: str
) -> httpx.Response:
    """Look at an action, and confirm it."""
    shown = client.get(f"{ACTIONS}/{action}", params=choices)
    assert shown.status_code == 200, shown.text
    return client.post(
        f"{ACTIONS}/{action}", data=fields(shown.text) | {"reason": "a test", "do": do} | changes
    )


def runs(client: httpx.Client, stage: str) -> list[dict[str, Any]]:
    """The runs of a stage, the latest first."""
    answer = client.get(f"/api/v2/dags/{MODEL}.{stage}/dagRuns", params={"order_by": "-id"})
    return list(answer.json()["dag_runs"])


def ask_for_approval(client: httpx.Client, session: Session, run_id: str) -> None:
    """Start a run of ``monitor``, and leave its approval as the scheduler does: waiting for an answer."""
    body = {"logical_date": None, "partition_key": KEYS[-1], "dag_run_id": run_id}
    assert client.post(f"/api/v2/dags/{MODEL}.monitor/dagRuns", json=body).status_code == 200
    task = session.scalars(select(TaskInstance).filter_by(run_id=run_id, task_id="approve_retraining")).one()
    task.state = TaskInstanceState.AWAITING_INPUT
    question = {
        "subject": f"Retrain {MODEL}?",
        "body": "As of **now**: it is old",
        "options": ["Approve", "Reject"],
    }
    session.add(HITLDetail(ti_id=task.id, defaults=["Reject"], multiple=False, params={}, **question))


def answer_to(client: httpx.Client, run_id: str) -> dict[str, Any]:
    """What Airflow has of the answer to the approval of a run."""
    path = f"/api/v2/dags/{MODEL}.monitor/dagRuns/{run_id}/taskInstances/approve_retraining/-1/hitlDetails"
    return dict(client.get(path).json())
