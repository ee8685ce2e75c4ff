"""The rows that are trained on: joined, ordered, numbered by lists, spooled to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features import labelled_rows as labels_of
from perennial.features.labelled_rows import read_labelled_rows
from perennial.features.targets import ListNumbering, encode_targets
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training import _dataset
from perennial.training._dataset import EncodedRowFile
from support import toys

DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 3))


@pytest.fixture
def spec(house: Path, tmp_path: Path) -> ModelSpec:
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
    monkeypatch.setattr(labels_of, "GROUP_ROWS", toys.ROWS + 1)  # one partition at a time
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


def test_lists_end_with_their_date_and_go_on_across_tables(house: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "ranked", "ranking")

    def table(*rows: tuple[str, int | None]) -> pa.Table:
        return pa.table(
            {"partition_date": [r[0] for r in rows], "list": pa.array([r[1] for r in rows], pa.int64())}
        )

    lists = ListNumbering(spec)
    one, two = DAYS[:2]
    assert lists.number(table((one, 7), (one, 7), (one, 8))).tolist() == [1, 1, 2]
    assert lists.number(table((one, 8), (two, 8), (two, None), (two, None))).tolist() == [2, 3, 4, 4]
    assert lists.number(table((two, 9))).tolist() == [5]


def test_a_spool_gives_back_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dataset, "BATCH", 7)
    spool = EncodedRowFile(tmp_path / "rows", 3)
    matrix = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    matrix[3, 1] = np.nan
    spool.append(matrix[:12], np.zeros(12), None)
    spool.append(matrix[12:], np.zeros(8), None)
    found = list(spool.batches(5, 20))
    assert [r for _, r in found] == [slice(5, 12), slice(12, 19), slice(19, 20)]
    assert np.array_equal(np.concatenate([m for m, _ in found]), matrix[5:], equal_nan=True)


def test_categories_get_their_rank_however_they_came(tmp_path: Path) -> None:
    spool = EncodedRowFile(tmp_path / "rows", 1)
    spool.append(np.float32([[0], [2], [np.nan], [1]]), np.zeros(4), None)
    spool.lookup[0] = np.float32([2, 0, 1, np.nan])  # seen as c, a, b
    ((found, _),) = spool.batches(0, 4)
    assert np.array_equal(found[:, 0], [2, 1, np.nan, 0], equal_nan=True)


def test_targets(house: Path, tmp_path: Path) -> None:
    def of(task: str, values: pa.Array, classes: tuple[str, ...] = ()) -> list[float]:
        return encode_targets(
            toys.model(tmp_path / "models", task, task), pa.chunked_array([values]), classes
        ).tolist()  # type: ignore[no-any-return]

    assert of("binary", pa.array([True, False])) == [1, 0]
    assert of("binary", pa.array([1, 0])) == [1, 0]
    assert of("regression", pa.array([1.5, -2.0])) == [1.5, -2]
    found = of("multiclass", pa.array(["b", "a", "new"]), ("a", "b"))
    assert found[:2] == [1, 0]
    assert np.isnan(found[2])
    assert of("multiclass", pa.array([10, 9]), ("10", "9")) == [0, 1]
