"""`retraining.mode: approval` in a real Airflow: a person says yes, a person says no, nobody says anything in time."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perennial.core import dates
from perennial.lifecycle import retraining
from perennial.local_stack.airflow_client import DONE
from perennial.local_stack.config import environment
from perennial.modeling import registry
from perennial.steps.promote import promote
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import toys
from support.live import PLAN, Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME, TASK = "toy_approval", "approve_retraining"
MONITOR, TRAIN = f"{NAME}.monitor", f"{NAME}.train"
DAYS = dates.dates(dates.add_days(PLAN.trained_until, 2), toys.LAST)


@pytest.fixture
def waiting(live: Live, champion: Any) -> Any:
    """Runs the monitoring of the next date on which a retraining is proposed, until a person is asked; returns it."""
    champion(NAME)

    def run() -> tuple[str, str]:
        asked = {r["partition"] for r in ledger.records(NAME, LedgerKind.RETRAINING)}
        trained = max(r["partition"] for r in ledger.records(NAME, LedgerKind.TRAINING))
        day = next(d for d in DAYS if d not in asked and d >= dates.add_days(trained, 2))
        found = live.airflow.trigger(MONITOR, key=day)
        await_(lambda: state(live, found, TASK) == "awaiting_input", 150, lambda: states(live, found))
        # no person is so quick to answer that the scheduler takes the waiting task for a killed one (airflow 72716)
        key = f"task instance TaskInstanceKey(dag_id='{MONITOR}', task_id='{TASK}', run_id='{found}'"
        log = live.config.logs / "scheduler.log"
        await_(lambda: f"executor event with state success for {key}" in log.read_text(), 60, lambda: key)
        return day, found

    return run


def states(live: Live, run: str) -> dict[str, str]:
    return {t["task_id"]: t["state"] for t in live.airflow.tasks(MONITOR, run)}


def state(live: Live, run: str, task: str) -> str | None:
    return states(live, run).get(task)


def question(run: str) -> str:
    return f"/dags/{MONITOR}/dagRuns/{run}/taskInstances/{TASK}/-1/hitlDetails"


def answer(live: Live, run: str, option: str, **fields: str) -> None:
    live.airflow.call("PATCH", question(run), json={"chosen_options": [option], "params_input": fields})


def ended(live: Live, run: str) -> dict[str, str]:
    """The states of the run's tasks, once it is over."""

    def over() -> bool:
        return next(r for r in live.airflow.runs(MONITOR) if r["dag_run_id"] == run)["state"] in DONE

    await_(over, 120, lambda: states(live, run))
    return states(live, run)


def decisions(day: str) -> list[tuple[str, str]]:
    return [
        (r["decision"], r["actor"])
        for r in ledger.records(NAME, LedgerKind.RETRAINING)
        if r["partition"] == day
    ]


def test_a_no_starts_nothing(live: Live, waiting: Any) -> None:
    day, run = waiting()
    asked = live.airflow.call("GET", question(run))
    assert (asked["subject"], asked["options"]) == (f"Retrain {NAME}?", ["Approve", "Reject"])
    assert asked["body"].startswith(
        f"As of **{day}**: age: the champion was trained on data up to 2024-01-12"
    )
    assert f"/perennial/reports/{NAME}/monitor/{day}.html)" in asked["body"]
    (message,) = [t for t in live.messages if t.get("answer_at") and t["partition"] == day]
    assert f"/runs/{run}/tasks/{TASK}/required_actions" in message["answer_at"]
    assert asked["params"]["reason"]["schema"]["maxLength"] == 500
    answer(live, run, "Reject", reason="the season is over")
    assert ended(live, run)["request_retraining"] == "skipped"
    assert decisions(day) == [("proposed", "retraining policy"), ("declined", "admin")]
    declined = ledger.records(NAME, LedgerKind.RETRAINING)[-1]
    assert declined["reason"].startswith("rejected by admin: the season is over (age: ")
    assert live.runs_of(TRAIN, day) == []
    await_(lambda: [t for t in live.messages if t.get("decision") == "declined"], 60, lambda: live.messages)
    (message,) = [t for t in live.messages if t.get("decision") == "declined"]
    assert (message["title"], message["actor"]) == (f"{NAME}: retraining declined, partition {day}", "admin")
    assert message["reason"].startswith("rejected by admin: the season is over (age: ")
    # after a rerun the first answer still counts, and nobody is asked a second time
    live.airflow.call(
        "POST", f"/dags/{MONITOR}/clearTaskInstances", json={"dry_run": False, "dag_run_id": run,
        "task_ids": [TASK], "include_downstream": True, "only_failed": False, "reset_dag_runs": True},
    )  # fmt: skip
    await_(lambda: state(live, run, TASK) == "skipped", 60, lambda: states(live, run))
    assert ended(live, run)["request_retraining"] == "skipped"
    assert len(decisions(day)) == 2 and live.runs_of(TRAIN, day) == []


