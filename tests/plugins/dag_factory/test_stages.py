"""What the tasks do: each task's callable, with the steps replaced."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.utils.types import DagRunType

from perennial.core.errors import DataError, LockHeldError, PerennialError, RegistryError, StorageError
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage.manifests import Manifest, write
from perennial_airflow.dag_factory import assets
from perennial_airflow.dag_factory.stages import data, monitor, rollback, score, train
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import ReportingTask, ReportLink, StageTask


class Steps:
    """Stands for `perennial.steps.dispatch.run`: returns given results, and collects the calls."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.writes_manifest = True

    def run(self, step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
        self.calls.append((step, arguments))
        result = self.results[step]
        if self.writes_manifest:
            for key in result.get("partitions", [arguments.get("as_of")]):
                write(Manifest(spec.name, step, key, {}, result), 0)
        return result


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(dispatch, "run", steps.run)
    steps.results = {
        "data": {"partitions": ["2013-02-01"], "rows_out": 9, "quarantined": 1, "version": 4, "docs": ["a", "b"]},
        "score": {"partitions": ["2013-02-01"], "rows_out": 9, "model_version": "2", "status": "scored"},
        "train": {"version": "2", "gate": {"passed": True}},
        "promote": {"promoted": True, "version": "2", "previous": "1", "reason": "better"},
        "monitor": {"verdict": "ok", "report": "r"},
        "decide": {"retrain": True, "proposed": False, "reason": "drift"},
        "rollback": {"version": "1", "previous": "2"},
    }  # fmt: skip
    return steps


def context(key: str | None = "2013-02-01", kind: str = "manual", **params: Any) -> Any:
    return {
        "dag_run": SimpleNamespace(partition_key=key, run_type=DagRunType(kind), triggering_user_name=None),
        "run_id": "run-1",
        "params": params,
        "triggering_asset_events": {},
        "outlet_events": OutletEventAccessors(),
        "task": SimpleNamespace(part=None),
    }


def event(run: Any, asset: Any) -> Any:
    return run["outlet_events"][asset]


def test_data_publishes_a_partition(fake: Steps, spec: ModelSpec) -> None:
    run = context()
    result = data.publish(spec, run)
    assert fake.calls == [("data", {"start": "2013-02-01", "end": None, "force": False, "run_id": "run-1"})]
    assert result["docs"] == ["b"]
    emitted = event(run, assets.data(spec))
    assert emitted.extra == {
        "start": "2013-02-01",
        "end": "2013-02-01",
        "rows_out": 9,
        "quarantined": 1,
        "version": 4,
    }
    assert emitted.partition_keys == set()  # Airflow adds the run's own key


def test_one_partition_by_hand_starts_its_consumers_a_range_does_not(fake: Steps, spec: ModelSpec) -> None:
    single, wide = (
        context(None, start="2013-02-01", force=True),
        context(None, start="2013-02-01", end="2013-02-03"),
    )
    data.publish(spec, single)
    assert event(single, assets.data(spec)).partition_keys == {"2013-02-01"}
    data.publish(spec, wide)
    assert event(wide, assets.data(spec)).partition_keys == set()
    assert [c[1]["end"] for c in fake.calls] == [None, "2013-02-03"]
    assert [c[1]["force"] for c in fake.calls] == [True, False]


def test_score(fake: Steps, spec: ModelSpec) -> None:
    run = context()
    assert score.score(spec, run)["status"] == "scored"
    assert event(run, assets.predictions(spec)).extra["model_version"] == "2"
    fake.results["score"] = {"partitions": [], "status": "no champion"}
    with pytest.raises(AirflowSkipException, match=r"no champion yet: trigger flight_late\.train"):
        score.score(spec, context())


@pytest.mark.parametrize("kind", list(DagRunType))
def test_only_the_run_of_a_published_partition_catches_up(
    fake: Steps, spec: ModelSpec, kind: DagRunType
) -> None:
    score.score(spec, context(kind=kind))
    assert fake.calls[-1][1]["catch_up"] is (kind == DagRunType.ASSET_TRIGGERED)


def test_partitions_that_were_caught_up_with_are_emitted_too(fake: Steps, spec: ModelSpec) -> None:
    run = context(kind="asset_triggered")
    fake.results["score"] |= {"late": ["2013-01-30", "2013-01-31"]}
    score.score(spec, run)
    assert event(run, assets.predictions(spec)).partition_keys == {"2013-01-30", "2013-01-31", "2013-02-01"}


def test_train_passes_on_the_reason_of_the_event(fake: Steps, spec: ModelSpec) -> None:
    run = context("2013-04-01", "asset_triggered")
    run["triggering_asset_events"] = {"retraining/flight_late": [SimpleNamespace(extra={"reason": "drift"})]}
    train.train(spec, run)
    train.promote(spec, run)
    assert fake.calls == [
        (
            "train",
            {
                "as_of": "2013-04-01",
                "reason": "drift",
                "actor": "scheduler",
                "force": False,
                "run_id": "run-1",
            },
        ),
        ("promote", {"as_of": "2013-04-01", "actor": "scheduler", "reason": "drift"}),
    ]
    assert event(run, assets.model(spec)).extra["version"] == "2"


def test_a_refused_challenger_is_a_skipped_task_that_says_why(fake: Steps, spec: ModelSpec) -> None:
    fake.results["promote"] = {
        "promoted": False,
        "version": "2",
        "previous": "1",
        "reason": "not better by 1%",
    }
    with pytest.raises(AirflowSkipException, match="stays as it was: not better by 1%"):
        train.promote(spec, context())


@pytest.mark.parametrize(("kind", "backfill"), [("backfill", True), ("scheduled", False), ("manual", False)])
def test_decide_knows_a_backfill(fake: Steps, spec: ModelSpec, kind: str, backfill: bool) -> None:
    monitor.monitor(spec, context("2013-04-01", kind))
    monitor.decide(spec, context("2013-04-01", kind))
    assert fake.calls[1] == (
        "decide", {"as_of": "2013-04-01", "actor": "scheduler", "backfill": backfill, "run_id": "run-1"},
    )  # fmt: skip


def test_a_retraining_is_requested_with_its_reason(fake: Steps, spec: ModelSpec) -> None:
    run, by_hand = context("2013-04-01"), context(None, as_of="2013-04-01")
    monitor.request_retraining(spec, run)
    emitted = event(run, assets.retraining(spec))
    assert (emitted.extra["reason"], emitted.extra["as_of"], emitted.partition_keys) == (
        "drift",
        "2013-04-01",
        set(),
    )
    monitor.request_retraining(spec, by_hand)
    assert event(by_hand, assets.retraining(spec)).partition_keys == {"2013-04-01"}
    fake.results["decide"] = {"retrain": False, "proposed": False, "reason": "cooldown"}
    with pytest.raises(AirflowSkipException, match="No retraining: cooldown"):
        monitor.request_retraining(spec, context())


def test_scoring_in_pods_is_split_into_the_requested_number_of_tasks(fake: Steps, spec: ModelSpec) -> None:
    by_hand = context(None, start="2013-02-01", end="2013-02-10", tasks=3)
    parts = score.split_range(spec, by_hand)
    assert parts == [
        {"start": "2013-02-01", "end": "2013-02-03"},
        {"start": "2013-02-04", "end": "2013-02-06"},
        {"start": "2013-02-07", "end": "2013-02-10"},
    ]
    assert len(score.split_range(spec, by_hand | {"params": by_hand["params"] | {"tasks": 500}})) == 10
    assert score.split_range(spec, context()) == [{"start": "2013-02-01", "end": "2013-02-01"}]
    score.score(spec, by_hand | {"task": SimpleNamespace(part=parts[1])})
    assert (fake.calls[-1][1]["start"], fake.calls[-1][1]["end"]) == ("2013-02-04", "2013-02-06")
    night = context()
    score.score(spec, night | {"task": SimpleNamespace(part=score.split_range(spec, night)[0])})
    assert (fake.calls[-1][1]["start"], fake.calls[-1][1]["end"]) == ("2013-02-01", None)


def test_rollback(fake: Steps, spec: ModelSpec) -> None:
    run = context(None, reason="worse since May", to_version=1)
    rollback.roll_back(spec, run)
    rollback.roll_back(spec, context(None, reason="worse since May", to_version=None))
    assert [c[1]["to_version"] for c in fake.calls] == ["1", None]
    assert fake.calls[0][1]["reason"] == "worse since May"
    assert event(run, assets.model(spec)).extra == {"version": "1"}


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [
        ("data", {"start": "2013-02-01", "end": "2013-02-01"}),
        ("train", {"as_of": "2013-02-01"}),
        ("monitor", {"as_of": "2013-02-01"}),
    ],
)
def test_a_step_without_a_manifest_is_not_believed(
    fake: Steps, spec: ModelSpec, stage: str, arguments: dict[str, str]
) -> None:
    fake.writes_manifest = False
    with pytest.raises(PerennialError, match=rf"2013-02-01: step {stage} ended without its manifest"):
        runner.run_by_profile(stage, spec, context(), **arguments)


