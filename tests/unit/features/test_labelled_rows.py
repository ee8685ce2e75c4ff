"""Published rows joined with their labels."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features import labelled_rows
from perennial.features.labelled_rows import read_labelled_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from support import toys

DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 3))


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path) -> ModelSpec:
    return toys.model(tmp_path / "models", "toy")


def test_rows_come_by_date_and_key_with_their_label(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.publish(spec, days=4)
    published, labels = (
        delta_tables.version(delta_tables.table_uri("published", "toy")),
        delta_tables.version(delta_tables.table_uri("labels", "toy")),
    )
    whole = pa.concat_tables(read_labelled_rows(spec, tuple(DAYS), published, labels)).combine_chunks()
    assert whole["id"].to_pylist() == sorted(whole["id"].to_pylist())
    for day in DAYS:
        rows = toys.rows("binary", day)
        mine = whole.filter(pa.compute.equal(whole[delta_tables.PARTITION], day))
        assert mine["__label"].to_pylist() == toys.labels("binary", rows)["y"].to_pylist()
    monkeypatch.setattr(labelled_rows, "GROUP_ROWS", toys.ROWS + 1)  # one partition at a time
    assert (
        pa.concat_tables(read_labelled_rows(spec, tuple(DAYS), published, labels))
        .combine_chunks()
        .equals(whole)
    )


def test_rows_without_a_label_and_labels_without_a_row_do_not_train(spec: ModelSpec) -> None:
    toys.publish(spec, days=1)
    rows = toys.rows("binary", DAYS[0])
    y = pa.array([None, *[1] * 9])
    some = pa.table(
        {"id": [*rows["id"].to_pylist()[:9], "nobody's"], "label": y, "partition_date": [DAYS[0]] * 10}
    )
    delta_tables.replace(delta_tables.table_uri("labels", "toy"), some, DAYS[0])
    found = pa.concat_tables(read_labelled_rows(spec, (DAYS[0],), None, None))
    assert found["id"].to_pylist() == rows["id"].to_pylist()[1:9]