def test_no_answer_in_time_is_a_no(live: Live, waiting: Any) -> None:
    """The hours are over because the test turns them back in Airflow's database; the rest is the scheduler's."""
    day, run = waiting()
    past = (datetime.now(UTC) - timedelta(seconds=5)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with (
        closing(sqlite3.connect(live.config.home / "airflow" / "airflow.db", timeout=30)) as database,
        database,
    ):
        changed = database.execute(
            "UPDATE task_instance SET trigger_timeout = ? WHERE run_id = ? AND task_id = ?", (past, run, TASK)
        )
        assert changed.rowcount == 1
    assert ended(live, run)["request_retraining"] == "skipped"
    assert live.airflow.call("GET", question(run))["responded_by_user"] is None
    assert decisions(day)[-1] == ("declined", retraining.NO_ANSWER)
    assert live.runs_of(TRAIN, day) == []


def test_a_yes_starts_the_training_and_the_next_nights_do_not_wait_for_it(live: Live, waiting: Any) -> None:
    day, run = waiting()
    after = dates.add_days(day, 1)
    meanwhile = live.airflow.trigger(MONITOR, key=after)
    assert ended(live, meanwhile)["request_retraining"] == "skipped"
    (left,) = [r for r in ledger.records(NAME, LedgerKind.RETRAINING) if r["partition"] == after]
    assert left["decision"] == "declined"
    assert left["reason"].startswith(f"the retraining proposed on {day} waits for an answer")
    answer(live, run, "Approve")
    assert ended(live, run)["request_retraining"] == "success"
    assert decisions(day) == [("proposed", "retraining policy"), ("requested", "admin")]
    await_(lambda: manifests.read(NAME, "train", day), 120, lambda: live.airflow.runs(TRAIN))
    (training,) = live.runs_of(TRAIN, day)
    path = f"/dags/{TRAIN}/dagRuns/{training['dag_run_id']}/upstreamAssetEvents"
    (event,) = live.airflow.call("GET", path)["asset_events"]
    assert event["name"] == f"retraining/{NAME}" and event["partition_key"] == day
    assert event["extra"]["reason"].startswith("approved by admin (age: ")


def test_a_version_becomes_champion_once_a_person_has_approved_it(live: Live) -> None:
    name, task = "toy_promotion", "approve_promotion"
    spec, dag = live.others[name], f"{name}.train"
    toys.publish(spec)
    # not by the REST API, as its user: who requests a training must not approve its version
    run = f"by_{name}"
    request = json.dumps({"as_of": toys.LAST, "reason": "the first model"})
    subprocess.run(
        [sys.executable, "-m", "airflow", "dags", "trigger", dag, "--run-id", run, "--conf", request],
        env={**os.environ, **environment(live.config)}, check=True, capture_output=True, timeout=120,
    )  # fmt: skip

    def of_run() -> dict[str, str]:
        return {t["task_id"]: t["state"] for t in live.airflow.tasks(dag, run)}

    await_(lambda: of_run().get(task) == "awaiting_input", 150, of_run)
    assert promote(spec, as_of=toys.LAST, actor="test")["reason"].endswith("waits for the approval of admin")
    details = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"
    asked = live.airflow.call("GET", details)
    assert "Version 1 was trained as of" in asked["body"] and "page of the version](" in asked["body"]
    answered = {"chosen_options": ["Approve"], "params_input": {"reason": "looks right"}}
    live.airflow.call("PATCH", details, json=answered)
    await_(lambda: of_run().get("promote") == "success", 120, of_run)
    assert registry.get_version_by_alias(name) is not None
    (approval,) = ledger.records(name, LedgerKind.APPROVAL)
    assert (approval["decision"], approval["actor"]) == ("approved", "admin")
    assert approval["reason"] == "approved by admin: looks right"
    assert approval["evidence"]["requested_by"] not in ("", "admin")
