"""Sample files, and models created from them without questions."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perennial.cli.check import preflight
from perennial.cli.new import wizard
from perennial.cli.new.wizard import GivenAnswers
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch


def make(name: str, paths: list[Path], **answers: Any) -> ModelSpec:
    """Create a model without questions, and check it."""
    wizard.create_model_folder(name, paths, GivenAnswers(**answers), ask=False)
    (report,) = preflight.check([name])
    assert report.problems == []
    assert report.features
    return catalog.load_model_by_name(name)


def publishes(spec: ModelSpec, first: str, last: str, rows: int) -> dict[str, Any]:
    result = dispatch.run("data", spec, start=first, end=last)
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (rows, rows, 0)
    assert result["labels"] == rows
    return result


def table(n: int = 60, days: int = 3, **more: Any) -> pa.Table:
    start = dt.datetime(2024, 1, 1, 12)
    columns: dict[str, Any] = {
        "order_id": [f"o-{i}" for i in range(n)],
        "ordered_at": [start + dt.timedelta(days=i % days, minutes=i) for i in range(n)],
        "amount": [i / 7 for i in range(n)],
        "shop": ["north", "south", "east"] * (n // 3),
    }
    return pa.table(columns | more)


def write(path: Path, rows: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)
    return path
