"""Categories that trees divide into any two groups, where their order does not help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel, load_model_file
from perennial.training._dataset import Dataset, EncodedRowFile
from perennial.training.checkpoint import Checkpoint
from perennial.training.search import FitResult, fit_again, search_and_fit
from support import toys
from support.training_rows import in_process

CATEGORIES, ROWS = 40, 3000
OPTIONS: dict[str, Any] = {"rounds": 30, "params": {"max_depth": 4, "learning_rate": 0.3}}


def panel(folder: Path, *, crossed: bool) -> Dataset:
    """Rows of a number and a category, in the order of its mean label, with a value for each category.

    Args:
        folder: where they are written.
        crossed: whether the number decides the sign of that value, so that all categories have the same mean.
    """
    rng = np.random.default_rng(1)
    matrix = np.column_stack([rng.choice([-1.0, 1.0], ROWS), rng.integers(0, CATEGORIES, ROWS)])
    matrix[::23, 1] = np.nan
    effect = np.sort(rng.normal(size=CATEGORIES))
    if crossed:
        rng.shuffle(effect)
    value = np.where(np.isnan(matrix[:, 1]), 0.0, effect[np.nan_to_num(matrix[:, 1]).astype(int)])
    y = value * (matrix[:, 0] if crossed else 1) + 0.1 * rng.normal(size=ROWS)
    file = EncodedRowFile(folder / toys.unique("rows"), 2)
    file.append(matrix.astype(np.float32), y.astype(np.float32), None)
    encoding = Encoding(("sign", "k"), {"k": [f"k{i:02}" for i in range(CATEGORIES)]})
    return Dataset(file, ROWS * 3 // 4, encoding, (), np.concatenate(file.y), None)


def fit(make_empty: Any, data: Dataset, order: str, **more: Any) -> FitResult:
    spec = make_empty("regression", features={"category_order": order}, **OPTIONS)
    return search_and_fit(spec, data, **more)


@pytest.fixture
def make_empty(empty_home: Path, tmp_path: Path) -> Any:
    def make(task: str, features: dict[str, Any], **training: Any) -> Any:
        return toys.model(tmp_path / "models", toys.unique(), task, training=training, features=features)

    return make


def test_groups_are_used_where_no_order_helps(make_empty: Any, tmp_path: Path) -> None:
    data = panel(tmp_path, crossed=True)
    ordered, searched = (fit(make_empty, data, order) for order in ("label", "search"))
    assert [t.group_categories for t in searched.trials] == [False, True]
    assert searched.trials[0].loss == ordered.trials[0].loss
    assert searched.best_trial is not None and searched.best_trial.group_categories
    assert searched.best_trial.loss < 0.7 * ordered.trials[0].loss


def test_an_order_that_is_as_good_is_kept(make_empty: Any, tmp_path: Path) -> None:
    data = panel(tmp_path, crossed=False)
    ordered, searched = (fit(make_empty, data, order) for order in ("label", "search"))
    assert len(searched.trials) == 2
    assert searched.best_trial is not None and not searched.best_trial.group_categories
    assert searched.booster.save_raw("ubj") == ordered.booster.save_raw("ubj")


def test_few_categories_are_not_tried_in_groups(make_empty: Any, tmp_path: Path) -> None:
    data = panel(tmp_path, crossed=True)
    few = Encoding(data.encoding.columns, {"k": [f"k{i}" for i in range(9)]})
    searched = fit(make_empty, Dataset(data.file, data.fit_rows, few, (), data.y, None), "search")
    assert len(searched.trials) == 1


def test_a_model_of_groups_is_stored_explained_and_fitted_again(make_empty: Any, tmp_path: Path) -> None:
    data = panel(tmp_path, crossed=True)
    fitted = fit(make_empty, data, "search")
    model = TrainedModel(fitted.booster, data.encoding, "regression")
    matrix = data.head(ROWS)
    predicted = model.predict_matrix(matrix)
    digest = model.save(tmp_path / "model.ubj")
    loaded = load_model_file(tmp_path / "model.ubj", digest, threads=1)
    assert np.array_equal(loaded.predict_matrix(matrix), predicted)
    # missing categories are no infinity, as they would be for a booster of many rows
    assert np.array_equal(loaded.optimised_for(10**9, 1).predict_matrix(matrix), predicted)
    bias = predicted - model.contributions(matrix).sum(axis=1)
    assert np.allclose(bias, bias[0], atol=1e-4)
    again = TrainedModel(fit_again(data, fitted, Checkpoint(None)), data.encoding, "regression")
    assert np.array_equal(again.predict_matrix(matrix), predicted)


def test_a_finished_trial_of_groups_is_not_boosted_again(make_empty: Any, tmp_path: Path) -> None:
    data = panel(tmp_path, crossed=True)
    spec = make_empty("regression", features={"category_order": "search"}, **OPTIONS)
    first = search_and_fit(spec, data)
    checkpoint = Checkpoint(None)
    checkpoint.trials = first.trials
    resumed = search_and_fit(spec, data, checkpoint=checkpoint)
    assert resumed.trials == first.trials
    assert resumed.booster.save_raw("ubj") == first.booster.save_raw("ubj")


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_each_task_may_search_the_order(empty_home: Path, tmp_path: Path, task: str) -> None:
    spec = toys.model(tmp_path / "models", toys.unique(), task, features={"category_order": "search"})
    toys.publish(spec)
    categories = in_process(spec, tmp_path).encoding.categories
    assert sorted(categories["k"]) == ["a", "b", "c"]