def test_a_range_runs_at_a_lower_priority(
    fake: Steps, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    nice: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "setpriority", lambda *given: nice.append(given))
    data.publish(spec, context("2013-02-01"))
    train.train(spec, context("2013-02-01", reason="because"))
    assert nice == []
    data.publish(spec, context(None, start="2013-02-01", end="2013-02-03"))
    assert nice == [(os.PRIO_PROCESS, 0, runner.RANGE_NICENESS)]


def test_the_steps_take_what_the_tasks_give(fake: Steps, spec: ModelSpec) -> None:
    """The seam to the library: every call above has the names that the real step takes."""
    run = context(
        "2013-02-01",
        reason="because",
        to_version=1,
    )
    for call in (
        data.publish,
        score.score,
        train.train,
        train.promote,
        monitor.monitor,
        monitor.decide,
        rollback.roll_back,
    ):
        run["outlet_events"] = OutletEventAccessors()
        call(spec, run)
    assert len(fake.calls) == 7
    for step, arguments in fake.calls:
        assert set(arguments) <= set(dispatch.parameter_names(step)), step


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("no rows", "send them"), AirflowFailException),
        (PerennialError("odd", "look"), AirflowFailException),
        (LockHeldError("locked", "wait"), AirflowException),
        (RegistryError("away", "start it"), AirflowException),
        (StorageError("disk full", "make room"), AirflowException),
        (ValueError("unforeseen"), ValueError),
    ],
)
def test_only_retryable_errors_are_retried(spec: ModelSpec, error: Exception, kind: type[Exception]) -> None:
    def call(*_: object) -> dict[str, Any]:
        raise error

    task = StageTask(task_id="t", spec=spec, call=call)
    with pytest.raises(Exception) as caught:
        StageTask.execute.__wrapped__(task, {})
    assert type(caught.value) is kind
    if isinstance(error, PerennialError):
        assert str(caught.value).startswith(
            "model flight_late"
        )  # whoever raised it may not have known the model
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("result", "report"),
    [
        ({"report": "r"}, "r"),
        ({"docs": ["a", "b"]}, "b"),
        ({"docs": []}, ""),
        ({}, ""),
        ({"report": None}, ""),
    ],
)
def test_the_report_of_a_task(spec: ModelSpec, result: dict[str, Any], report: str, home: Any) -> None:
    task = ReportingTask(task_id="t", spec=spec, call=lambda *_: result)
    assert StageTask.execute.__wrapped__(task, {}) == result
    assert task.report == report
    assert ReportLink().get_link(task, ti_key=None) == ""  # not a place in the lake
    task.report = f"{home}/lake/reports/flight_late/x.html"
    assert ReportLink().get_link(task, ti_key=None).endswith("/perennial/reports/flight_late/x.html")
