"""A backfill whose runs go backwards, several at a time and among others, has the content of one ordered run."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import landing, manifests
from support import toys
from support.live import Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_backfill"
DAG = f"{NAME}.data"
#: Few, since each run takes Airflow a second or more; `tests/integration/faults/test_order.py` publishes 60.
DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 23))
#: Days that are run by hand, in this order, while the backfill starts at the other end.
BY_HAND = random.Random(0).sample(DAYS, 8)


def land(spec: ModelSpec) -> None:
    """Land all days; some rows and some labels belong into quarantine, and some labels come without rows."""
    toys.land(spec, days=len(DAYS))
    for n, day in enumerate(DAYS):
        if n % 3 == 0:
            rows = toys.rows(spec.task, day).to_pylist()
            rows[n] |= {"x": 99.0}  # the suite allows 50
            toys.write(landing.source_uri(spec.data.source, day), pa.Table.from_pylist(rows))
        if n % 4 == 0:
            labels = toys.labels(spec.task, toys.rows(spec.task, day)).to_pylist()
            labels[n] |= {"y": 2}
            labels.append({"id": f"nobody {day}", "y": 1})
            toys.write(landing.source_uri(spec.label.source or "", day), pa.Table.from_pylist(labels))


def content() -> dict[str, Any]:
    """The tables and manifests, without what differs from run to run."""
    found: dict[str, Any] = {
        kind: toys.content_of(kind, NAME) for kind in ("published", "labels", "quarantine")
    }
    for step in ("data", "labels"):
        records = {day: manifests.read(NAME, step, day) for day in DAYS}
        found[f"{step} manifests"] = {
            d: (m.inputs, m.rows_in, m.rows_out, m.quarantined) for d, m in records.items() if m
        }
    return found


def test_a_parallel_backfill_in_reverse_among_other_runs_has_the_content_of_an_ordered_one(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    spec = live.others[NAME]
    land(spec)
    live.airflow.unpause(DAG)
    for day in BY_HAND:
        live.airflow.trigger(DAG, key=day)
    request = {
        "dag_id": DAG,
        "from_date": f"{DAYS[0]}T00:00:00Z",
        "to_date": f"{DAYS[-1]}T00:00:00Z",
        "run_backwards": True,
        "max_active_runs": 6,
        "reprocess_behavior": "none",
        "dag_run_conf": {},
    }
    live.airflow.call("POST", "/backfills", json=request)

    def ended() -> bool:
        runs = live.airflow.runs(DAG)
        assert all(run["state"] != "failed" for run in runs), live.airflow.failure_reason(
            DAG, runs[0]["dag_run_id"]
        )
        keys = {run["partition_key"] for run in runs}
        return keys == set(DAYS) and all(run["state"] == "success" for run in runs)

    await_(ended, 300, lambda: live.airflow.runs(DAG))
    parallel = content()
    bad_rows, bad_labels = len(DAYS[::3]), len(DAYS[:-1][::4])
    assert len(parallel["published"]) == len(DAYS) * toys.ROWS - bad_rows
    # Labels come a day late; those that wait for a row are kept, too.
    assert len(parallel["labels"]) == (len(DAYS) - 1) * toys.ROWS
    quarantined = Counter((r["feed"], r["feed_date"]) for r in parallel["quarantine"])
    assert quarantined == dict.fromkeys(
        [*(("rows", day) for day in DAYS[::3]), *(("labels", day) for day in DAYS[:-1][::4])], 1
    )
    assert len(parallel["quarantine"]) == bad_rows + bad_labels
    monkeypatch.setenv("PERENNIAL_LAKE", str(tmp_path / "ordered"))
    dispatch.run("data", spec, start=DAYS[0], end=DAYS[-1])
    assert content() == parallel
