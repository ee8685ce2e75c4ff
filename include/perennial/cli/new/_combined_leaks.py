"""A label that is the sum, difference, product or ratio of a few columns, exactly or up to rounding.

Exactness is what counts, not a good fit: all but a few rows must be within what rounding of the columns explains, and
that must be little beside the label's standard deviation. A model that explains 99.9% of the label is no such case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Combination", "find_combination"]

#: Rows that are used at most, fewer of wide tables, and at least; and rows with a label other than the most frequent.
MAX_ROWS, MAX_CELLS, MIN_ROWS, MIN_VARIED_ROWS = 4000, 400_000, 60, 30
#: Most columns of a combination that are tried, those included that turn out to be unnecessary.
MAX_TERMS = 8
#: Share of the rows that a combination must give exactly.
EXACT_SHARE = 0.99
#: Share of missing values, or of zeros where logarithms are needed, up to which a column is tried.
MAX_MISSING = 0.2
#: Relative error of numbers that were stored with 32 bits, and the most that rounding may explain, as a share of the
#: label's standard deviation.
NUMBER_ERROR, MAX_ROUNDING = 1e-6, 0.01
#: How much more than rounding to the nearest unit is allowed, because coefficients are estimates.
SLACK = 1.2
#: Significant digits of coefficients that are tried, before coefficients as they are estimated.
DIGITS = (2, 3, 4)
#: Most decimals of a rounded column, and the largest exponent of a product.
MAX_DECIMALS, MAX_EXPONENT = 6, 2
#: Share of the rows, with the smallest residuals, that coefficients are fitted to, and how often they are fitted again.
TRIMMED_SHARE, TRIMMING_ROUNDS = 0.9, 6
#: Norm of a column, relative to its own, below which what other columns leave of it is noise.
DEPENDENT = 1e-7


@dataclass(frozen=True)
class Combination:
    """A label in terms of other columns.

    Attributes:
        columns: positions of the columns.
        factors: their coefficients, or in a product their exponents, which are whole numbers.
        constant: what is added, or in a product the factor of all.
        product: whether it is a product.
        exact: number of rows that it gives exactly, or up to rounding.
        rows: number of rows that were looked at.
    """

    columns: tuple[int, ...]
    factors: tuple[float, ...]
    constant: float
    product: bool
    exact: int = 0
    rows: int = 0

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The label of rows.

        Args:
            x: the columns, shape (rows, columns).
        """
        chosen = x[:, self.columns]
        if self.product:
            with np.errstate(divide="ignore", invalid="ignore"):
                values: np.ndarray = self.constant * np.prod(chosen ** np.array(self.factors), axis=1)
            return values
        return np.asarray(chosen @ np.array(self.factors) + self.constant)

    def text(self, names: Sequence[str]) -> str:
        """The combination as a formula.

        Args:
            names: names of the columns.
        """
        return self._product_text(names) if self.product else self._sum_text(names)

    def _product_text(self, names: Sequence[str]) -> str:
        parts = [] if np.isclose(self.constant, 1) else [("×", f"{self.constant:.6g}")]
        for j, exponent in sorted(zip(self.columns, self.factors, strict=True), key=lambda term: -term[1]):
            sign = "×" if exponent > 0 else "/"
            parts.append((sign, repr(names[j]) + ("²" if abs(exponent) == MAX_EXPONENT else "")))
        first, *others = parts if parts[0][0] == "×" else [("×", "1"), *parts]
        return first[1] + "".join(f" {sign} {text}" for sign, text in others)

    def _sum_text(self, names: Sequence[str]) -> str:
        terms = [(factor, repr(names[j])) for j, factor in zip(self.columns, self.factors, strict=True)]
        terms.sort(key=lambda term: term[0] < 0)
        if abs(self.constant) > NUMBER_ERROR:
            terms.append((self.constant, ""))
        text = ""
        for factor, name in terms:
            size = "" if name and np.isclose(abs(factor), 1) else f"{abs(factor):.6g}"
            sign = ("− " if factor < 0 else "+ ") if text else ("−" if factor < 0 else "")
            text += (" " if text else "") + sign + " × ".join(part for part in (size, name) if part)
        return text


