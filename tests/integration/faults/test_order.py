"""Partitions that are published in any order, by several runs at once, have the content of an ordered backfill."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.storage import manifests
from support import processes, small_model
from support.small_model import DAY, SmallModel

DAYS = dates.dates(DAY, dates.add_days(DAY, 59))


def land_history(model: SmallModel) -> None:
    """Land 60 partitions with labels five days later: bad rows and labels, unknown keys, gaps, a stopped partition."""
    model.label = model.label | {"arrives_after": "5 days"}
    for i, day in enumerate(DAYS):
        amounts = [float(n) for n in range(20)]
        if i % 3 == 0:
            amounts[i % 20] = -1.0
        if i == 17:
            amounts = [-1.0] * 20  # stopped
        if i != 31:
            model.land(small_model.rows(day, n=20, amount=amounts), day)
        ids = [f"{day}-{n}" for n in range(20)]
        if i % 4 == 0:
            ids[7] = "nobody"
        values: list[float | None] = [n / 10 for n in range(20)]
        if i % 5 == 0:
            values[3] = float("inf")
        if i != 22:
            model.land(pa.table({"id": pa.array(ids), "value": values}), day, "labels")


def content(model: SmallModel) -> dict[str, Any]:
    """Tables and manifests of the lake, without what differs from run to run."""
    tables = {kind: model.table(kind) for kind in ("published", "labels", "quarantine")}
    for rows in tables.values():
        rows.sort(key=lambda r: json.dumps(r, default=str, sort_keys=True))
        for row in rows:
            row.pop("run_id", None)
    recorded: dict[str, dict[str, Any]] = {"data": {}, "labels": {}}
    for step, of_step in recorded.items():
        for day in DAYS:
            if manifest := manifests.read("small", step, day):
                result = {k: v for k, v in manifest.result.items() if "version" not in k and k != "docs"}
                counts = {k: asdict(manifest)[k] for k in ("inputs", "rows_in", "rows_out", "quarantined")}
                of_step[day] = counts | {"result": result}
    return {f"{kind}_table": rows for kind, rows in tables.items()} | recorded


def test_a_shuffled_parallel_backfill_has_the_content_of_an_ordered_one(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_history(small_model)
    small_model.changes = {"quarantine_limit": 0.25}
    # an infinite value is a label that goes to quarantine
    small_model.label |= {"expression": "CASE WHEN isinf(value) THEN value ELSE (value > 1)::DOUBLE END"}
    with pytest.raises(DataError, match=r"2 of 60 partitions"):
        small_model.run(DAYS[0], DAYS[-1])
    ordered = content(small_model)
    assert len(ordered["data"]) == 58
    due = {r["partition_date"] for r in ordered["labels_table"]}
    assert due == set(ordered["labels"]) == set(DAYS[:55]) - {DAYS[22]}, (
        "also with partitions that were not published"
    )

    small_model.lake = small_model.folder / "shuffled"
    monkeypatch.setenv("PERENNIAL_LAKE", str(small_model.lake))
    shuffled = random.Random(7).sample(DAYS, len(DAYS))
    spec = small_model.spec
    runs = [
        processes.start(processes.data_steps, spec.model_dump_json(), spec.suite, tuple(shuffled[i::4]))
        for i in range(4)
    ]
    assert processes.wait(*runs) == [0] * 4
    assert content(small_model) == ordered
