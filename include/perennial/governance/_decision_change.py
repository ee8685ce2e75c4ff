"""The nearest change of a row's features that changes the decision about it (a counterfactual explanation).

Each feature alone is set to values that training rows had: the borders of their tenths, or their categories. Of the
changes that lead to another decision, the nearest passes the smallest share of the training rows. If no single feature
changes the decision, the one that moves the prediction furthest is changed, too, up to `MAX_CHANGED_FEATURES`.

The search is greedy: there may be a nearer change of several features. It cannot know which changes the world allows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import histograms
from perennial.monitoring.histograms import ReferenceColumn

#: Most features that are changed together.
MAX_CHANGED_FEATURES = 3
#: Halvings of the distance between a number and one that changes the decision.
HALVINGS = 16


@dataclass(frozen=True)
class Change:
    """The change of one feature.

    Attributes:
        feature: its name.
        value: the new value, as text.
        passed_share: share of the training rows with a value between the old and the new one; of a category, share of
            the rows that do not have the new one.
    """

    feature: str
    value: str
    passed_share: float


@dataclass(frozen=True)
class _Option:
    """A value that a feature may be changed to.

    Attributes:
        column: position of the feature.
        encoded: the value in the encoded matrix.
        text: for people; empty for a number.
        passed_share: as in `Change`.
    """

    column: int
    encoded: float
    text: str
    passed_share: float


def find(
    model: TrainedModel, version: ModelVersion, row: np.ndarray, *, threshold: float, hidden: Collection[str]
) -> tuple[str, list[Change]]:
    """Describe the decision about a row, and search the nearest change that leads to another one.

    Args:
        model: the model.
        version: its version, whose drift reference has the values of training rows.
        row: the encoded row, shape (1, columns).
        threshold: binary models: probability from which the decision is positive.
        hidden: personal features, which are not changed.

    Returns:
        The decision in words, empty if the model makes none; and the changes, empty if none was found.
    """
    if model.task not in ("binary", "multiclass"):
        return "", []
    decide = _Decision(model, threshold)
    before = decide(row)[0]
    _, reference = histograms.read_reference(registry.load_json_artifact(version, "reference.json"))
    options = list(_options(model, row, reference, hidden))
    changed: list[_Option] = []
    current = row
    while options and len(changed) < MAX_CHANGED_FEATURES:
        tried = np.repeat(current, len(options), axis=0)
        tried[np.arange(len(options)), [o.column for o in options]] = [o.encoded for o in options]
        other = decide(tried) != before
        if other.any():
            nearest = min(
                (o for o, is_other in zip(options, other, strict=True) if is_other),
                key=lambda o: o.passed_share,
            )
            changed.append(_refine(nearest, current, decide, before))
            return decide.in_words(before), [_change(model, o) for o in changed]
        best = options[int(np.argmax(decide.distance_from(before, tried)))]
        changed.append(best)
        current = current.copy()
        current[0, best.column] = best.encoded
        options = [o for o in options if o.column != best.column]
    return decide.in_words(before), []


class _Decision:
    """The decision of a model: positive or not, or the class.

    Args:
        model: the model.
        threshold: binary models: probability from which the decision is positive.
    """

    def __init__(self, model: TrainedModel, threshold: float) -> None:
        self._model, self._threshold = model, threshold

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The decision about each row as a number, shape (rows,)."""
        predicted = self._model.predict_matrix(rows)
        return predicted.argmax(axis=1) if self._model.classes else predicted >= self._threshold

    def distance_from(self, decision: int, rows: np.ndarray) -> np.ndarray:
        """How far each row is from a decision: higher is further, shape (rows,)."""
        predicted = self._model.predict_matrix(rows)
        if self._model.classes:
            return -predicted[:, int(decision)]
        return -predicted if decision else predicted

    def in_words(self, decision: int) -> str:
        """The decision for people."""
        if self._model.classes:
            return f"class {self._model.classes[int(decision)]}"
        side = "at least" if decision else "less than"
        return f"{'positive' if decision else 'negative'}: the probability is {side} {self._threshold:g}"


def _options(
    model: TrainedModel, row: np.ndarray, reference: dict[str, ReferenceColumn], hidden: Collection[str]
) -> list[_Option]:
    """The values that each feature may be changed to."""
    options = []
    for j, name in enumerate(model.encoding.columns):
        column = reference.get(name)
        if column is None or name in hidden or column.hashed or column.personal:
            continue
        counts = np.array(column.counts[:-1], np.float64)
        shares = counts / max(counts.sum(), 1.0)
        if column.kind == "categorical":
            known = {c: code for code, c in enumerate(model.encoding.categories.get(name, []))}
            options += [
                _Option(j, float(known[c]), c, 1.0 - float(share))
                for c, share in zip(column.categories, shares, strict=False)
                if c in known and known[c] != row[0, j]
            ]
            continue
        below = np.cumsum(shares)[:-1]
        value = float(row[0, j])
        here = 0.5 if np.isnan(value) else float(np.interp(value, column.edges, below)) if len(below) else 0.0
        options += [
            _Option(j, float(np.float32(edge)), "", abs(float(share) - here))
            for edge, share in zip(column.edges, below, strict=True)
            if np.float32(edge) != row[0, j]
        ]
    return options


def _refine(option: _Option, row: np.ndarray, decide: _Decision, before: int) -> _Option:
    """A number nearer to the row's own that still changes the decision."""
    old = float(row[0, option.column])
    if option.text or np.isnan(old):
        return option
    unchanged, changed = old, option.encoded
    tried = row.copy()
    for _ in range(HALVINGS):
        tried[0, option.column] = middle = (unchanged + changed) / 2
        if decide(tried)[0] != before:
            changed = middle
        else:
            unchanged = middle
    # as it is printed, it must still change the decision
    for digits in range(3, 10):
        tried[0, option.column] = printed = float(f"{changed:.{digits}g}")
        if decide(tried)[0] != before:
            return _Option(option.column, printed, "", option.passed_share)
    return _Option(option.column, changed, "", option.passed_share)


def _change(model: TrainedModel, option: _Option) -> Change:
    text = option.text or f"{option.encoded:.9g}"
    return Change(model.encoding.columns[option.column], text, round(option.passed_share, 4))
