"""Drift, its verdict, the retraining, its promotion and the scores of the new champion, through a real Airflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import landing, ledger, manifests
from perennial.storage.ledger import LedgerKind
from perennial.storage.manifests import Manifest
from support import toys
from support.live import Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_drift"
#: Rows of each night.
ROWS = 200
TRAINED_UNTIL = dates.add_days(toys.FIRST, 15)
#: The nights that drift, and the one that the new champion scores first.
DRIFTED = [dates.add_days(TRAINED_UNTIL, n) for n in range(1, 11)]
MONITORED, NEXT = DRIFTED[-1], dates.add_days(DRIFTED[-1], 1)


def night(spec: ModelSpec, day: str) -> tuple[pa.Table, dict[str, int]]:
    """Rows and their labels by id; from the change on, ``x`` is three times as wide and the labels are the opposite.

    A fifth of the labels is wrong: otherwise the first champion would be so sure of itself that no correction of it
    could be learned from few rows.
    """
    rows = toys.rows(spec.task, day, ROWS)
    y = toys.labels(spec.task, rows)["y"].to_numpy()
    wrong = np.random.default_rng(int(day.replace("-", "")) + 1).random(ROWS) < 0.2
    changed = day > TRAINED_UNTIL
    if changed:
        wide = pa.array(np.round(rows["x"].to_numpy() * 3, 6))
        rows = rows.set_column(rows.column_names.index("x"), "x", wide)
    labels = (y + wrong + changed) % 2
    return rows, dict(zip(rows["id"].to_pylist(), labels.tolist(), strict=True))


def land(spec: ModelSpec, days: list[str]) -> None:
    toys.write(landing.source_uri(spec.references[0].source), toys.places())
    for day in days:
        rows, labels = night(spec, day)
        toys.write(landing.source_uri(spec.data.source, day), rows)
        table = pa.table({"id": list(labels), "y": list(labels.values())})
        toys.write(landing.source_uri(spec.label.source or "", day), table)


def finish(live: Live, stage: str, run: str) -> None:
    """Wait for the end of a run, which succeeds."""
    dag = f"{NAME}.{stage}"
    assert live.airflow.wait(dag, run) == "success", live.airflow.failure_reason(dag, run)


def manifest(step: str, day: str) -> Manifest:
    found = manifests.read(NAME, step, day)
    assert found is not None, (step, day)
    return found


def started_by_event(live: Live, stage: str, day: str) -> dict[str, Any]:
    """The run of a DAG that an asset's event started for a partition, once it has ended well."""

    def ended() -> bool:
        runs = live.runs_of(f"{NAME}.{stage}", day)
        assert all(run["state"] != "failed" for run in runs), runs
        return any(run["state"] == "success" for run in runs)

    await_(ended, 200, lambda: live.airflow.runs(f"{NAME}.{stage}"))
    (run,) = live.runs_of(f"{NAME}.{stage}", day)
    return run


def test_drift_leads_to_a_retraining_and_the_new_champion_scores_the_next_night(live: Live) -> None:
    spec = live.others[NAME]
    land(spec, dates.dates(toys.FIRST, NEXT))
    dispatch.run("data", spec, start=toys.FIRST, end=TRAINED_UNTIL)
    dispatch.run("train", spec, as_of=TRAINED_UNTIL)
    assert dispatch.run("promote", spec, as_of=TRAINED_UNTIL, actor="test")["promoted"]
    for stage in ("score", "train"):  # which events start
        live.airflow.unpause(f"{NAME}.{stage}")

    conf = {"start": DRIFTED[0], "end": MONITORED}
    finish(live, "data", live.airflow.trigger(f"{NAME}.data", conf=conf))
    finish(live, "monitor", live.airflow.trigger(f"{NAME}.monitor", key=MONITORED))
    verdict = manifest("monitor", MONITORED).result
    assert (verdict["verdict"], verdict["model_version"]) == ("drifted", "1")
    assert "x" in verdict["drifted"] and "in 3 of the last 3 verdicts" in verdict["reason"]
    (decision,) = ledger.records(NAME, LedgerKind.RETRAINING)
    assert (decision["decision"], decision["partition"]) == ("requested", MONITORED)
    assert decision["evidence"]["triggers"] == ["drift", "gain", "performance"]
    assert decision["evidence"]["since"] in DRIFTED

    run = started_by_event(live, "train", MONITORED)
    path = f"/dags/{NAME}.train/dagRuns/{run['dag_run_id']}/upstreamAssetEvents"
    (event,) = live.airflow.call("GET", path)["asset_events"]
    assert (event["name"], event["extra"]["reason"]) == (f"retraining/{NAME}", decision["reason"])
    training = ledger.records(NAME, LedgerKind.TRAINING)[-1]
    assert training["evidence"]["request"]["reason"] == decision["reason"]
    gate = manifest("train", MONITORED).result["gate"]
    assert gate["champion"] == "1" and gate["against_champion"]["low"] > 0.3
    promotions = ledger.records(NAME, LedgerKind.PROMOTION)
    assert [(r["model_version"], r["partition"]) for r in promotions] == [
        ("1", TRAINED_UNTIL),
        ("2", MONITORED),
    ]

    finish(live, "data", live.airflow.trigger(f"{NAME}.data", key=NEXT))
    started_by_event(live, "score", NEXT)
    scored = manifest("score", NEXT)
    assert (scored.model_version, scored.rows_out) == ("2", ROWS)
    predictions = [r for r in toys.content_of("predictions", NAME) if r["partition_date"] == NEXT]
    assert {r["model_version"] for r in predictions} == {"2"}
    labels = night(spec, NEXT)[1]
    right = [(r["prediction"] > 0.5) == labels[r["id"]] for r in predictions]
    # 0.8 of the labels are right; with the first champion, 0.2 of the predictions would be
    assert len(right) == ROWS and np.mean(right) > 0.65
