"""What the tasks do: each task's callable, with the steps replaced."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.utils.types import DagRunType

from perennial.core import dates
from perennial.core.errors import DataError, PerennialError
from perennial.databases import connections
from perennial.spec.catalog import load_feature_table
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest, write
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets
from perennial_airflow.dag_factory.stages import data, features, monitor, rollback, score, train
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import (
    AllReportsLink,
    MlflowRunLink,
    ModelLink,
    PodLink,
    ReportingTask,
    ReportLink,
    StageTask,
    TrainingTask,
)
from support import toys
from support.feeds import history_table


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
        "decide": {"retrain": True, "proposed": False, "reason": "drift", "decided_by": "retraining policy"},
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
    assert fake.calls == [(
        "data", {"start": "2013-02-01", "end": None, "force": False, "run_id": "run-1", "catch_up": False}
    )]  # fmt: skip
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


def test_a_feature_table_computes_what_its_source_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    history_table.write(tmp_path / "models")
    source = toys.model(tmp_path / "models", "toy", features={"references": []}, sql="SELECT id, x FROM rows")
    toys.publish(source, days=3)
    table = load_feature_table("place_history")
    run = context(toys.FIRST)
    assert features.compute(table, source, run) == {
        "partitions": [toys.FIRST], "unchanged": 0, "rows": toys.ROWS,
    }  # fmt: skip
    emitted = event(run, assets.feature_table(table))
    assert emitted.extra == {"start": toys.FIRST, "end": toys.FIRST, "rows": toys.ROWS}
    wide = context(None, start=toys.FIRST, end=dates.add_days(toys.FIRST, 9))
    result = features.compute(table, source, wide)
    assert (len(result["partitions"]), result["unchanged"]) == (2, 1)
    assert event(wide, assets.feature_table(table)).partition_keys == set()


def test_predictions_are_written_to_a_table_by_a_task_of_their_own(
    fake: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", "sqlite:////data/shop.db")
    model = toys.model(tmp_path, "toy", predictions={"connection": "shop", "table": "predictions"})
    dag = score.score_dag(model)
    assert dag.get_task("publish_predictions").upstream_task_ids == {"score"}
    assert "publish_predictions" in (dag.doc_md or "")
    assert "publish_predictions" not in score.score_dag(toys.model(tmp_path, "plain")).task_dict
    fake.results["publish_predictions"] = {"partitions": [], "status": "published"}
    uris = []
    real = fake.run

    def run(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
        uris.append(connections.find("shop").uri)
        return real(step, spec, **arguments)

    monkeypatch.setattr(dispatch, "run", run)
    score.publish_predictions(model, context(kind="asset_triggered"))
    assert fake.calls == [(
        "publish_predictions",
        {"start": "2013-02-01", "end": None, "force": False, "run_id": "run-1", "catch_up": True},
    )]  # fmt: skip
    assert uris == ["sqlite:////data/shop.db"]


@pytest.mark.parametrize("kind", list(DagRunType))
def test_only_the_run_of_a_published_partition_catches_up(
    fake: Steps, spec: ModelSpec, kind: DagRunType
) -> None:
    score.score(spec, context(kind=kind))
    assert fake.calls[-1][1]["catch_up"] is (kind == DagRunType.ASSET_TRIGGERED)


@pytest.mark.parametrize("kind", list(DagRunType))
def test_only_scheduled_runs_publish_and_monitor_what_is_overdue(
    fake: Steps, spec: ModelSpec, kind: DagRunType
) -> None:
    data.publish(spec, context(kind=kind))
    monitor.monitor(spec, context(kind=kind))
    assert [call[1]["catch_up"] for call in fake.calls] == [kind == DagRunType.SCHEDULED] * 2


def test_a_feed_that_has_not_begun_is_no_failure(fake: Steps, spec: ModelSpec) -> None:
    fake.results["data"] = {"status": "not begun", "partitions": [], "docs": [], "late": ["2013-01-01"]}
    with pytest.raises(
        AirflowSkipException, match=r"2013-02-01 has not landed, and nothing .* landed: 2013-01-01"
    ):
        data.publish(spec, context(kind="scheduled"))


def test_partitions_that_were_published_late_start_their_scoring(fake: Steps, spec: ModelSpec) -> None:
    run = context(kind="scheduled")
    fake.results["data"] |= {"late": ["2013-01-30", "2013-01-31"]}
    data.publish(spec, run)
    assert event(run, assets.data(spec)).partition_keys == {"2013-01-30", "2013-01-31", "2013-02-01"}


def test_partitions_that_were_caught_up_with_are_emitted_too(fake: Steps, spec: ModelSpec) -> None:
    run = context(kind="asset_triggered")
    fake.results["score"] |= {"late": ["2013-01-30", "2013-01-31"]}
    score.score(spec, run)
    assert event(run, assets.predictions(spec)).partition_keys == {"2013-01-30", "2013-01-31", "2013-02-01"}


def test_train_passes_on_the_reason_of_the_event(fake: Steps, spec: ModelSpec) -> None:
    run = context("2013-04-01", "asset_triggered")
    run["triggering_asset_events"] = {
        "retraining/flight_late": [
            SimpleNamespace(
                extra={"reason": "drift", "requested_by": "retraining policy"},
                source_dag_id="flight_late.monitor",
                source_task_id="request_retraining",
            )
        ]
    }
    train.train(spec, run)
    train.promote(spec, run)
    assert fake.calls == [
        (
            "train",
            {
                "as_of": "2013-04-01",
                "reason": "drift",
                "actor": "retraining policy",
                "force": False,
                "run_id": "run-1",
                "run_url": "",
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
    assert emitted.extra | {"start": "", "end": ""} == {
        "reason": "drift", "as_of": "2013-04-01", "requested_by": "retraining policy", "start": "", "end": "",
    }  # fmt: skip
    assert emitted.partition_keys == set()
    monitor.request_retraining(spec, by_hand)
    assert event(by_hand, assets.retraining(spec)).partition_keys == {"2013-04-01"}
    fake.results["decide"] = {
        "retrain": False,
        "proposed": False,
        "reason": "cooldown",
        "decided_by": "retraining policy",
    }
    with pytest.raises(AirflowSkipException, match="No retraining: cooldown"):
        monitor.request_retraining(spec, context())


def test_a_retraining_that_was_trained_is_not_requested_again(fake: Steps, spec: ModelSpec) -> None:
    def record(kind: LedgerKind, decision: Decision) -> None:
        ledger.append(
            spec.name, kind=kind, decision=decision, reason="", actor="test", partition="2013-04-01"
        )

    record(LedgerKind.RETRAINING, Decision.REQUESTED)
    record(LedgerKind.TRAINING, Decision.FAILED)
    run = context("2013-04-01")
    monitor.request_retraining(spec, run)
    assert event(run, assets.retraining(spec)).extra["as_of"] == "2013-04-01", "the training failed"
    record(LedgerKind.TRAINING, Decision.REJECTED)
    with pytest.raises(AirflowSkipException, match="that of 2013-04-01 has ended"):
        monitor.request_retraining(spec, context("2013-04-01"))


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
    assert (fake.calls[0][1]["reason"], fake.calls[0][1]["run_id"]) == ("worse since May", "run-1")
    assert event(run, assets.model(spec)).extra == {"version": "1"}


def test_what_the_replaced_version_scored_is_scored_again_if_asked(
    spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "perennial")
    for day, version in (("2013-02-01", "2"), ("2013-02-02", "2"), ("2013-02-03", "1"), ("2013-02-04", "2")):
        write(Manifest(spec.name, "score", day, {}, {}, model_version=version), 0)
    pulled = SimpleNamespace(xcom_pull=lambda task_ids: {"version": "1", "previous": "2"})
    asked = context(None, reason="worse since May", rescore=True) | {"ti": pulled}
    ranges = rollback.find_scores(spec, asked)
    assert [(r["start"], r["end"]) for r in ranges] == [
        ("2013-02-01", "2013-02-02"),
        ("2013-02-04", "2013-02-04"),
    ]
    assert ranges[0]["reason"] == "version 2 was rolled back: worse since May"
    assert rollback.find_scores(spec, asked | {"params": {"reason": "x", "rescore": False}}) == []
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "Scored by version 2, and scored again: 2013-02-01..2013-02-02, 2013-02-04."),
        ("INFO", "Nothing is scored again: Rescore was not chosen."),
    ]


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


def reporting(spec: ModelSpec, call: Any) -> ReportingTask:
    return ReportingTask(
        task_id="t", spec=spec, call=call, partitions=run_request.partitions, kind="validation"
    )


@pytest.mark.parametrize(
    ("result", "report"),
    [
        ({"report": "{lake}/monitor/2013-02-01.html"}, "/monitor/2013-02-01.html"),
        ({"docs": ["a", "{lake}/validation/2013-02-01.html"]}, "/validation/2013-02-01.html"),
        ({"report": "/etc/passwd"}, None),  # not in the lake
        ({"docs": []}, None),
        ({}, None),
        ({"report": None}, None),
    ],
)
def test_the_report_of_a_task(spec: ModelSpec, result: dict[str, Any], report: str | None, home: Any) -> None:
    text = json.dumps(result).replace("{lake}", f"{home}/lake/reports/flight_late")
    task = reporting(spec, lambda *_: json.loads(text))
    StageTask.execute.__wrapped__(task, context())
    link = ReportLink().get_link(task, ti_key=None)
    assert link == "" if report is None else link.endswith(f"/perennial/reports/flight_late{report}")
    assert AllReportsLink().get_link(task, ti_key=None).endswith("/perennial/reports/flight_late")


def test_a_range_has_the_list_of_its_reports(spec: ModelSpec) -> None:
    task = reporting(spec, lambda *_: {"docs": ["a", "b"]})
    StageTask.execute.__wrapped__(task, context(None, start="2013-02-01", end="2013-02-03"))
    assert task.report_address.endswith("/perennial/reports/flight_late?start=2013-02-01&end=2013-02-03")


def test_a_failed_task_has_the_reports_that_it_wrote(spec: ModelSpec, home: Any) -> None:
    folder = home / "lake" / "reports" / "flight_late" / "validation"
    folder.mkdir(parents=True)
    began = datetime.now(UTC)

    def link(written: tuple[str, ...], *, age: timedelta = timedelta(0), **of_run: Any) -> str:
        def call(*_: object) -> dict[str, Any]:
            for day in written:
                (folder / f"{day}.html").write_text("stopped")
                then = (began - age).timestamp()
                os.utime(folder / f"{day}.html", (then, then))
            raise DataError("nothing was published", "correct the feed")

        task = reporting(spec, call)
        with pytest.raises(AirflowFailException, match="nothing was published"):
            StageTask.execute.__wrapped__(task, context(**of_run) | {"ti": SimpleNamespace(start_date=began)})
        return ReportLink().get_link(task, ti_key=None)

    of_range = {"key": None, "start": "2013-02-01", "end": "2013-02-03"}
    assert link(()) == "" and link((), **of_range) == ""
    assert link(("2013-02-01",), age=timedelta(hours=1)) == ""  # of an earlier run
    assert link(("2013-02-04",), **of_range) == ""
    assert link(("2013-02-01",)).endswith("/perennial/reports/flight_late/validation/2013-02-01.html")
    assert link(("2013-02-03",), **of_range).endswith("/flight_late?start=2013-02-01&end=2013-02-03")
    assert link((), key="2013-02-30") == ""  # it failed because that is not a date


def test_the_train_task_links_to_its_run_in_mlflow_to_its_report_and_to_its_pod(
    spec: ModelSpec, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_MLFLOW_UI", "https://mlflow.example.com")
    report = f"{home}/lake/reports/flight_late/training/2013-02-01.html"
    task = TrainingTask(
        task_id="train", spec=spec, call=lambda *_: {"run_id": "abc", "report": report},
        partitions=run_request.as_of, kind="training",
    )  # fmt: skip
    assert [link.name for link in task.operator_extra_links] == [
        "Report", "MLflow run", "All reports", "Model", "Pod",
    ]  # fmt: skip
    assert ModelLink().get_link(task, ti_key=None) == "/perennial/models/flight_late"
    assert MlflowRunLink().get_link(task, ti_key=None) == ""
    StageTask.execute.__wrapped__(task, context())
    assert MlflowRunLink().get_link(task, ti_key=None) == "https://mlflow.example.com/#/runs/abc"
    assert ReportLink().get_link(task, ti_key=None).endswith("/reports/flight_late/training/2013-02-01.html")
    task.pod = SimpleNamespace(pod=SimpleNamespace(metadata=SimpleNamespace(namespace="ml", name="train-1")))
    assert PodLink().get_link(task, ti_key=None) == ""
    monkeypatch.setenv("PERENNIAL_POD_URL", "https://k8s.example.com/{namespace}/pods/{name}")
    assert PodLink().get_link(task, ti_key=None) == "https://k8s.example.com/ml/pods/train-1"


def test_an_asset_leads_to_the_page_of_its_model(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert assets.model(spec).extra == {}
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://air.example/x")
    assert assets.model(spec).extra == {"page": "https://air.example/x/perennial/models/flight_late"}


def test_a_training_knows_the_page_of_its_run(
    fake: Steps, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://air.example")
    train.train(spec, context() | {"run_id": "manual__2013-02-01T00:00:00+00:00"})
    assert fake.calls[0][1]["run_url"] == (
        "https://air.example/dags/flight_late.train/runs/manual__2013-02-01T00%3A00%3A00%2B00%3A00"
    )
