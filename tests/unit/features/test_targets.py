"""Labels as XGBoost takes them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features.targets import UNSEEN_CLASS, ListNumbering, encode_targets, impossible_labels
from support import toys

DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 3))


def test_lists_end_with_their_date_and_go_on_across_tables(empty_home: Path, tmp_path: Path) -> None:
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


def test_targets(empty_home: Path, tmp_path: Path) -> None:
    def of(task: str, values: pa.Array, classes: tuple[str, ...] = ()) -> list[float]:
        return encode_targets(
            toys.model(tmp_path / "models", task, task), pa.chunked_array([values]), classes
        ).tolist()  # type: ignore[no-any-return]

    assert of("binary", pa.array([True, False])) == [1, 0]
    assert of("binary", pa.array([1, 0])) == [1, 0]
    assert of("regression", pa.array([1.5, -2.0])) == [1.5, -2]
    found = of("multiclass", pa.array(["b", "a", "new"]), ("a", "b"))
    assert found == [1, 0, UNSEEN_CLASS]
    assert of("multiclass", pa.array([10, 9]), ("10", "9")) == [0, 1]


@pytest.mark.parametrize(
    ("task", "values", "impossible"),
    [
        ("binary", [0, 1, 2, -1], [False, False, True, True]),
        ("binary", [0.0, 0.5, float("nan"), float("inf")], [False, True, True, True]),
        ("binary", ["yes", "1"], [True, True]),
        ("multiclass", ["a", " b ", "", "  "], [False, False, True, True]),
        ("multiclass", [1, -7, 2**62], [False, False, False]),
        ("regression", [1.0, -3.4e38, 3.5e38, float("nan"), float("-inf")], [False, False, True, True, True]),
        ("ranking", [0, 31, 32, -1], [False, False, True, True]),
        ("ranking", [1.0, 1.5], [False, True]),
    ],
)
def test_labels_that_a_task_cannot_have(task: str, values: list[object], impossible: list[bool]) -> None:
    assert impossible_labels(task, pa.chunked_array([pa.array(values)])).tolist() == impossible
