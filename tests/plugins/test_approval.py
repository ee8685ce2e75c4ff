"""A person's yes: asked only for what was proposed, and written down, whoever answers or does not."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from perennial import ledger, manifest
from perennial.decide import decide
from perennial.manifest import Manifest
from perennial.spec import ModelSpec
from perennial_airflow.approval import approval
from perennial_airflow.docs import page
from perennial_airflow.stages.monitor import ask_retraining, monitor_dag

DAY = "2013-02-01"


@pytest.fixture
def asking(spec: ModelSpec) -> ModelSpec:
    """A model of which a person decides."""
    policy = spec.retraining.model_copy(update={"mode": "ask", "answer_hours": 5})
    return spec.model_copy(update={"retraining": policy})


def context(decision: dict[str, Any], task: Any = None) -> Any:
    ti = SimpleNamespace(xcom_pull=lambda task_ids: decision)
    run = SimpleNamespace(partition_key=DAY, run_type="manual", triggering_user_name=None)
    return {"ti": ti, "dag_run": run, "params": {}, "task": task, "run_id": "r"}


def propose(spec: ModelSpec) -> dict[str, Any]:
    found = {"verdict": "drifted", "reason": "70% of the weight", "model_version": "1"}
    manifest.write(Manifest(spec.name, "monitor", DAY, {}, found), time.monotonic())
    return decide(spec, as_of=DAY, actor="scheduler", backfill=False)


def respond(task: Any, decision: dict[str, Any], option: str, user: dict[str, str] | None) -> None:
    event = {
        "chosen_options": [option], "params_input": {}, "responded_at": datetime.now(UTC), "responded_by_user": user,
    }  # fmt: skip
    task.execute_complete(context(decision, task), event)


def test_the_question_stands_between_the_decision_and_the_event(asking: ModelSpec) -> None:
    dag = monitor_dag(asking)
    asked = dag.get_task("approve_retraining")
    assert asked.upstream_task_ids == {"decide"} and asked.downstream_task_ids == {"ask_retraining"}
    assert asked.response_timeout.total_seconds() == 5 * 3600 and asked.defaults == ["Reject"]


def test_a_shadow_is_concluded_after_each_verdict(spec: ModelSpec) -> None:
    policy = spec.retraining.model_copy(update={"shadow_nights": 3})
    dag = monitor_dag(spec.model_copy(update={"retraining": policy}))
    assert dag.get_task("conclude_shadow").upstream_task_ids == {"monitor"}
    assert [asset.name for asset in dag.get_task("conclude_shadow").outlets] == [f"model/{spec.name}"]
    assert "conclude_shadow" not in monitor_dag(spec).task_ids


def test_pages_tell_of_a_split(spec: ModelSpec) -> None:
    policy = spec.retraining.model_copy(update={"shadow_nights": 14, "split": 0.2})
    split = spec.model_copy(update={"retraining": policy})
    assert "it predicts 20% of the rows, chosen by the hash of their\nkey" in page(split, "score")
    assert "once what came of its rows is sure, after 14 nights at the latest." in page(split, "monitor")
    assert "on trial" not in page(spec, "score") + page(spec, "monitor")


def test_nobody_is_asked_about_a_retraining_that_was_not_proposed(asking: ModelSpec) -> None:
    with pytest.raises(AirflowSkipException, match="calm"):
        approval(asking).execute(context({"retrain": False, "proposed": False, "reason": "calm"}))


def test_a_yes_is_recorded_with_its_name(asking: ModelSpec) -> None:
    respond(approval(asking), propose(asking), "Approve", {"id": "1", "name": "ada"})
    assert [(r["decision"], r["actor"]) for r in ledger.records(asking.name)][-1] == ("requested", "ada")


def test_no_answer_is_a_no(asking: ModelSpec) -> None:
    respond(approval(asking), propose(asking), "Reject", None)
    last = ledger.records(asking.name)[-1]
    assert (last["decision"], last["actor"]) == ("declined", "nobody, in time")


def test_without_a_proposal_no_event_is_sent(asking: ModelSpec) -> None:
    with pytest.raises(AirflowSkipException):
        ask_retraining(asking, context({"retrain": False, "proposed": False, "reason": "calm"}))
