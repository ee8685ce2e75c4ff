"""Deadlines, by Airflow's own scheduler code on a real metadata database: which runs open an incident."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from perennial.alerting import incidents
from perennial.core.settings import ROOT
from perennial.spec.model_spec import ModelSpec, StepLimits
from perennial_airflow import deadlines
from perennial_airflow.alerting import alerts
from perennial_airflow.dag_factory.factory import STAGES
from support.databases import airflow_metadata

NIGHT = "2013-02-01"
CHANNEL = {"channels": [{"name": "hook", "kind": "webhook", "url": "http://127.0.0.1:1/x"}]}


@pytest.mark.parametrize("stage", ["data", "train", "score", "monitor"])
def test_the_interval_is_what_the_tasks_may_take_or_what_the_spec_says(spec: ModelSpec, stage: str) -> None:
    spec = spec.model_copy(update={"limits": {stage: StepLimits(retries=1, timeout_minutes=30)}})
    (deadline,) = STAGES[stage](spec).deadline
    assert deadline.interval == (timedelta(hours=1) + deadlines.SLACK).total_seconds()
    spec = spec.model_copy(update={"limits": {stage: StepLimits(deadline_minutes=45)}})
    (deadline,) = STAGES[stage](spec).deadline
    assert deadline.interval == 45 * 60
    assert deadline.callback.kwargs == {"model": "flight_late", "stage": stage, "minutes": 45}


def test_a_partition_that_is_waited_for_has_that_time_too(spec: ModelSpec) -> None:
    data = spec.data.model_copy(update={"arrival": "wait", "arrival_hours": 5.0})
    waiting = spec.model_copy(update={"data": data})
    (deadline,), (without,) = STAGES["data"](waiting).deadline, STAGES["data"](spec).deadline
    assert deadline.interval - without.interval == 5 * 3600
    assert STAGES["rollback"](spec).deadline is None


@pytest.fixture(scope="module")
def database() -> Iterator[Any]:
    """Airflow's metadata, with the model's data DAG as the DAG processor writes it."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.utils.session import create_session

    airflow_metadata.create()
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(str(ROOT / "dags" / "models.py"), bundle_name="dags-folder")
    assert not bag.import_errors
    sync_bag_to_db(bag, "dags-folder", None)
    with create_session() as session:
        yield session


