"""A booster rewritten for many rows: the very predictions of the one that was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xgboost

from perennial.modeling._missing_value_rewrite import rewrite_without_missing
from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel

MANY = 10**9
TASKS = {
    "binary": {"objective": "binary:logistic"},
    "regression": {"objective": "reg:squarederror"},
    "multiclass": {"objective": "multi:softprob", "num_class": 3},
    "ranking": {"objective": "rank:ndcg"},
}


def rows(count: int = 3000) -> np.ndarray:
    """Five columns; three of them lack values, each for another reason."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(count, 5)).astype(np.float32)
    x[draw.random(count) < 0.2, 0] = np.nan
    x[x[:, 1] > 0.8, 1] = np.nan
    x[x[:, 2] < -0.8, 2] = np.nan
    return x


def train(task: str = "binary", labels: Any = None, **params: Any) -> xgboost.Booster:
    x = rows()
    score = np.nan_to_num(x[:, 1], nan=1.5) - np.nan_to_num(x[:, 2], nan=-1.5) + x[:, 3] * x[:, 4]
    y = {"regression": score, "multiclass": np.digitize(score, [0, 1])}.get(task, score > 0.5)
    data = xgboost.DMatrix(x, label=y if labels is None else labels)
    if task == "ranking":
        data.set_group([10] * (len(x) // 10))
    return xgboost.train(TASKS[task] | {"max_depth": 4, "nthread": 1} | params, data, 20)


def model(booster: xgboost.Booster, task: str = "binary") -> TrainedModel:
    columns = tuple("abcde")[: booster.num_features()]
    return TrainedModel(booster, Encoding(columns, {}), task, ("x", "y", "z") if task == "multiclass" else ())


@pytest.mark.parametrize(("task", "depth"), [*((task, 4) for task in TASKS), ("binary", 1), ("binary", 9)])
def test_predictions_are_the_same_bit_by_bit(task: str, depth: int) -> None:
    plain = model(train(task, max_depth=depth), task)
    quick = plain.optimised_for(MANY, threads=1)
    assert quick.dense and len(quick.dense.left_features) in (1, 2, 3)  # those that lack values, and no other
    x = rows(2000)
    x[:2], x[2:4], x[4] = np.finfo(np.float32).max, np.finfo(np.float32).min, np.nan
    x[5:200, 4] = np.nan  # never missing in training
    expected = plain.predict_matrix(x)
    assert np.isfinite(expected).all()
    assert np.array_equal(quick.predict_matrix(x), expected)
    buffer = quick.dense.allocate(len(x) + 10)
    assert np.array_equal(quick.predict_matrix(x, buffer), expected)
    assert np.array_equal(quick.predict_matrix(x[:0], buffer), expected[:0])


def test_a_model_of_leaves_alone_predicts_too() -> None:
    plain = model(train("regression", labels=np.full(3000, 2.0)))
    quick = plain.optimised_for(MANY, threads=1)
    assert quick.dense and quick.dense.left_features == []
    assert np.array_equal(quick.predict_matrix(rows(10)), plain.predict_matrix(rows(10)))


def test_it_is_done_for_many_rows_only() -> None:
    """The deeper the trees, the more rows it takes to pay."""
    shallow, deep = train(), train("regression", max_depth=9)
    assert rewrite_without_missing(shallow, 1000, 1) is None
    assert rewrite_without_missing(shallow, 300_000, 1) and not rewrite_without_missing(deep, 300_000, 1)


def test_a_large_booster_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    booster = train()
    raw = len(booster.save_raw("json"))
    for most, done in ((raw, True), (raw - 1, False)):
        monkeypatch.setattr("perennial.modeling._missing_value_rewrite.MAX_JSON_BYTES", most)
        assert bool(rewrite_without_missing(booster, MANY, 1)) is done
