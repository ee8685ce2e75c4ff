"""Quiet hours: when they end, and who waits for that."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from pydantic import ValidationError

from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import QuietHours
from perennial_airflow.dag_factory.factory import STAGES
from perennial_airflow.sensors.quiet_hours import AwaitQuietHours


def context(user: str | None = None) -> Any:
    return {"dag_run": SimpleNamespace(triggering_user_name=user), "params": {}}


def around(hour: int) -> QuietHours:
    """Quiet from this hour of the day to the third after it."""
    return QuietHours(from_hour=hour, to_hour=(hour + 3) % 24)


@pytest.mark.parametrize(
    ("hours", "now", "end"),
    [
        ((8, 18, "UTC"), "2024-03-01T07:59", None),
        ((8, 18, "UTC"), "2024-03-01T08:00", "2024-03-01T18:00"),
        ((8, 18, "UTC"), "2024-03-01T18:00", None),
        ((22, 6, "UTC"), "2024-03-01T23:30", "2024-03-02T06:00"),
        ((22, 6, "UTC"), "2024-03-02T01:00", "2024-03-02T06:00"),
        ((22, 6, "UTC"), "2024-03-02T06:00", None),
        ((8, 18, "Europe/Berlin"), "2024-03-01T07:30", "2024-03-01T17:00"),
        # The night in which Berlin's clocks go from 2 to 3: six o'clock comes an hour sooner.
        ((22, 6, "Europe/Berlin"), "2024-03-30T23:00", "2024-03-31T04:00"),
    ],
)
def test_they_end_by_the_clock_of_their_time_zone(
    hours: tuple[int, int, str], now: str, end: str | None
) -> None:
    first, last, timezone = hours
    actual = QuietHours(from_hour=first, to_hour=last, timezone=timezone).end_of(
        datetime.fromisoformat(now).replace(tzinfo=UTC)
    )
    assert actual == (datetime.fromisoformat(end).replace(tzinfo=UTC) if end else None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timezone": "Europe/Atlantis"}, "not a time zone"),
        ({"timezone": "../etc/passwd"}, "not a time zone"),
        ({"to_hour": 8}, "no retraining could start"),
        ({"to_hour": 24}, "less than or equal to 23"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuietHours.model_validate({"from_hour": 8, "to_hour": 18} | wrong)


def test_a_retraining_waits_in_the_triggerer_until_they_are_over() -> None:
    now = datetime.now(UTC)
    task = AwaitQuietHours(task_id="await_quiet_hours", hours=around(now.hour))
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context())
    name, arguments = deferred.value.trigger.serialize()
    assert name.endswith("DateTimeTrigger") and now < arguments["moment"] <= now + timedelta(hours=3)
    assert deferred.value.method_name == "go_on" and task.go_on(context(), None) == {"waited": True}


def test_outside_of_them_or_by_hand_it_begins_at_once() -> None:
    now = datetime.now(UTC)
    assert AwaitQuietHours(task_id="a", hours=around((now.hour + 4) % 24)).execute(context()) == {
        "waited": False
    }
    assert AwaitQuietHours(task_id="b", hours=around(now.hour)).execute(context("anna")) == {"waited": False}


def test_the_training_dag_has_the_wait_where_the_policy_has_hours(spec: ModelSpec) -> None:
    assert "await_quiet_hours" not in STAGES["train"](spec).task_ids
    policy = spec.retraining.model_copy(update={"quiet_hours": QuietHours(from_hour=8, to_hour=18)})
    quiet = ModelSpec.from_bundle(
        json.loads(json.dumps(spec.model_copy(update={"retraining": policy}).bundle()))
    )
    dag, usual = STAGES["train"](quiet), STAGES["train"](spec)
    assert dag.get_task("await_quiet_hours").downstream_task_ids == {"train"}
    assert "`await_quiet_hours`: " in dag.doc_md and "8 and\n18 o'clock (UTC)" in dag.doc_md
    assert "quiet" not in usual.doc_md
    assert dag.deadline[0].interval - usual.deadline[0].interval == timedelta(days=1).total_seconds()
