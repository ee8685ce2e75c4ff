"""A small model folder of any task type, and its data: few columns, sixty rows a day."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from perennial.core import dates
from perennial.core.partitions import cadence_of
from perennial.core.settings import settings
from perennial.ingestion import table_definitions
from perennial.spec.catalog import load_model
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, landing, object_store
from support import lake

if TYPE_CHECKING:
    import pytest

FIRST = "2024-01-01"
DAYS = 20
LAST = dates.add_days(FIRST, DAYS - 1)
ROWS = 60

SQL = """-- each row is joined to the latest observation of its place at that time
SELECT rows.id, x, z, k, hour(seen_at) AS hour, places.size
FROM rows ASOF LEFT JOIN places ON rows.place = places.place AND places.known_at <= rows.seen_at
"""
SUITE = {
    "name": "toy",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "id"}, "meta": {}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "x", "max_value": 50}, "meta": {}},
        {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1, "max_value": 10_000}, "meta": {}},
    ],
}  # fmt: skip
#: Signals alone lead to a retraining, of one model unless a change is known: most tests are about something else.
SIGNALS_ONLY = {"triggers": ["gain", "performance", "drift"], "windows": ["sliding", "since_change"]}
LABEL_TYPES = {"binary": "integer", "multiclass": "string", "regression": "number", "ranking": "integer"}


def unique(prefix: str = "toy") -> str:
    """A model name that no other test uses: the tests share one MLflow server."""
    return f"{prefix}_{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def working_folder(folder: Path, mlflow_url: str) -> Iterator[pytest.MonkeyPatch]:
    """While the block runs, ``folder`` holds the home and the models: for what several tests copy or only read."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PERENNIAL_")]:
            patch.delenv(name)
        patch.setenv("PERENNIAL_HOME", str(folder / "home"))
        patch.setenv("PERENNIAL_MODELS", str(folder / "models"))
        patch.setenv("PERENNIAL_THREADS", "1")
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
        yield patch


def let_all_pass(patch: pytest.MonkeyPatch) -> None:
    """Let every challenger pass the gate: for tests of what happens to versions, not of the models."""
    from perennial.training import challenger_evaluation

    patch.setattr(challenger_evaluation, "gate_decision", lambda *_: (True, ["let through"]))


def forget_anchor(model: str) -> None:
    """Remove the anchor of a model's ledger from MLflow: that of another copy of the model's lake."""
    from perennial.lifecycle import ledger_anchors
    from perennial.modeling import registry

    registry.set_model_tag(model, ledger_anchors.TAG, "")


def content(name: str, task: str = "binary", **changes: Any) -> dict[str, Any]:
    """The content of ``model.yaml``; ``changes`` replace keys of its sections."""
    columns = {
        "id": "string",
        "seen_at": "timestamp",
        "x": "number",
        "z": "number",
        "k": "string",
        "place": "string",
    }
    content: dict[str, Any] = {
        "name": name, "task": task, "owner": "tests", "description": "A toy.",
        "data": {"source": f"{{landing}}/{name}/{{date}}.parquet", "key": ["id"], "event_time": "seen_at",
                 "columns": columns | ({"list": "integer"} if task == "ranking" else {})},
        "label": {"source": f"{{landing}}/{name}_labels/{{date}}.parquet",
                  "columns": {"id": "string", "y": LABEL_TYPES[task]}, "expression": "y", "arrives_after": "1 day"},
        "features": {"categorical": ["k"],
                     "references": [{"name": "places", "source": f"{{landing}}/{name}_places.parquet"}]},
        "training": {"holdout": "5 days", "rounds": 25, "early_stopping_rounds": 5, "refit": False,
                     "study_minutes": 0,
                     "params": {"max_depth": 3, "learning_rate": 0.3}},
        "gate": {"bootstrap_samples": 200},
        "monitoring": {"window": "7 days", "min_rows": 50, "report_rows": 100},
        "retraining": SIGNALS_ONLY,
        "schedule": {"start": FIRST},
    }  # fmt: skip
    if task == "ranking":
        content["group"] = "list"
    for key, value in changes.items():
        content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    return content


