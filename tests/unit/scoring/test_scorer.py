"""The scorer: the champion's own predictions, however many rows and partitions a unit has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features.engine import FeatureQuery
from perennial.modeling import _missing_value_rewrite, registry, trained_model
from perennial.steps.score import score
from perennial.storage import delta_tables
from support import toys

DAY = dates.add_days(toys.FIRST, 15)


def predictions(world: Any) -> list[dict[str, Any]]:
    return toys.content_of("predictions", world.spec.name)


def test_predictions_are_the_boosters_own(world: Any) -> None:
    """Through the lake, by batches: the same numbers that the loaded model gives for the rows' features."""
    score(world.spec, start=DAY)
    champion = registry.get_champion(world.spec)
    assert champion is not None
    rows = toys.rows("binary", DAY)
    direct = registry.load_model(champion).predict(FeatureQuery(world.spec).compute(rows))
    found = {r["id"]: r["prediction"] for r in predictions(world)}
    assert np.array_equal(np.float32([found[i] for i in rows["id"].to_pylist()]), direct)
    truth = np.asarray(toys.labels("binary", rows)["y"])
    assert direct[truth == 1].mean() - direct[truth == 0].mean() > 0.3


def test_many_rows_get_the_same_predictions(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A booster that is rewritten for many rows predicts as the one that was registered."""
    score(world.spec, start=DAY)
    few = predictions(world)
    monkeypatch.setattr(_missing_value_rewrite, "MIN_ROWS", 0)
    monkeypatch.setattr(_missing_value_rewrite, "ROWS_PER_BYTE", 0)
    rewritten: list[Any] = []
    real = trained_model.rewrite_without_missing
    monkeypatch.setattr(
        trained_model, "rewrite_without_missing", lambda *args: rewritten.append(real(*args)) or rewritten[-1]
    )
    score(world.spec, start=DAY, force=True)
    assert rewritten[0] is not None
    assert [r["prediction"] for r in predictions(world)] == [r["prediction"] for r in few]


def test_partitions_may_have_keys_in_common(world: Any) -> None:
    """Joins give the rows of several partitions in another order; by the key alone they cannot be told apart."""
    uri, days = delta_tables.table_uri("published", world.spec.name), dates.dates(DAY, dates.add_days(DAY, 2))
    first = toys.rows("binary", DAY)
    for day in days[1:]:
        rows = toys.rows("binary", day)
        rows = rows.set_column(0, "id", first["id"])
        delta_tables.replace(
            uri, rows.append_column(delta_tables.PARTITION, pa.array([day] * len(rows))), day
        )
    for day in days:
        score(world.spec, start=day)
    one_by_one = predictions(world)
    score(world.spec, start=days[0], end=days[-1], force=True)
    assert predictions(world) == one_by_one
    assert len(predictions(world)) == 3 * toys.ROWS


def test_values_that_are_no_numbers_are_scored_as_missing(world: Any) -> None:
    day = dates.add_days(toys.LAST, 1)
    rows = toys.rows("binary", day, 4)
    rows = rows.set_column(2, "x", pa.array([None, float("nan"), float("inf"), float("-inf")], pa.float64()))
    rows = rows.set_column(3, "z", pa.array([0.5] * 4)).set_column(4, "k", pa.array([None] * 4, pa.string()))
    rows = rows.set_column(1, "seen_at", pa.array([rows["seen_at"][0].as_py()] * 4))
    rows = rows.set_column(5, "place", pa.array(["north"] * 4))
    delta_tables.replace(
        delta_tables.table_uri("published", world.spec.name),
        rows.append_column(delta_tables.PARTITION, pa.array([day] * 4)),
        day,
    )
    score(world.spec, start=day)
    assert len({r["prediction"] for r in predictions(world)}) == 1
