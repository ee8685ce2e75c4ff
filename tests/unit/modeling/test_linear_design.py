"""The columns of a linear model, and the booster that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perennial.modeling import trained_model
from perennial.modeling.encoding import Encoding
from perennial.modeling.linear_design import LARGEST_VALUE, LinearDesign, linear_booster
from perennial.modeling.trained_model import TrainedModel

NAN = np.nan
#: A number of which one is missing, a category with codes 0 to 2 and a rare one, and a number without any value.
ROWS = np.array(
    [[1, 0, NAN]] * 30 + [[3, 1, NAN]] * 30 + [[NAN, 2, NAN]] * 30 + [[5, 3, NAN]] * 3 + [[5, NAN, NAN]] * 27,
    np.float32,
)
COLUMNS = ("size", "kind", "empty")


def design() -> LinearDesign:
    return LinearDesign.fit(ROWS, [1])


def dense(rows: list[list[float]]) -> np.ndarray:
    return np.asarray(design().transform(np.array(rows, np.float32)).toarray())


def model(
    task: str, weights: np.ndarray, intercepts: list[float], classes: tuple[str, ...] = ()
) -> TrainedModel:
    columns = design()
    booster = linear_booster(task, weights, np.array(intercepts), columns.names(COLUMNS))
    return TrainedModel(
        booster, Encoding(COLUMNS, {"kind": ["a", "b", "c", "d"]}), task, classes, design=columns
    )


def test_numbers_are_standardised_and_categories_have_columns() -> None:
    columns = design()
    assert columns.numbers[0][0] == 3 and columns.categories == {1: (0, 1, 2)} and 2 not in columns.numbers
    scale = columns.numbers[0][1]
    imputed = np.where(np.isnan(ROWS[:, 0]), 3, ROWS[:, 0])
    assert scale == pytest.approx(imputed.std(), rel=0.05)
    assert columns.names(COLUMNS) == ["size", "kind=0", "kind=1", "kind=2", "kind=other", "kind=missing"]
    assert columns.names(["kind=0", "kind", "empty"])[1] == "kind=0_", "a feature may have that name"
    expected = [
        [-2 / scale, 1, 0, 0, 0, 0],  # the first category
        [0, 0, 0, 1, 0, 0],  # a missing number counts as the median
        [0, 0, 0, 0, 1, 0],  # a rare category
        [0, 0, 0, 0, 1, 0],  # a code that no training row has
        [0, 0, 0, 0, 0, 1],  # no category, or an unseen one
    ]
    rows = [[1, 0, NAN], [NAN, 2, 7], [3, 3, 0], [3, 9, 0], [3, NAN, 0]]
    assert np.allclose(dense(rows), expected)
    assert dense([[3e38, 0, 0], [-3e38, 0, 0]])[:, 0].tolist() == [LARGEST_VALUE, -LARGEST_VALUE]
    assert LinearDesign.from_dict(columns.as_dict()) == columns


def test_without_categories_the_columns_are_dense() -> None:
    columns = LinearDesign.fit(ROWS[:, :1], [])
    assert isinstance(columns.transform(ROWS[:5, :1]), np.ndarray) and columns.width == 1
    constant = LinearDesign.fit(np.ones((50, 1), np.float32), [])
    assert constant.numbers == {0: (1.0, 1.0)} and constant.spreads == (0.0,)


@pytest.mark.parametrize("task", ["binary", "regression", "ranking", "multiclass"])
def test_a_linear_booster_predicts_the_weighted_sum_and_survives_its_file(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    groups = 3 if task == "multiclass" else 1
    weights, intercepts = rng.normal(size=(6, groups)), rng.normal(size=groups)
    linear = model(task, weights, intercepts.tolist(), ("x", "y", "z") if groups == 3 else ())
    scores = design().transform(ROWS) @ weights + intercepts
    expected = scores[:, 0]
    if task == "binary":
        expected = 1 / (1 + np.exp(-expected))
    if task == "multiclass":
        expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    digest = linear.save(tmp_path / "model.ubj")
    loaded = trained_model.load_model_file(tmp_path / "model.ubj", digest, threads=1)
    margin = scores if groups == 3 else scores[:, 0]
    for one in (linear, loaded, loaded.optimised_for(10**7, 1)):
        assert one.algorithm == "linear"
        assert np.allclose(one.predict_matrix(ROWS), expected, atol=1e-5)
        if task == "multiclass":  # scores are known up to a constant
            difference = one.predict_margin(ROWS) - margin
            assert np.allclose(difference, difference[0, 0], atol=1e-5)
        else:
            assert np.allclose(one.predict_margin(ROWS), margin, atol=1e-5)
        assert one.predict_matrix(ROWS[:0]).shape == expected[:0].shape
    contributions = loaded.contributions(ROWS)
    assert contributions.shape == (len(ROWS), *((3,) if groups == 3 else ()), 3)
    total = contributions.sum(axis=-1) - margin
    assert np.allclose(total, total[0], atol=1e-5), "what is not from a feature is the same for each row"
    assert not contributions[..., 2].any()


def test_importance_counts_weights_by_how_much_their_columns_vary() -> None:
    weights = np.array([[2.0], [1.0], [1.0], [1.0], [50.0], [0.0]])
    linear = model("regression", weights, [0.0])
    spreads = np.array(design().spreads)
    assert spreads[0] == pytest.approx(1, rel=0.05)
    sums = np.abs(weights[:, 0]) * spreads
    expected = {"size": sums[0] / sums.sum(), "kind": sums[1:].sum() / sums.sum(), "empty": 0.0}
    assert linear.importance() == pytest.approx(expected, abs=1e-5)


def test_rows_of_the_booster_have_its_names(tmp_path: Path) -> None:
    linear = model("regression", np.zeros((6, 1)), [0.0])
    rows, names = linear.booster_rows(ROWS[:2])
    assert rows.shape == (2, 6) and names == design().names(COLUMNS)
