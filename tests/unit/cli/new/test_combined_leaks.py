"""A label that is a sum, difference, product or ratio of columns is recognised; one that is only like it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.cli.new._combined_leaks import find_combination

COLUMNS = 7
seeds = st.integers(0, 2**32 - 1)


def columns(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Amounts with cents, small counts and a measurement; some of them are alike."""
    amounts = np.round(rng.gamma(2, 40, (rows, 4)) + 5, 2)
    amounts[:, 3] = np.round(amounts[:, 0] + rng.normal(0, 10, rows), 2)
    return np.column_stack([amounts, rng.integers(1, 40, (rows, 2)), rng.normal(50, 9, rows)])


def planted(data: st.DataObject, x: np.ndarray, product: bool) -> tuple[np.ndarray, dict[int, float]]:
    """A label, and the columns that it is made of with their factors or exponents."""
    used = data.draw(
        st.lists(st.integers(0, COLUMNS - 1), min_size=2, max_size=4, unique=True), label="columns"
    )
    if product:
        parts = {j: data.draw(st.sampled_from([1.0, 1.0, -1.0, 2.0]), label="exponent") for j in used}
        return np.prod([x[:, j] ** e for j, e in parts.items()], axis=0), parts
    parts = {j: data.draw(st.sampled_from([1.0, -1.0, 2.0, 0.5, 1.19]), label="factor") for j in used}
    constant = data.draw(st.sampled_from([0.0, 4.9, -100.0]), label="constant")
    return np.sum([x[:, j] * f for j, f in parts.items()], axis=0) + constant, parts


@settings(max_examples=40)
@given(st.data(), seeds, st.booleans(), st.integers(150, 900), st.booleans(), st.integers(0, 1))
def test_a_planted_combination_is_found(
    data: st.DataObject, seed: int, product: bool, rows: int, rounded: bool, exceptions: int
) -> None:
    rng = np.random.default_rng(seed)
    x = columns(rng, rows)
    y, parts = planted(data, x, product)
    if rounded:
        y = np.round(y, max(0, math.ceil(-math.log10(0.005 * y.std()))))
    if exceptions:
        y[rng.integers(0, rows)] *= 3
    combination = find_combination(x, y)
    assert combination is not None
    assert dict(zip(combination.columns, combination.factors, strict=True)) == pytest.approx(parts, rel=1e-2)
    assert combination.product == product
    assert 0.99 * combination.rows <= combination.exact <= rows - exceptions
    assert combination.rows > 0.9 * rows, "only labels that are rounded to 0 have no logarithm"


@settings(max_examples=40)
@given(st.data(), seeds, st.booleans(), st.integers(150, 900), st.floats(0.003, 0.5))
def test_a_label_that_columns_only_predict_well_is_not_one(
    data: st.DataObject, seed: int, product: bool, rows: int, noise: float
) -> None:
    """R² is between 0.75 and 0.99999."""
    rng = np.random.default_rng(seed)
    x = columns(rng, rows)
    y, _ = planted(data, x, product)
    assert find_combination(x, y + noise * y.std() * rng.normal(size=rows)) is None


@settings(max_examples=30)
@given(seeds, st.integers(2, 6), st.integers(150, 900))
def test_a_rounded_function_of_few_values_is_not_one(seed: int, levels: int, rows: int) -> None:
    """Rounding to classes would explain any difference between them."""
    rng = np.random.default_rng(seed)
    x = columns(rng, rows)
    y = np.floor(levels * (x[:, :3].sum(axis=1) + rng.normal(0, 20, rows)).argsort().argsort() / rows)
    assert find_combination(x, y) is None


def test_missing_values_and_zeros_do_not_hide_it() -> None:
    rng = np.random.default_rng(3)
    x = columns(rng, 600)
    x[rng.random(600) < 0.3, 2] = np.nan
    x[rng.random(600) < 0.1, 1] = np.nan
    x[:, 4] = rng.integers(0, 4, 600)
    y = np.where(np.isnan(x[:, 1]), 20, np.round(x[:, 1] * x[:, 4], 2))
    combination = find_combination(x, y)
    assert combination is not None
    names = [f"c{j}" for j in range(COLUMNS)]
    assert combination.text(names) == "'c1' × 'c4'"
    assert find_combination(x, np.full(600, 7.0)) is None, "a constant label is nothing to explain"
    rare = np.where(np.arange(600) < 5, x[:, 0] + x[:, 5], 0)
    assert find_combination(x, rare) is None, "almost all labels are the same"


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (lambda a, b, c: a + b - c, "'a' + 'b' − 'c'"),
        (lambda a, b, c: 32 + 1.8 * a - 0.5 * b, "1.8 × 'a' − 0.5 × 'b' + 32"),
        (lambda a, b, c: -a - b, "−'a' − 'b'"),
        (lambda a, b, c: a * b / c, "'a' × 'b' / 'c'"),
        (lambda a, b, c: 703 * a / b**2, "703 × 'a' / 'b'²"),
        (lambda a, b, c: 1 / (a * b), "1 / 'a' / 'b'"),
    ],
)
def test_a_combination_reads_as_a_formula(label: object, text: str) -> None:
    x = np.random.default_rng(4).gamma(2, 40, (300, 3)) + 1
    combination = find_combination(x, label(*x.T))  # type: ignore[operator]
    assert combination is not None and combination.text(["a", "b", "c"]) == text
