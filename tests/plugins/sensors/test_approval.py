"""A person's yes: asked only for what was proposed, and written down, whoever answers or does not."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped, ParamValidationError

from perennial.core.durations import Duration
from perennial.lifecycle import promotion
from perennial.lifecycle.promotion_approval import Question
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import ApprovalSpec
from perennial.status import record, refresh
from perennial.steps.decide import decide
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest
from perennial_airflow.dag_factory.dag_docs import page
from perennial_airflow.dag_factory.stages.monitor import monitor_dag, request_retraining
from perennial_airflow.dag_factory.stages.train import train_dag
from support.live import webhook

DAY = "2013-02-01"


@pytest.fixture
def with_approval(spec: ModelSpec) -> ModelSpec:
    """A model whose retrainings a person approves."""
    policy = spec.retraining.model_copy(update={"mode": "approval", "approval_hours": 5})
    return spec.model_copy(update={"retraining": policy})


def context(task: Any = None, *, runs: int = 0, day: str = DAY) -> Any:
    """What a task of the monitoring of `day` sees; the training has `runs` that are queued or running."""
    ti = SimpleNamespace(
        get_dr_count=lambda dag_id, states: runs, xcom_push=lambda key, value: None, map_index=-1
    )
    run = SimpleNamespace(partition_key=day, run_type="scheduled", triggering_user_name=None)
    events: Any = defaultdict(Event)
    return {"ti": ti, "dag_run": run, "params": {}, "task": task, "run_id": "r", "outlet_events": events}


class Event:
    """What Airflow gives a task to say what it publishes."""

    def __init__(self) -> None:
        self.extra: dict[str, Any] = {}
        self.partitions: list[str] = []

    def add_partitions(self, keys: list[str]) -> None:
        self.partitions += keys


def propose(spec: ModelSpec, day: str = DAY, verdict: str = "drifted") -> None:
    result = {"verdict": verdict, "reason": "70% of the weight", "model_version": "1"}
    manifests.write(Manifest(spec.name, "monitor", day, {}, result), time.monotonic())
    decide(spec, as_of=day, actor="scheduler", backfill=False)


def respond(spec: ModelSpec, option: str, user: dict[str, str] | None, **fields: Any) -> None:
    answer(monitor_dag(spec).get_task("approve_retraining"), option, user, fields)


def answer(task: Any, option: str, user: dict[str, str] | None, fields: dict[str, Any]) -> None:
    event = {
        "chosen_options": [option], "params_input": fields, "responded_at": datetime.now(UTC),
        "responded_by_user": user,
    }  # fmt: skip
    skips = pytest.raises(DownstreamTasksSkipped) if option == "Reject" else contextlib.nullcontext()
    with skips:
        task.execute_complete(context(task), event)


def test_the_question_stands_between_the_decision_and_the_event(with_approval: ModelSpec) -> None:
    dag = monitor_dag(with_approval)
    question = dag.get_task("approve_retraining")
    assert question.upstream_task_ids == {"decide"} and question.downstream_task_ids == {"request_retraining"}
    assert question.response_timeout.total_seconds() == 5 * 3600 and question.defaults == ["Reject"]


@pytest.mark.parametrize(("hours", "nights"), [(5, 2), (72, 4)])
def test_the_nights_after_are_monitored_while_a_person_is_asked(
    with_approval: ModelSpec, spec: ModelSpec, hours: int, nights: int
) -> None:
    policy = with_approval.retraining.model_copy(update={"approval_hours": hours})
    dag = monitor_dag(with_approval.model_copy(update={"retraining": policy}))
    assert dag.max_active_runs == nights and dag.get_task("monitor").max_active_tis_per_dag == 1
    assert monitor_dag(spec).max_active_runs == 1
    assert monitor_dag(spec).get_task("monitor").max_active_tis_per_dag is None  # a backfill may run several


def test_a_shadow_is_concluded_after_each_verdict(spec: ModelSpec) -> None:
    policy = spec.retraining.model_copy(update={"trial": Duration(3, "day")})
    dag = monitor_dag(spec.model_copy(update={"retraining": policy}))
    assert dag.get_task("conclude_trial").upstream_task_ids == {"monitor"}
    assert [asset.name for asset in dag.get_task("conclude_trial").outlets] == [f"model/{spec.name}"]
    assert "conclude_trial" not in monitor_dag(spec).task_ids


def test_pages_describe_an_ab_trial(spec: ModelSpec) -> None:
    policy = spec.retraining.model_copy(update={"trial": Duration(14, "day"), "ab_share": 0.2})
    split = spec.model_copy(update={"retraining": policy})
    assert "it scores 20% of the rows, chosen by the hash of their\nkey" in page(split, "score")
    assert "once the labels of the rows it scored decide the A/B trial, after 14 days at the latest." in page(
        split, "monitor"
    )
    assert "on trial" not in page(spec, "score") + page(spec, "monitor")


def test_nobody_is_asked_about_a_retraining_that_was_not_proposed(with_approval: ModelSpec) -> None:
    propose(with_approval, verdict="ok")
    with pytest.raises(AirflowSkipException, match="the verdict is ok"):
        monitor_dag(with_approval).get_task("approve_retraining").execute(context())


def test_an_answered_question_is_pending_no_longer(with_approval: ModelSpec) -> None:
    propose(with_approval)
    assert len(refresh.refresh(with_approval).open_proposals()) == 1
    respond(with_approval, "Approve", {"id": "1", "name": "ada"})
    status = record.read(with_approval.name)
    assert status is not None and status.open_proposals() == []


def test_nobody_is_asked_twice(with_approval: ModelSpec) -> None:
    propose(with_approval)
    respond(with_approval, "Reject", {"id": "1", "name": "ada"})
    with pytest.raises(AirflowSkipException, match="rejected by ada"):
        monitor_dag(with_approval).get_task("approve_retraining").execute(context())
    with pytest.raises(AirflowSkipException, match="rejected by ada"):
        request_retraining(with_approval, context())


def test_the_question_goes_to_the_channels_that_want_it(with_approval: ModelSpec) -> None:
    propose(with_approval)
    with webhook() as (address, received):
        every = {"name": "every", "kind": "webhook", "url": address}
        failures = {"name": "failures", "kind": "webhook", "url": address, "signals": ["failure:*"]}
        other = {"name": "other", "kind": "webhook", "url": address, "decisions": ["promotion"]}
        alerts = type(with_approval.alerts).model_validate({"channels": [every, failures, other]})
        task = monitor_dag(with_approval.model_copy(update={"alerts": alerts})).get_task("approve_retraining")
        instance = SimpleNamespace(dag_id="d", run_id="r", task_id=task.task_id, map_index=-1)
        asked = task.ask(context(task))
        task._notify_channels(context(task) | {"task_instance": instance}, asked)
    (message,) = received
    assert (message["id"], message["decision"]) == (f"approval/{DAY}/r/every", "approval")
    assert message["text"].startswith(
        f"Retrain flight_late?\n2013-02-01: {asked.reason}\n"
        "Without an answer within 5 hours the retraining is rejected."
    )
    assert "/dags/d/runs/r/tasks/approve_retraining/required_actions" in message["answer_at"]


def test_a_yes_is_recorded_with_its_name(with_approval: ModelSpec) -> None:
    propose(with_approval)
    respond(with_approval, "Approve", {"id": "1", "name": "ada"})
    assert [(r["decision"], r["actor"]) for r in ledger.records(with_approval.name)][-1] == (
        "requested",
        "ada",
    )
    assert request_retraining(with_approval, context())["reason"].startswith("approved by ada (")


def test_a_no_is_recorded_with_its_reason(with_approval: ModelSpec) -> None:
    propose(with_approval)
    respond(with_approval, "Reject", {"id": "1", "name": "ada"}, reason="the season is over")
    record = ledger.records(with_approval.name)[-1]
    assert (record["decision"], record["actor"]) == ("declined", "ada")
    assert record["reason"].startswith("rejected by ada: the season is over (")
    propose(with_approval, "2013-02-02")
    record = ledger.records(with_approval.name)[-1]
    assert record["decision"] == "declined"
    assert record["reason"].startswith(
        "the retraining proposed on 2013-02-01 was rejected by ada: the season is over"
    )


def test_the_form_of_the_question_has_a_field_for_the_reason(with_approval: ModelSpec) -> None:
    question = monitor_dag(with_approval).get_task("approve_retraining")
    assert list(question.serialized_params) == ["reason"]
    assert question.serialized_params["reason"]["schema"]["maxLength"] == 500


@pytest.mark.parametrize("fields", [{"reason": "x" * 501}, {"reasons": "a typo"}])
def test_an_answer_that_the_form_refuses_is_not_recorded(
    with_approval: ModelSpec, fields: dict[str, str]
) -> None:
    """The task fails, and its next try asks again."""
    propose(with_approval)
    task = monitor_dag(with_approval).get_task("approve_retraining")
    event = {
        "chosen_options": ["Reject"], "params_input": fields, "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "1", "name": "ada"},
    }  # fmt: skip
    with pytest.raises((ValueError, ParamValidationError)):
        task.execute_complete(context(task), event)
    assert ledger.records(with_approval.name)[-1]["decision"] == "proposed"


def test_a_person_without_a_name_is_not_nobody(with_approval: ModelSpec) -> None:
    propose(with_approval)
    respond(with_approval, "Reject", {"id": "7", "name": ""})
    assert ledger.records(with_approval.name)[-1]["actor"] == "7"


def test_no_answer_is_a_no(with_approval: ModelSpec) -> None:
    propose(with_approval)
    respond(with_approval, "Reject", None)
    last = ledger.records(with_approval.name)[-1]
    assert (last["decision"], last["actor"]) == ("declined", "no answer in time")


def test_without_an_answer_no_event_is_sent(with_approval: ModelSpec) -> None:
    """Not where somebody marks the question as done by hand, either."""
    propose(with_approval)
    with pytest.raises(AirflowSkipException, match="a person has not answered"):
        request_retraining(with_approval, context())


def test_a_request_of_which_no_training_came_is_sent_again_for_its_own_date(spec: ModelSpec) -> None:
    propose(spec)
    propose(spec, "2013-02-02")
    with pytest.raises(AirflowSkipException, match="still in flight"):
        request_retraining(spec, context(day="2013-02-02", runs=1))
    run = context(day="2013-02-02")
    request = request_retraining(spec, run)
    assert request["as_of"] == DAY and request["reason"].startswith("drift: 70% of the weight")
    (event,) = run["outlet_events"].values()
    assert event.partitions == [DAY] and event.extra["reason"] == request["reason"]
    ledger.append(
        spec.name, kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason="", actor="t", partition=DAY
    )
    with pytest.raises(AirflowSkipException):
        request_retraining(spec, context(day="2013-02-02"))


@pytest.fixture
def promotable(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model whose promotions ada approves, with a version that waits for her."""
    asked = Question("4", "run", DAY, "grace", ("Version 4 was trained",), "")
    monkeypatch.setattr(promotion, "open_question", lambda spec, as_of: asked if as_of == DAY else None)
    gate = spec.gate.model_copy(update={"approval": ApprovalSpec(who=["ada"], hours=5)})
    return spec.model_copy(update={"gate": gate})


