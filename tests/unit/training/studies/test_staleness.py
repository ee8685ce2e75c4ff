"""What a model loses by being older: nothing where nothing changes, and more with age where the concept moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import xgboost

from perennial.core import dates
from perennial.features.engine import FeatureQuery
from perennial.ingestion import table_definitions
from perennial.modeling import metrics, registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import delta_tables, landing
from perennial.training.studies import staleness
from perennial.training.studies.staleness import possible_ages
from support import toys

Make = Callable[..., ModelSpec]
ROWS = 150
DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 29))
#: The labels of the last day have not arrived; the five before it are held out.
HELD_OUT, LEARNED = DAYS[-6:-1], DAYS[:-6]


def labels(table: pa.Table, day: str, *, turning: bool) -> np.ndarray:
    """Whether a direction that turns from day to day, or does not, points along the row."""
    angle = 0.12 * DAYS.index(day) if turning else 0.0
    noise = np.random.default_rng(DAYS.index(day)).normal(size=len(table)) / 3
    score = np.cos(angle) * table["x"].to_numpy() + np.sin(angle) * table["z"].to_numpy() + noise
    return cast("np.ndarray", (score > 0).astype(np.int64))


def curve_of(make_model: Make, *, turning: bool) -> tuple[ModelSpec, dict[str, Any]]:
    """The model, and the result of its second training: the first model has no curve."""
    # A straight line would be the better model: the trees need not be better than that.
    spec = make_model("binary", training={"study_minutes": 5}, gate={"beat_baseline": False})
    toys.write(landing.source_uri(spec.references[0].source), toys.places())
    tables = [(day, toys.rows("binary", day, ROWS)) for day in DAYS]
    rows = [t.append_column(delta_tables.PARTITION, pa.array([d] * len(t))) for d, t in tables]
    known = [
        pa.table({"id": t["id"], "label": labels(t, d, turning=turning),
                  delta_tables.PARTITION: pa.array([d] * len(t))})
        for d, t in tables
    ]  # fmt: skip
    for kind, content in (("published", rows), ("labels", known)):
        table_definitions.writer_of(spec, kind).replace(pa.concat_tables(content), DAYS[0], DAYS[-1])
    first = cast("dict[str, Any]", train(spec, as_of=DAYS[-2]))
    assert first["gate"]["passed"] and "staleness" not in first
    promote(spec, as_of=DAYS[-2], actor="test")
    return spec, cast("dict[str, Any]", train(spec, as_of=DAYS[-1]))


def loss_by_hand(spec: ModelSpec, rounds: int, days: list[str]) -> float:
    """The loss on the held-out rows of a model fitted on some days."""
    features = FeatureQuery(spec)

    def matrix(of: list[str]) -> tuple[np.ndarray, np.ndarray]:
        tables = [toys.rows("binary", day, ROWS) for day in of]
        computed = features.compute(pa.concat_tables(tables))
        columns = [
            np.searchsorted(["a", "b", "c"], computed.column(c).to_pylist())
            if c == "k"
            else computed.column(c).to_numpy()
            for c in computed.column_names
        ]
        y = np.concatenate([labels(t, d, turning=True) for d, t in zip(of, tables, strict=True)])
        return np.column_stack(columns).astype(np.float32), y.astype(np.float64)

    params = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 3, "learning_rate": 0.3}
    booster = xgboost.train(params, xgboost.QuantileDMatrix(*matrix(days)), rounds)
    x, y = matrix(HELD_OUT)
    return float(metrics.losses("binary", "log_loss", y, booster.inplace_predict(x)).mean())


def test_where_the_concept_turns_older_models_lose_more(make_model: Make) -> None:
    spec, result = curve_of(make_model, turning=True)
    curve = result["staleness"]
    ages = {point["older_by"]: point for point in curve["ages"]}
    assert [*ages] == [0, 4, 8], "12 partitions are half of the window of 24"
    assert 0 < ages[4]["low"] < ages[4]["rise"] < ages[8]["rise"]
    assert curve["window"] == len(LEARNED) - 8 and curve["held_out"] == f"{HELD_OUT[0]}..{HELD_OUT[-1]}"
    for age, point in ages.items():
        window = LEARNED[8 - age : len(LEARNED) - age]
        assert point["loss"] == pytest.approx(loss_by_hand(spec, result["rounds"], window), rel=0.02)
    version = registry.get_version(spec.name, result["version"])
    assert registry.load_json_artifact(version, staleness.ARTIFACT) == curve
    assert "What it costs to be older" in Path(result["report"]).read_text()


def test_where_nothing_changes_older_models_lose_nothing(make_model: Make) -> None:
    _, result = curve_of(make_model, turning=False)
    oldest = result["staleness"]["ages"][-1]
    assert oldest["low"] <= 0.02 and abs(oldest["rise"]) < 0.1


@pytest.mark.parametrize(
    ("partitions", "regular", "expected"),
    [(46, 4, [4, 8, 16]), (8, 4, []), (24, 4, [4, 8]), (104, 1, [1, 2, 4, 8])],
)
def test_the_oldest_window_is_at_most_half_as_old_as_the_window_is_long(
    partitions: int, regular: int, expected: list[int]
) -> None:
    assert possible_ages(partitions, regular) == expected