def find_combination(x: np.ndarray, y: np.ndarray) -> Combination | None:
    """The combination of two or more columns that the label is; None if it is none.

    Args:
        x: numbers, NaN where they are missing, shape (rows, columns).
        y: labels, shape (rows,).
    """
    count = max(10 * MIN_ROWS, min(MAX_ROWS, MAX_CELLS // max(1, x.shape[1])))
    x, y = x[:count].astype(np.float64), y[:count].astype(np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    for product in (False, True):
        if (combination := _search(x, y, product)) is not None:
            return combination
    return None


def _search(x: np.ndarray, y: np.ndarray, product: bool) -> Combination | None:
    """Add the column that explains most of what is left of the label, until nothing is left but rounding."""
    rows, columns = _usable(x, y, product)
    if len(rows) < MIN_ROWS or len(columns) < 2 or not np.ptp(y[rows]):
        return None
    label = _Label(np.ascontiguousarray(x[rows][:, columns]), y[rows], product)
    for chosen in label.pursue():
        if (combination := label.exact_combination(chosen)) is None:
            continue
        for column in combination.columns:  # those that it is as exact without were not needed
            others = [j for j in combination.columns if j != column]
            combination = label.exact_combination(others) or combination
        if len(combination.columns) < 2:
            return None  # the label in other words, which is found by looking at one column after the other
        exact = int(label.within(combination).sum())
        return replace(
            combination, columns=tuple(columns[j] for j in combination.columns), exact=exact, rows=len(rows)
        )
    return None


def _usable(x: np.ndarray, y: np.ndarray, product: bool) -> tuple[np.ndarray, list[int]]:
    """The rows in which all usable columns have a value, and these columns; of a product, values other than 0."""
    known = np.isfinite(x) & (np.abs(x) < np.sqrt(np.finfo(np.float64).max))
    if product:
        known &= x != 0
    candidates = y != 0 if product else np.ones(len(y), dtype=bool)
    if not candidates.any():
        return np.zeros(0, int), []
    missing = 1 - known[candidates].mean(axis=0)
    varied = np.array(
        [np.ptp(x[known[:, j], j]) > 0 if known[:, j].any() else False for j in range(x.shape[1])]
    )
    columns = [int(j) for j in np.argsort(missing, kind="stable") if varied[j] and missing[j] <= MAX_MISSING]
    while columns:
        rows = np.flatnonzero(candidates & known[:, columns].all(axis=1))
        if len(rows) >= min(MIN_ROWS + candidates.sum() // 2, candidates.sum()):
            return rows, sorted(columns)
        columns.pop()
    return np.zeros(0, int), []


def _step(values: np.ndarray) -> float:
    """The unit that values are rounded to, such as 0.01; 0 if they are not."""
    for decimals in range(MAX_DECIMALS + 1):
        scaled = values * 10.0**decimals
        if np.all(np.abs(scaled - np.round(scaled)) <= NUMBER_ERROR * np.maximum(1, np.abs(scaled))):
            return float(10.0**-decimals)
    return 0.0


class _Label:
    """A label, and the columns of which it may be a combination.

    Args:
        x: the columns, without missing values, shape (rows, columns).
        y: labels, shape (rows,).
        product: whether a product is searched, whose logarithm is a sum.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, product: bool) -> None:
        self._x, self._y, self._product = x, y, product
        self._basis: np.ndarray = np.log(np.abs(x)) if product else x
        self._target: np.ndarray = np.log(np.abs(y)) if product else y
        self._step, self._steps = _step(y), np.array([_step(x[:, j]) for j in range(x.shape[1])])
        self._deviation = float(y.std())
        values, counts = np.unique(y, return_counts=True)
        self._varied = y != values[counts.argmax()]

    def pursue(self) -> Iterator[list[int]]:
        """Orthogonal matching pursuit: the first one, two, … columns that explain most of the label."""
        columns = self._basis - self._basis.mean(axis=0)
        norms = np.linalg.norm(columns, axis=0)
        columns = columns / np.where(norms > 0, norms, 1)
        rest, chosen = self._target - self._target.mean(), list[int]()
        for _ in range(min(MAX_TERMS, columns.shape[1])):
            lengths = np.linalg.norm(columns, axis=0)
            scores = np.where(
                lengths > DEPENDENT, np.abs(columns.T @ rest) / np.maximum(lengths, DEPENDENT), 0
            )
            scores[chosen] = 0
            best = int(scores.argmax())
            if not scores[best]:
                return
            chosen.append(best)
            direction = columns[:, best] / lengths[best]
            rest = rest - direction * (direction @ rest)
            columns = columns - np.outer(direction, direction @ columns)
            yield sorted(chosen)

    def exact_combination(self, chosen: Sequence[int]) -> Combination | None:
        """The combination of these columns, its numbers with few digits if that is as good; None if it is not exact."""
        if not chosen:
            return None
        *factors, constant = _coefficients(self._basis[:, chosen], self._target)
        if self._product:
            used = [(j, float(e)) for j, e in zip(chosen, map(round, factors), strict=True) if e]
            if len(used) < 2 or max(abs(e) for _, e in used) > MAX_EXPONENT:
                return None
            columns, exponents = zip(*used, strict=True)
            factor = float(np.median(self._y / Combination(columns, exponents, 1.0, True).predict(self._x)))
            tries = [(columns, exponents, _short(factor, digits)) for digits in DIGITS]
            tries.append((columns, exponents, factor))
        else:
            columns, tries = tuple(chosen), []
            for short in (tuple(_short(factor, digits) for factor in factors) for digits in DIGITS):
                rest = float(np.median(self._y - self._basis[:, chosen] @ np.array(short)))
                tries += [(columns, short, value) for value in (0.0, self._whole(rest))]
            tries.append((columns, tuple(map(float, factors)), float(constant)))
        combinations = (Combination(*parts, product=self._product) for parts in tries)
        return next((combination for combination in combinations if self._is_exact(combination)), None)

    def within(self, combination: Combination) -> np.ndarray:
        """Whether a combination gives the label of each row, up to what rounding of label and columns explains."""
        chosen, factors = self._x[:, combination.columns], np.abs(combination.factors)
        steps, sizes = self._steps[list(combination.columns)], np.abs(self._y)
        if combination.product:
            of_columns = sizes * (factors * steps / np.abs(chosen)).sum(axis=1)
        else:
            of_columns = np.full(len(sizes), (factors * steps).sum())
            sizes = sizes + (np.abs(chosen) * factors).sum(axis=1)
        explained = np.zeros(len(sizes))
        for rounding in (SLACK * self._step / 2, SLACK * (self._step + of_columns) / 2):
            explained = np.where(rounding <= MAX_ROUNDING * self._deviation, rounding, explained)
        return np.asarray(np.abs(self._y - combination.predict(self._x)) <= explained + NUMBER_ERROR * sizes)

    def _whole(self, number: float) -> float:
        """A number in the label's unit, if it has one."""
        return round(number / self._step) * self._step if self._step else _short(number, DIGITS[-1])

    def _is_exact(self, combination: Combination) -> bool:
        """Whether a combination gives almost all labels, and of those that are not the most frequent one, too."""
        within, varied = self.within(combination), self._varied
        return bool(
            varied.sum() >= MIN_VARIED_ROWS
            and within.mean() >= EXACT_SHARE
            and within[varied].mean() >= EXACT_SHARE
        )


def _short(number: float, digits: int) -> float:
    """A number with so many significant digits."""
    return float(f"{number:.{digits}g}")


def _coefficients(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficients, and a constant, that fit most of the rows, so that a few other rows do not matter."""
    size = np.abs(basis).max(axis=0, initial=0)
    size = np.where(size > 0, size, 1)
    matrix = np.column_stack([basis / size, np.ones(len(basis))])
    rows = np.arange(len(target))
    for _ in range(TRIMMING_ROUNDS):
        solution = np.linalg.lstsq(matrix[rows], target[rows], rcond=None)[0]
        residuals = np.abs(target - matrix @ solution)
        smallest = np.sort(np.argsort(residuals, kind="stable")[: max(1, int(TRIMMED_SHARE * len(target)))])
        if np.array_equal(smallest, rows):
            break
        rows = smallest
    return np.append(solution[:-1] / size, solution[-1])
