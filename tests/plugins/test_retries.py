"""Only failures that time heals are tried again, by every operator, and for wrong input by none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from perennial.core import errors
from perennial.core.errors import DataError, PerennialError, RegistryError
from perennial.lifecycle import verification as library_verification
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing
from perennial_airflow import bundle_dags, retries
from perennial_airflow.alerting import daily_summary
from perennial_airflow.dag_factory.stages import data, monitor, rollback, score, train
from perennial_airflow.execution import verification
from perennial_airflow.execution.operators import StageTask
from perennial_airflow.sensors.approval import approval_task
from perennial_airflow.sensors.partition_arrival import AwaitPartition
from support import toys

KINDS = pytest.mark.parametrize("kind", errors.TIME_HEALS, ids=lambda kind: kind.__name__)


def context(key: str | None = "2024-01-05", **params: Any) -> Any:
    run = SimpleNamespace(
        partition_key=key, run_type="scheduled", triggering_user_name="ann", start_date=datetime.now(UTC)
    )
    return {"dag_run": run, "run_id": "r", "params": params, "triggering_asset_events": {}}


def failure_of(task: BaseOperator, run: Any, method: str = "execute", **arguments: Any) -> type[Exception]:
    function = getattr(type(task), method)
    with pytest.raises(AirflowException) as raised:
        getattr(function, "__wrapped__", function)(task, run, **arguments)
    assert raised.value.__cause__ is None  # no stack trace in the log
    return type(raised.value)


def expected(kind: type[PerennialError]) -> type[Exception]:
    return AirflowException if errors.TIME_HEALS[kind] else AirflowFailException


@KINDS
def test_every_operator_follows_the_table(
    kind: type[PerennialError], spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise kind("odd", "look")

    task = StageTask(task_id="t", spec=spec, call=fail)
    assert failure_of(task, {}) is expected(kind)
    assert failure_of(task, {}, "resume", event={"status": "failed"}) is expected(
        kind
    )  # a deferred pod ended
    assert failure_of(approval_task(spec, fail), context()) is expected(kind)
    monkeypatch.setattr(landing, "landed_stat", fail)
    assert failure_of(AwaitPartition(task_id="t", spec=spec), context()) is expected(kind)
    monkeypatch.setattr(daily_summary.daily_summary, "compose", fail)
    assert failure_of(daily_summary.SendDailySummary(task_id="t"), {}) is expected(kind)
    monkeypatch.setattr(library_verification, "verify_model", fail)
    monkeypatch.setattr(catalog, "load_models", lambda: ({spec.name: spec}, []))
    assert failure_of(verification.VerifyModels(task_id="t"), {}) is expected(kind)


def test_a_message_names_the_model_and_an_unforeseen_error_is_tried_again(spec: ModelSpec) -> None:
    with (
        pytest.raises(AirflowFailException, match="model flight_late: no rows"),
        retries.translated("t", model=spec.name),
    ):
        raise DataError("no rows", "send them")
    with pytest.raises(AirflowException, match="unexpected ValueError") as raised, retries.translated("t"):
        raise ValueError("unforeseen")
    assert type(raised.value) is AirflowException
    with pytest.raises(AirflowSkipException), retries.translated("t"):
        raise AirflowSkipException("nothing to do")
    both = [DataError("a", "b"), RegistryError("c", "d")]
    assert type(retries.airflow_error(both)) is AirflowException
    assert type(retries.airflow_error(both[:1])) is AirflowFailException


def test_what_cannot_be_read_from_a_run_is_not_tried_again(spec: ModelSpec) -> None:
    assert failure_of(AwaitPartition(task_id="t", spec=spec), context("2024-13-45")) is AirflowFailException


@pytest.mark.parametrize(
    ("call", "run"),
    [
        (data.publish, context(None, start="2024-01-05")),  # nothing has landed
        (data.publish, context(None)),
        (data.publish, context(None, start="yesterday")),
        (score.score, context("2024-01-05")),  # nothing is published
        (train.train, context("2024-01-05")),
        (train.promote, context("2024-01-05")),
        (monitor.decide, context("2024-01-05")),  # nothing was monitored
        (rollback.roll_back, context(None, reason="", to_version=7)),
        (rollback.roll_back, context(None, to_version=7)),
    ],
)
def test_real_steps_with_wrong_input_are_not_tried_again(
    call: Any, run: Any, empty_home: Path, tmp_path: Path
) -> None:
    task = StageTask(task_id="t", spec=toys.model(tmp_path / "models", "toy"), call=call)
    assert failure_of(task, run | {"task": task}) is AirflowFailException


def test_a_real_step_whose_registry_is_away_is_tried_again(empty_home: Path, tmp_path: Path) -> None:
    task = StageTask(task_id="t", spec=toys.model(tmp_path / "models", "toy"), call=rollback.roll_back)
    assert failure_of(task, context(None, reason="bad nights")) is AirflowException


def test_a_failure_of_any_kind_for_one_model_leaves_the_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs = {name: SimpleNamespace(name=name, hides_values=True) for name in ("a", "b", "c")}
    monkeypatch.setattr(catalog, "load_models", lambda: (specs, []))
    done = []

    def check(spec: Any) -> None:
        if spec.name == "a":
            raise ValueError("the value 4711")
        if spec.name == "b":
            raise PerennialError("it is broken", "mend it")
        done.append(spec.name)

    with pytest.raises(AirflowException) as failure:  # the first is tried again
        bundle_dags.for_each_model(check, "not checked")
    assert done == ["c"]
    assert str(failure.value).startswith("not checked: model a: ") and "model b: it is broken" in str(
        failure.value
    )
    assert "4711" not in str(failure.value)