def queued(session: Any, kind: str, key: str) -> Any:
    """A run of ``flight_late.data`` as the scheduler makes one."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    dag = SerializedDagModel.get_dag("flight_late.data", session=session)
    run = dag.create_dagrun(
        run_id=f"{kind}__{key}", run_after=datetime.now(UTC), run_type=DagRunType(kind), state=DagRunState.QUEUED,
        triggered_by=DagRunTriggeredByType.TEST, partition_key=key, session=session,
    )  # fmt: skip
    session.flush()
    return run


def fire(session: Any, run: Any) -> str:
    """What the scheduler and the triggerer do when the run's deadline has passed; what the callback returned."""
    (deadline,) = run.deadlines
    assert deadline.deadline_time - run.queued_at == timedelta(hours=3) + deadlines.SLACK
    deadline.handle_miss(session)
    classpath, kwargs = deadline.callback.trigger.classpath, deadline.callback.trigger.kwargs
    from airflow._shared.module_loading import import_string

    async def events() -> list[TriggerEvent]:
        return [event async for event in import_string(classpath)(**kwargs).run()]

    last = asyncio.run(events())[-1].payload
    assert last["state"] == "success", last
    return str(last["body"])


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Signals that are reported, with their dates."""
    signals: list[Any] = []
    real = alerts.report_signals
    monkeypatch.setattr(alerts, "report_signals", lambda *a: (signals.append(a[1:]), real(*a)))
    return signals


def test_a_run_that_does_not_end_opens_an_incident_and_the_next_success_closes_it(
    database: Any, reported: list[Any], spec: ModelSpec
) -> None:
    run = queued(database, "scheduled", NIGHT)
    run.state = "running"
    database.flush()
    assert fire(database, run) == "incident opened: the run is running"
    ((day, signals),) = reported
    assert (day, list(signals)) == (NIGHT, ["deadline:data"])
    reason = signals["deadline:data"].reason
    assert reason.startswith(
        "partition 2013-02-01 is not published 300 minutes after its run was queued; the run is"
    )
    (item,) = incidents.read_log("flight_late").open
    assert (item.signal, item.last) == ("deadline:data", NIGHT)
    from types import SimpleNamespace

    task = SimpleNamespace(dag_id="flight_late.data", task_id="data", run_id=run.run_id, map_index=-1)
    alerts.on_success(spec)({"task_instance": task, "dag_run": SimpleNamespace(partition_key=NIGHT)})
    assert incidents.read_log("flight_late").open == []


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_has_ended_opens_no_incident(database: Any, reported: list[Any], state: str) -> None:
    run = queued(database, "scheduled", "2013-02-03" if state == "failed" else "2013-02-04")
    run.state = state
    database.flush()
    assert fire(database, run) == f"the run has ended: {state}"
    assert reported == []


def test_the_runs_of_a_backfill_have_no_deadline(database: Any, reported: list[Any]) -> None:
    run = queued(database, "backfill", "2013-02-05")
    assert fire(database, run) == "a run of a backfill has no deadline"
    assert reported == []


def test_a_run_that_waits_for_a_person_opens_no_incident(
    reported: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = {"r": {"monitor": "success", "approve_retraining": "awaiting_input"}}
    monkeypatch.setattr(RuntimeTaskInstance, "get_dagrun_state", staticmethod(lambda *_: "running"))
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(lambda dag_id, run_ids: states))
    run = {"dag_id": "flight_late.monitor", "dag_run_id": "r", "state": "running", "run_type": "scheduled",
           "partition_key": NIGHT, "conf": None}  # fmt: skip
    outcome = asyncio.run(deadlines.missed("flight_late", "monitor", 5, {"dag_run": run}))
    assert outcome == "the run waits for a person's answer, which has its own time limit"
    states["r"] = {"monitor": "running"}
    assert (
        asyncio.run(deadlines.missed("flight_late", "monitor", 5, {"dag_run": run}))
        == "incident opened: the run is running"
    )
    assert len(reported) == 1


def test_the_current_state_counts(reported: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The triggerer may call long after the scheduler saw the deadline pass."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    monkeypatch.setattr(RuntimeTaskInstance, "get_dagrun_state", staticmethod(lambda *_: "success"))
    run = {"dag_id": "flight_late.data", "dag_run_id": "r", "state": "running", "run_type": "scheduled",
           "partition_key": NIGHT, "conf": None}  # fmt: skip
    assert (
        asyncio.run(deadlines.missed("flight_late", "data", 5, {"dag_run": run}))
        == "the run has ended: success"
    )
    assert reported == []


def clear(session: Any, run: Any) -> None:
    """What the UI and the REST API do when a run is cleared."""
    from airflow.models.taskinstance import clear_task_instances

    clear_task_instances(run.get_task_instances(session=session), session)
    session.flush()


def test_a_failed_run_is_cleared_and_its_deadline_counts_from_then(database: Any) -> None:
    run = queued(database, "scheduled", "2013-02-07")
    run.state = "failed"
    run.queued_at -= timedelta(hours=1)
    database.flush()
    clear(database, run)
    assert run.state == "queued"
    (deadline,) = run.deadlines
    assert datetime.now(UTC) - run.queued_at < timedelta(minutes=1)
    late_by = deadline.deadline_time - run.queued_at - timedelta(hours=3) - deadlines.SLACK
    assert abs(late_by) < timedelta(seconds=1)  # Airflow reads the clock twice


def test_airflow_still_needs_the_interval_as_a_number(database: Any) -> None:
    """When this fails, airflow 70368 is mended, and `stage_deadline` may hand over a timedelta again."""
    from airflow.sdk.serde import serialize

    run = queued(database, "scheduled", "2013-02-08")
    (deadline,) = run.deadlines
    seconds, deadline.deadline_alert.interval = (
        deadline.deadline_alert.interval,
        serialize(timedelta(hours=5)),
    )
    database.flush()
    try:
        with database.no_autoflush, pytest.raises(TypeError, match="timedelta"):
            clear(database, run)
    finally:
        deadline.deadline_alert.interval = seconds
        database.flush()


@pytest.mark.slow
def test_airflow_dags_test_runs_a_dag_with_a_deadline(tried: Any) -> None:
    assert "state=success" in tried.output.replace("'", "")
    # the records of the DAG, which other runs use, still have the deadline
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tried.database)) as database:
        (alerts_of_dag,) = database.execute(
            "SELECT count(*) FROM deadline_alert JOIN serialized_dag ON serialized_dag_id = serialized_dag.id"
            " WHERE dag_id = 'toy.data'"
        ).fetchone()
        assert database.execute("SELECT state FROM dag_run WHERE dag_id = 'toy.data'").fetchall() == [
            ("success",)
        ]
        assert alerts_of_dag == 1 and database.execute("SELECT count(*) FROM deadline").fetchone() == (0,)
