"""Which earlier runs a task waits for; `tests/integration/live/test_runs.py` has a real backfill."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRescheduleException

from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests
from perennial_airflow.execution import earlier_runs
from perennial_airflow.execution.earlier_runs import await_earlier_runs, await_earlier_stages

TASKS = ("monitor", "decide")


def run_id(day: str, kind: str = "backfill") -> str:
    return f"{kind}__{day}T00:00:00+00:00__{day}__abcdef"


def waits(day: str, runs: dict[str, tuple[str, str | None]]) -> bool:
    """Whether the run of a day waits, with other runs: state of the run and of its task `decide`, by id."""
    own = run_id(day)
    states = {own: {"monitor": "running", "decide": None}} | {
        run: {"monitor": "success", "decide": state} for run, (_, state) in runs.items()
    }
    ti = SimpleNamespace(
        dag_id="m.monitor",
        get_dr_count=lambda dag, states: 1 + sum(state == "running" for state, _ in runs.values()),
        get_task_states=lambda dag, task_ids: states if task_ids == sorted(TASKS) else {},
        get_dagrun_state=lambda dag, run: runs[run][0],
    )
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(partition_key=day), "params": {}}
    try:
        await_earlier_runs(context, TASKS)
    except AirflowRescheduleException:
        return True
    return False


@pytest.mark.parametrize(
    "state", [None, "scheduled", "queued", "running", "up_for_retry", "up_for_reschedule"]
)
def test_a_run_waits_for_an_earlier_one_that_is_active(state: str | None) -> None:
    assert waits("2024-01-03", {run_id("2024-01-02"): ("running", state)})
    assert waits("2024-01-03", {run_id("2023-12-31", "scheduled"): ("running", state)})


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "upstream_failed"])
def test_nothing_waits_for_tasks_that_have_ended(state: str) -> None:
    assert not waits("2024-01-03", {run_id("2024-01-02"): ("running", state)})


def test_what_else_is_not_waited_for() -> None:
    assert not waits("2024-01-03", {})
    assert not waits("2024-01-03", {run_id("2024-01-04"): ("running", None)})  # a later one
    assert not waits("2024-01-03", {run_id("2024-01-03", "scheduled"): ("running", None)})  # the same one
    # one that is queued: a backfill that goes backwards would never end
    queued = {run_id("2024-01-02"): ("queued", None), run_id("2024-01-04"): ("running", None)}
    assert not waits("2024-01-03", queued)
    assert not waits("2024-01-03", {"manual__2024-01-01T00:00:00+00:00": ("running", None)})
    assert not waits("2024-01-03", {"2024-01-01 by hand": ("running", None)})


DAY = "2024-01-02"


@pytest.fixture
def spec(home: Path) -> ModelSpec:
    """As far as the order of stages needs it."""
    spec: Any = SimpleNamespace(name="m")
    return spec


def awaits(
    spec: ModelSpec, publishing: dict[str, dict[str, str | None]] | None = None, *, scoring: int = 0,
    began: timedelta = timedelta(),
) -> bool:  # fmt: skip
    """Whether the scheduled monitoring of `DAY` waits.

    Args:
        spec: the model.
        publishing: states of the tasks of the active runs of `data`, by their ids.
        scoring: active runs of `score`.
        began: how long ago the monitoring's run began.
    """
    runs = publishing or {}
    ti = SimpleNamespace(
        get_dr_count=lambda dag, states: len(runs) if dag == "m.data" else scoring,
        get_task_states=lambda dag, task_ids: runs,
        get_dagrun_state=lambda dag, run: "running",
    )
    run = SimpleNamespace(partition_key=DAY, start_date=datetime.now(UTC) - began)
    context: Any = {"ti": ti, "dag_run": run, "params": {}}
    try:
        await_earlier_stages(context, spec)
    except AirflowRescheduleException:
        return True
    return False


@pytest.mark.parametrize("state", [None, "scheduled", "queued", "running", "deferred"])
def test_monitoring_waits_while_its_partition_or_an_earlier_one_is_published(
    spec: ModelSpec, state: str | None
) -> None:
    for day in ("2024-01-01", DAY):
        assert awaits(spec, {run_id(day, "scheduled"): {"data": state}})
    assert not awaits(spec, {run_id("2024-01-03", "scheduled"): {"data": state}})
    assert not awaits(spec, {"by hand": {"data": state}})
    assert not awaits(spec, {run_id(DAY): {"data": state}}, began=timedelta(hours=1))


def test_monitoring_does_not_wait_for_what_has_ended_or_for_a_file_that_does_not_come(
    spec: ModelSpec,
) -> None:
    for states in ({"data": "success"}, {"data": "failed"}, {"await_partition": "deferred", "data": None},
                   {"data": "up_for_retry"}):  # fmt: skip
        assert not awaits(spec, {run_id(DAY, "scheduled"): states})
    assert awaits(spec, {run_id(DAY, "scheduled"): {"await_partition": "success", "data": None}})


def test_monitoring_waits_until_what_was_published_just_now_is_scored(spec: ModelSpec) -> None:
    assert not awaits(spec, scoring=1)  # of other partitions
    manifests.write(manifests.Manifest("m", "data", DAY, {}, {}), 0)
    assert awaits(spec) and awaits(spec, scoring=1)
    manifests.write(manifests.Manifest("m", "score", DAY, {}, {}), 0)
    assert not awaits(spec)
    Path(manifests.uri("m", "score", DAY)).unlink()
    earlier = (datetime.now(UTC) - 2 * earlier_runs.EVENT_DELAY).timestamp()
    os.utime(manifests.uri("m", "data", DAY), (earlier, earlier))
    assert not awaits(spec)  # its event was lost, or there is no champion
