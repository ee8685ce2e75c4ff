"""What operators do with runs of a real Airflow: clear failed ones, open reports of stopped ones, mistype, backfill."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.local_stack.airflow_client import DONE
from perennial.local_stack.config import environment
from perennial.storage import landing, ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import toys
from support.live import FEEDS, PLAN, Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_runs"
DATA, SCORE, TRAIN, MONITOR, ROLLBACK = (
    f"{NAME}.{stage}" for stage in ("data", "score", "train", "monitor", "rollback")
)


def run_of(live: Live, dag: str, run: str) -> dict[str, Any]:
    answer: dict[str, Any] = live.airflow.call("GET", f"/dags/{dag}/dagRuns/{run}")
    return answer


def ended(live: Live, dag: str, run: str) -> str:
    """The state of a run, once it is over."""

    def over() -> str:
        state = str(run_of(live, dag, run)["state"])
        return state if state in DONE else ""

    return str(await_(over, 150, lambda: live.airflow.tasks(dag, run)))


def clear_run(live: Live, dag: str, run: str) -> None:
    """As the button of a run does; a refusal is an error."""
    body = {"dry_run": False, "only_failed": False}
    live.airflow.call("POST", f"/dags/{dag}/dagRuns/{run}/clear", json=body)


def clear_tasks(live: Live, dag: str, run: str) -> None:
    """As the button of a task does."""
    body = {"dry_run": False, "dag_run_id": run, "only_failed": True, "reset_dag_runs": True}
    live.airflow.call("POST", f"/dags/{dag}/clearTaskInstances", json=body)


def begun(live: Live, dag: str, run: str) -> dict[str, int]:
    """How often each task of a run began."""
    return {t["task_id"]: int(t["try_number"]) for t in live.airflow.tasks(dag, run)}


@pytest.mark.parametrize("clear", [clear_run, clear_tasks])
def test_a_failed_run_of_every_dag_can_be_cleared(live: Live, clear: Any) -> None:
    dags = sorted(live.airflow.paused())
    assert {DATA, SCORE, TRAIN, MONITOR, ROLLBACK, "perennial.verify", "perennial.daily_summary"} < set(dags)
    for dag in dags:
        run = f"clear__{uuid.uuid4().hex[:8]}"
        # it is never due, so that it stays as it is put
        body: dict[str, Any] = {
            "dag_run_id": run, "logical_date": None, "run_after": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
        }  # fmt: skip
        if dag.endswith(".rollback"):
            body["conf"] = {"reason": "to be cleared"}
        elif dag == "perennial.erase":
            body["conf"] = {"model": NAME, "request": "0" * 16}
        elif not dag.startswith("perennial."):
            model = dag.rpartition(".")[0]
            body["partition_key"] = FEEDS[model].first if model in FEEDS else toys.FIRST
        live.airflow.call("POST", f"/dags/{dag}/dagRuns", json=body)
        live.airflow.call("PATCH", f"/dags/{dag}/dagRuns/{run}", json={"state": "failed"})
        assert run_of(live, dag, run)["state"] == "failed"
        if clear is clear_tasks:  # none of them has failed
            body = {"dry_run": False, "dag_run_id": run, "only_failed": False, "reset_dag_runs": True}
            live.airflow.call("POST", f"/dags/{dag}/clearTaskInstances", json=body)
        else:
            clear(live, dag, run)
        assert run_of(live, dag, run)["state"] == "queued", dag
        live.airflow.call("DELETE", f"/dags/{dag}/dagRuns/{run}")


def test_a_cleared_run_runs_again(live: Live) -> None:
    spec = live.others[NAME]
    fails = {
        DATA: live.airflow.trigger(DATA, key=toys.FIRST),  # nothing has landed
        TRAIN: live.airflow.trigger(TRAIN, key=toys.FIRST),  # nothing is published
        SCORE: live.airflow.trigger(SCORE, key=toys.FIRST),
        MONITOR: live.airflow.trigger(MONITOR, key=toys.FIRST),
    }
    states = {dag: ended(live, dag, run) for dag, run in fails.items()}
    assert {DATA, TRAIN} <= {dag for dag, state in states.items() if state == "failed"}, states
    before = {dag: begun(live, dag, run) for dag, run in fails.items()}
    toys.land(spec, toys.FIRST, 1)
    for dag, run in fails.items():
        (clear_tasks if dag == TRAIN else clear_run)(live, dag, run)
        states[dag] = ended(live, dag, run)
        task = dag.rpartition(".")[2]
        assert begun(live, dag, run)[task] > before[dag][task], dag
    assert states[DATA] == "success" and manifests.read(NAME, "data", toys.FIRST)


def fetch(live: Live, address: str) -> httpx.Response:
    """A page of the UI, for the client's user."""
    headers = {"Authorization": live.airflow._http.headers["Authorization"]}
    return httpx.get(address, headers=headers, trust_env=False, timeout=30)


def links(live: Live, dag: str, run: str, task: str) -> dict[str, str]:
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/links"
    return dict(live.airflow.call("GET", path)["extra_links"])