def answer_promotion(spec: ModelSpec, option: str, user: dict[str, str] | None, **fields: Any) -> None:
    answer(train_dag(spec).get_task("approve_promotion"), option, user, fields)


def test_the_approval_stands_before_both_places_that_promote(promotable: ModelSpec, spec: ModelSpec) -> None:
    dag = train_dag(promotable)
    question = dag.get_task("approve_promotion")
    assert question.upstream_task_ids == {"train"} and question.downstream_task_ids == {"promote"}
    assert question.response_timeout.total_seconds() == 5 * 3600 and question.defaults == ["Reject"]
    policy = promotable.retraining.model_copy(update={"trial": Duration(3, "day")})
    monitoring = monitor_dag(promotable.model_copy(update={"retraining": policy}))
    question = monitoring.get_task("approve_promotion")
    assert question.upstream_task_ids == {"conclude_trial"}
    assert question.downstream_task_ids == {"promote_after_trial"}
    assert monitoring.max_active_runs == 2
    assert "approve_promotion" not in train_dag(spec).task_ids + monitor_dag(spec).task_ids


def test_a_yes_and_a_no_to_a_promotion_are_recorded(promotable: ModelSpec) -> None:
    answer_promotion(promotable, "Approve", {"id": "1", "name": "ada"}, reason="looks right")
    (record,) = ledger.records(promotable.name, LedgerKind.APPROVAL)
    assert (record["decision"], record["actor"], record["reason"]) == (
        "approved",
        "ada",
        "approved by ada: looks right",
    )


def test_silence_is_a_no_to_a_promotion(promotable: ModelSpec) -> None:
    answer_promotion(promotable, "Reject", None)
    (record,) = ledger.records(promotable.name, LedgerKind.APPROVAL)
    assert (record["decision"], record["actor"]) == ("declined", "no answer in time")


@pytest.mark.parametrize(
    ("user", "fields"),
    [
        ({"id": "9", "name": "eve"}, {"reason": "r"}),
        ({"id": "1", "name": "ada"}, {}),
        ({"id": "2", "name": "grace"}, {"reason": "r"}),
    ],
)
def test_an_answer_that_does_not_count_fails_the_task_which_asks_again(
    promotable: ModelSpec, user: dict[str, str], fields: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="does not count"):
        answer_promotion(promotable, "Approve", user, **fields)
    assert ledger.records(promotable.name, LedgerKind.APPROVAL) == []


def test_nothing_is_asked_where_no_version_waits(
    promotable: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "open_question", lambda spec, as_of: None)
    with pytest.raises(AirflowSkipException, match="No version waits"):
        train_dag(promotable).get_task("approve_promotion").execute(context())
