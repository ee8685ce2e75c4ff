"""A small model with its landing area and lake, and fixtures of it, for the tests of the data step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.spec.model_spec import ModelSpec
from perennial.steps.data import data
from perennial.storage import delta_tables
from support import lake

DAY = "2020-03-01"
COLUMNS = {
    "id": "string", "at": "timestamp", "amount": "number", "count": "integer", "kind": "string", "ok": "boolean",
    "on": "date", "phone": "string",
}  # fmt: skip
SUITE: list[dict[str, Any]] = [
    {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 2}, "meta": {}},
    {"type": "expect_column_values_to_be_between", "kwargs": {"column": "amount", "min_value": 0}, "meta": {}},
    {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "kind", "value_set": ["a", "b"]}, "meta": {},
     "severity": "warning"},
]  # fmt: skip


def rows(day: str = DAY, n: int = 40, **changes: Any) -> pa.Table:
    """A partition of ``n`` rows; ``changes`` replaces columns (by a list or an array), or omits one (None)."""
    import datetime as dt

    date = dt.date.fromisoformat(day)
    columns: dict[str, Any] = {
        "id": [f"{day}-{i}" for i in range(n)],
        "at": pa.array([dt.datetime.combine(date, dt.time(i % 24)) for i in range(n)], pa.timestamp("us")),
        "amount": [float(i) for i in range(n)],
        "count": pa.array(range(n), pa.int32()),
        "kind": ["a" if i % 2 else "b" for i in range(n)],
        "ok": [i % 3 == 0 for i in range(n)],
        "on": [date] * n,
        "phone": [f"+49 170 000{i:03d}" for i in range(n)],
    }
    return pa.table({k: v for k, v in (columns | changes).items() if v is not None})


class SmallModel:
    """One model, where its files land, and its lake."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.landing, self.lake = folder, folder / "landing", folder / "lake"
        self.suite: list[dict[str, Any]] = SUITE
        self.changes: dict[str, Any] = {}
        self.label: dict[str, Any] = {
            "source": "{landing}/labels/{date}.parquet", "columns": {"id": "string", "value": "number"},
            "expression": "value > 1", "arrives_after": "1 day",
        }  # fmt: skip
        self.columns = dict(COLUMNS)
        self.task, self.group, self.start = "binary", "", "2020-01-01"

    @property
    def spec(self) -> ModelSpec:
        """The model as it is set up."""
        section = {
            "source": "{landing}/rows/{date}.parquet", "key": ["id"], "event_time": "at", "columns": self.columns,
            "personal": ["phone"] if "phone" in self.columns else [], "quarantine_limit": 0.25,
        } | self.changes  # fmt: skip
        spec = ModelSpec.model_validate({
            "name": "small", "task": self.task, "group": self.group or None, "owner": "tests",
            "description": "For tests.", "data": section,
            "label": self.label, "schedule": {"start": self.start},
        })  # fmt: skip
        spec._suite = json.dumps({"name": "small", "expectations": self.suite, "meta": {}}, indent=1)
        return spec

    def land(
        self, content: pa.Table | bytes | str, day: str = DAY, feed: str = "rows", ending: str = "parquet"
    ) -> Path:
        """Put one file where the feed would."""
        path = self.landing / feed / f"{day}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, "utf-8")
        return path

    def run(self, start: str = DAY, end: str | None = None, **options: Any) -> dict[str, Any]:
        """Run the step."""
        return data(self.spec, start=start, end=end, **options)

    def table(self, kind: str = "published", order: str = "id") -> list[dict[str, Any]]:
        """The rows of a table of the lake, in order."""
        table = lake.find_table(delta_tables.table_uri(kind, "small"))
        rows = table.to_pylist() if table is not None else []
        return sorted(rows, key=lambda r: (r["partition_date"], str(r.get(order))))

    def reasons(self) -> list[str]:
        """All reasons in quarantine."""
        return sorted({reason for row in self.table("quarantine") for reason in row["reasons"]})

    def report(self, day: str = DAY, ending: str = "html", kind: str = "validation") -> str:
        """A report of one date."""
        return (self.lake / "reports" / "small" / kind / f"{day}.{ending}").read_text("utf-8")


@pytest.fixture
def small_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_data_profile: None
) -> Iterator[SmallModel]:
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("PERENNIAL_LANDING", str(tmp_path / "landing"))
    for name in ("PERENNIAL_MEMORY_MB", "PERENNIAL_MODELS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    yield SmallModel(tmp_path)


@pytest.fixture
def make_rows() -> Callable[..., pa.Table]:
    return rows