def model(root: Path, name: str, task: str = "binary", sql: str = SQL, **changes: Any) -> ModelSpec:
    """Write a model folder below ``root`` and load it."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(content(name, task, **changes)))
    (folder / "features.sql").write_text(sql)
    (folder / "expectations.json").write_text(json.dumps(SUITE))
    (folder / "README.md").write_text("A toy.\n")
    return load_model(folder)


def seconds(key: str) -> int:
    """The length of a partition with rows; a week has them on its first day."""
    return int((cadence_of(key).end_of(key) - cadence_of(key).start_of(key)).total_seconds())


def rows(task: str, day: str, n: int = ROWS) -> pa.Table:
    """One partition's rows, the same in every call; the label depends on whether ``x`` and ``z`` have the same sign."""
    rng = np.random.default_rng(int(re.sub(r"\D", "", day)))
    step = np.timedelta64(seconds(day) * 1_000_000 // n, "us")
    table = {
        "id": [f"{day}-{i:05d}" for i in range(n)],
        "seen_at": pa.array(np.datetime64(day, "us") + np.arange(n) * step),
        "x": np.round(rng.normal(size=n), 6), "z": np.round(rng.normal(size=n), 6),
        "k": rng.choice(["a", "b", "c"], n).tolist(), "place": rng.choice(["north", "south"], n).tolist(),
    }  # fmt: skip
    if task == "ranking":
        table["list"] = np.arange(n) // 10
    return pa.table(table)


def labels(task: str, table: pa.Table, *, shuffled: bool = False) -> pa.Table:
    """The labels of rows; ``shuffled`` permutes them."""
    x, z = table["x"].to_numpy(), table["z"].to_numpy()
    k = np.asarray(table["k"].to_pylist())
    same = (x > 0) == (z > 0)
    value: dict[str, Any] = {
        "binary": same.astype(np.int64),
        "multiclass": np.where(same, np.where(k == "a", "red", "green"), "blue"),
        "regression": np.where(same, 5.0, -5.0) + x,
        "ranking": same.astype(np.int64) * 2 + (k == "a"),
    }
    y = value[task]
    if shuffled:
        y = np.random.default_rng(7).permutation(y)
    return pa.table({"id": table["id"], "y": pa.array(y)})


def places() -> pa.Table:
    """The reference table: one observation of each place before the first day, one on the tenth."""
    known = [np.datetime64("2023-12-01", "us"), np.datetime64(dates.add_days(FIRST, 9), "us")]
    return pa.table(
        {"place": ["north", "north", "south", "south"], "known_at": known * 2, "size": [1.0, 2.0, 30.0, 40.0]}
    )


def write(uri: str, table: pa.Table) -> None:
    """Write a parquet file, in a folder or on S3."""
    if object_store.is_remote(uri):
        pq.write_table(table, uri.removeprefix("s3://"), filesystem=object_store.filesystem())
    else:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, uri)


def land(
    spec: ModelSpec, start: str = FIRST, days: int = DAYS, *, shuffled: bool = False, n: int = ROWS
) -> None:
    """Land the reference table, and each day's rows and labels, as a feed would."""
    write(landing.source_uri(spec.references[0].source), places())
    for day in spec.cadence.keys(start, spec.cadence.shift(start, days - 1)):
        table = rows(spec.task, day, n)
        write(landing.source_uri(spec.data.source, day), table)
        write(landing.source_uri(spec.label.source or "", day), labels(spec.task, table, shuffled=shuffled))


def publish(
    spec: ModelSpec, start: str = FIRST, days: int = DAYS, *, shuffled: bool = False, n: int = ROWS
) -> None:
    """Put rows and labels into the lake as the data step would, without its cost."""
    if spec.references:
        write(landing.source_uri(spec.references[0].source), places())
    whole = dates.dates(start, dates.add_days(start, days - 1))
    parts, tables = [], []
    for day in whole:
        table = rows(spec.task, day, n)
        parts.append(table.append_column(delta_tables.PARTITION, pa.array([day] * len(table))))
        y = labels(spec.task, table, shuffled=shuffled).rename_columns(["id", "label"])
        tables.append(y.append_column(delta_tables.PARTITION, pa.array([day] * len(table))))
    for kind, content in (("published", parts), ("labels", tables)):
        writer = table_definitions.writer_of(spec, kind)
        writer.replace(pa.concat_tables(content), whole[0], whole[-1])


def publish_without_labels(spec: ModelSpec, day: str) -> None:
    """Replace the labels of one partition by nulls."""
    table = rows(spec.task, day)
    y = labels(spec.task, table).rename_columns(["id", "label"])
    y = y.set_column(1, "label", pa.nulls(len(y), y.schema.field("label").type))
    y = y.append_column(delta_tables.PARTITION, pa.array([day] * len(y)))
    table_definitions.writer_of(spec, "labels").replace(y, day, day)


def content_of(
    kind: str, name: str, *, without: tuple[str, ...] = ("run_id", "scored_at")
) -> list[dict[str, Any]]:
    """The rows of a lake table in order, without the columns that differ from run to run."""
    table = lake.find_table(delta_tables.table_uri(kind, name))
    if table is None:
        return []
    table = table.select([c for c in table.column_names if c not in without])
    return sorted(table.to_pylist(), key=lambda r: (r[delta_tables.PARTITION], str(r.get("id"))))


def nothing_half_written(spec: ModelSpec) -> None:
    """Assert that no table has a part of a partition, and that no manifest is cut off."""
    for kind in ("published", "predictions"):
        counts: dict[str, int] = {}
        for row in content_of(kind, spec.name):
            counts[row[delta_tables.PARTITION]] = counts.get(row[delta_tables.PARTITION], 0) + 1
        assert set(counts.values()) <= {ROWS}, (kind, counts)
    here = settings().lake
    if not object_store.is_remote(here):
        for path in Path(here, "manifests").rglob("*.json"):
            if not path.name.startswith("."):
                json.loads(path.read_text())