def test_the_report_of_a_stopped_partition_is_behind_its_button(live: Live) -> None:
    spec, day = live.others[NAME], dates.add_days(toys.FIRST, 2)
    toys.land(spec, day, 2)
    rows = toys.rows(spec.task, day)
    too_large = pa.array([99.0] * len(rows))
    toys.write(
        landing.source_uri(spec.data.source, day),
        rows.set_column(rows.schema.get_field_index("x"), "x", too_large),
    )
    run = live.airflow.trigger(DATA, key=day)
    assert ended(live, DATA, run) == "failed"
    buttons = links(live, DATA, run, "data")
    page = fetch(live, buttons["Report"])
    assert page.status_code == 200 and f"Partition {day} was stopped: nothing was published." in page.text
    assert f"validation/{day}.html" in fetch(live, buttons["All reports"]).text
    # a range, of which one partition is stopped
    end = dates.add_days(day, 1)
    run = live.airflow.trigger(DATA, conf={"start": day, "end": end})
    assert ended(live, DATA, run) == "failed"
    listed = fetch(live, links(live, DATA, run, "data")["Report"]).text
    assert f"validation/{day}.html" in listed and f"validation/{end}.html" in listed
    assert toys.FIRST not in listed


@pytest.mark.parametrize(
    ("path", "body", "cause"),
    [
        (f"/dags/{DATA}/dagRuns", {"logical_date": None, "conf": {"strat": toys.FIRST}},
         "no field 'strat' (did you mean 'start'?)"),
        (f"/dags/{ROLLBACK}/dagRuns", {"logical_date": None, "conf": {"reason": "   "}}, "reason"),
        ("/dags/perennial.verify/dagRuns", {"logical_date": None, "conf": {"model": NAME}}, "it has no fields"),
        ("/backfills", {"dag_id": MONITOR, "dag_run_conf": {"as_of": toys.FIRST}}, "leave as_of empty"),
        ("/backfills/dry_run", {"dag_id": DATA, "dag_run_conf": {"force": True, "date": toys.FIRST}},
         "no field 'date'"),
    ],
)  # fmt: skip
def test_what_could_only_fail_is_refused(live: Live, path: str, body: dict[str, Any], cause: str) -> None:
    if path.startswith("/backfills"):
        body |= {"from_date": f"{toys.FIRST}T00:00:00Z", "to_date": f"{toys.FIRST}T00:00:00Z"}
    with pytest.raises(PerennialError) as refused:
        live.airflow.call("POST", path, json=body)
    assert "(400)" in str(refused.value) and cause in str(refused.value)


def test_what_the_command_line_lets_in_ends_at_its_first_task(live: Live) -> None:
    run = "mistyped"
    words = ["dags", "trigger", DATA, "--run-id", run, "--conf", json.dumps({"strat": toys.FIRST})]
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *words],
        env=environment(live.config), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert ended(live, DATA, run) == "failed"
    reason = live.airflow.failure_reason(DATA, run)
    assert "no field 'strat' (did you mean 'start'?)" in reason and "start, end, force" in reason
    assert begun(live, DATA, run) == {"data": 1}


def test_a_backfill_of_monitoring_goes_in_the_order_of_its_partitions(live: Live, champion: Any) -> None:
    champion(NAME)
    days = dates.dates(dates.add_days(PLAN.trained_until, 1), dates.add_days(PLAN.trained_until, 4))
    conf = {"as_of": None, "force": False}  # what the form of the UI sends
    live.airflow.call(
        "POST", "/backfills", json={
            "dag_id": MONITOR, "from_date": f"{days[0]}T00:00:00Z", "to_date": f"{days[-1]}T00:00:00Z",
            "max_active_runs": len(days), "reprocess_behavior": "none", "dag_run_conf": conf,
        },
    )  # fmt: skip

    def runs() -> list[dict[str, Any]]:
        return [r for day in days for r in live.runs_of(MONITOR, day) if r["run_type"] == "backfill"]

    await_(lambda: len(runs()) == len(days) and all(r["state"] in DONE for r in runs()), 240, runs)
    assert [r["state"] for r in runs()] == ["success"] * len(days)
    starts = [datetime.fromisoformat(r["start_date"]) for r in runs()]
    tasks = [{t["task_id"]: t for t in live.airflow.tasks(MONITOR, r["dag_run_id"])} for r in runs()]
    ends = [
        max(datetime.fromisoformat(t[name]["end_date"]) for name in ("monitor", "decide", "notify"))
        for t in tasks
    ]
    assert max(starts) < min(ends), "the runs were not active at the same time: nothing is tested"
    written = [
        datetime.fromtimestamp(Path(manifests.uri(NAME, "monitor", day)).stat().st_mtime, UTC) for day in days
    ]
    for day, (end, next_verdict) in zip(days, zip(ends, written[1:], strict=False), strict=False):
        assert next_verdict > end, f"the verdict after {day} did not wait for what follows from it"
    decisions = [r for r in ledger.records(NAME, LedgerKind.RETRAINING) if r["partition"] in days]
    assert [r["partition"] for r in decisions] == days
    assert {(r["actor"], r["evidence"]["triggered_by"]) for r in decisions} == {
        ("retraining policy", "admin")
    }
