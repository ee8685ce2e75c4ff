"""Labels as XGBoost takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from perennial.core import dates
from perennial.features.targets import ListNumbering, encode_targets
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
    assert found[:2] == [1, 0]
    assert np.isnan(found[2])
    assert of("multiclass", pa.array([10, 9]), ("10", "9")) == [0, 1]
