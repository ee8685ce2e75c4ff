"""Rows that are erased, or are older than a spec keeps, leave the bucket."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from perennial.core import dates
from perennial.features import feature_tables
from perennial.governance import erasure, erasure_keys, retention
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, ledger
from perennial.storage.ledger import LedgerKind
from support import lake, toys
from support.feeds import history_table

SECOND = dates.add_days(toys.FIRST, 1)


@pytest.fixture
def spec(bucket: Any, tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model with two partitions, of which the first was published twice, and a feature table of its rows."""
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    keys = {"retention": {"rows": "30 days"}, "training": {"window": "20 days"}}
    made = toys.model(tmp_path / "models", toys.unique(), **keys)
    history_table.write(tmp_path / "models", source=made.name)
    toys.publish(made, toys.FIRST, 2)
    toys.publish(made, toys.FIRST, 1, n=toys.ROWS - 1)
    feature_tables.build(catalog.load_feature_table("place_history"), SECOND)
    return made


def objects_with(bucket: Any, column: str, value: str) -> list[str]:
    """The data files of the lake that have a value in a column."""
    found = []
    for item in bucket.objects.all():
        if (
            item.key.endswith(".parquet")
            and "/landing/" not in f"/{item.key}"
            and "_delta_log" not in item.key
        ):
            content = pq.ParquetFile(io.BytesIO(item.get()["Body"].read())).read()
            if column in content.column_names and value in content[column].to_pylist():
                found.append(item.key)
    return found


def test_rows_leave_every_table_version_and_feature_table(bucket: Any, spec: ModelSpec) -> None:
    (row, *_) = toys.content_of("published", spec.name)
    before = objects_with(bucket, "place", row["place"])
    assert len([key for key in before if f"published/{spec.name}" in key]) == 3, "an older version, too"
    assert any("/features/" in key for key in before)
    request = erasure_keys.request_erasure(spec, [{"place": row["place"]}], "ada").identifier
    result = erasure.erase(spec, request=request)
    assert objects_with(bucket, "place", row["place"]) == []
    assert (
        result["rows"]["features.place_history"] and result["rows"]["labels"] == result["rows"]["published"]
    )
    assert erasure.erase(spec, request=request)["rows"] == result["rows"], "a repeated one finds nothing more"
    assert toys.content_of("published", spec.name), "others stay"


def test_old_partitions_are_emptied(bucket: Any, spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "models" / "place_history" / "feature_table.yaml").unlink()
    uri = delta_tables.table_uri("published", spec.name)
    done = retention.apply(spec, as_of=dates.add_days(SECOND, 29))
    assert done["partitions"] == {"published": 1, "labels": 1}
    assert set(lake.read_table(uri)[delta_tables.PARTITION].to_pylist()) == {SECOND}
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    kept = [item.key for item in bucket.objects.filter(Prefix="some where/lake/retention/")]
    assert record["evidence"]["interrupted"] == "" and all(key.endswith("/") for key in kept)
