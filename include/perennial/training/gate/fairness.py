"""How far apart a model treats groups of the held-out rows: ``gate.fairness``.

Each metric is a rate, or two, that Fairlearn computes for each group, and the gap between the highest and the lowest
group (Fairlearn's ``MetricFrame``). A rate rests on some of a group's rows: that of true positives on those of positive
label. Groups in which fewer than ``min_rows`` rows count are not judged, and are counted without their names. The value
is compared with the bound, not its interval: who may not treat groups differently has to show it.

Rows are counted first, by group, label and prediction, because Fairlearn takes ten seconds for a million rows and the
same result follows from the counts as weights. It is imported in the function that uses it: it brings scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from perennial.charts.markup import number
from perennial.core.html import printable
from perennial.modeling import metrics
from perennial.modeling.comparison import expanded_confidence
from perennial.modeling.grouped_bootstrap import GroupedRows, UnitBootstrap
from perennial.modeling.performance import EvaluatedRows
from perennial.modeling.training_records import reading
from perennial.spec.gate.fairness import FairnessGate
from perennial.training.gate.group_values import Grouping, GroupValues

#: Name of the file, and version of its format.
ARTIFACT, FORMAT = "fairness.json", 1
#: The rates of each metric; the worst of several counts.
_RATES = {
    "demographic_parity": ("selection rate",),
    "equalized_odds": ("true positive rate", "false positive rate"),
    "equal_opportunity": ("true positive rate",),
    "false_positive_rate": ("false positive rate",),
    "error_rate": ("error rate",),
    "mean_prediction": ("mean prediction",),
    "mean_error": ("mean error",),
    "absolute_error": ("mean absolute error",),
}
#: The rates of which the highest is the worst.
_HARMS = ("false positive rate", "error rate", "mean absolute error")
#: Most rates that documents list.
MAX_COMPARED = 100
#: By how much the rounding of numbers may miss a bound.
_ROUNDING = 1e-9
#: What is to be done where a bound is not kept, continuing a sentence.
_REMEDY = (
    ": find the features that stand for the group, or train on more rows of the group that fares worse; a bound is "
    "changed in gate.fairness.bounds"
)
#: What counts for a rate, in words.
_COUNTED = {"true positive rate": " of positive label", "false positive rate": " of negative label"}


@dataclass(frozen=True)
class GroupRate:
    """The rate of one group.

    Attributes:
        group: its name.
        rows: number of its rows that count for the rate.
        value: the rate.
        low: lower end of its confidence interval.
        high: upper end.
    """

    group: str
    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Disparity:
    """A rate of the groups of some columns.

    Attributes:
        columns: the columns.
        rate: name of the rate.
        positive: class that counts as positive, for multiclass.
        groups: those with enough rows.
        difference: between the highest and the lowest; None if fewer than two groups have enough rows.
        low: lower end of the confidence interval of the difference of these two groups.
        high: upper end.
        ratio: of the lowest to the highest; None likewise.
        champion: the difference in the champion's predictions for the same rows; None if it was not evaluated.
        few_groups: number of groups that have fewer rows, and are not judged.
        few_rows: number of their rows that count.
        other_rows: number of rows in no group.
    """

    columns: tuple[str, ...]
    rate: str
    positive: str = ""
    groups: tuple[GroupRate, ...] = ()
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    champion: float | None = None
    few_groups: int = 0
    few_rows: int = 0
    other_rows: int = 0

    @property
    def title(self) -> str:
        """The rate in words."""
        return f"{self.rate} of class {self.positive}" if self.positive else self.rate

    @property
    def extremes(self) -> tuple[GroupRate, GroupRate] | None:
        """The lowest and the highest group; None without a difference."""
        if self.difference is None:
            return None
        return min(self.groups, key=lambda g: g.value), max(self.groups, key=lambda g: g.value)


@dataclass(frozen=True)
class FairnessVerdict:
    """Whether one bound is kept.

    Attributes:
        columns: columns of the groups.
        metric: name of the metric.
        kind: ``difference`` or ``ratio``.
        bound: largest difference, or smallest ratio, that is allowed.
        value: that of the groups; None if it cannot be judged.
        met: whether the bound is kept.
        lowest: group with the lowest rate; empty if it cannot be judged.
        highest: group with the highest rate.
        sentence: all of it in words.
        at_risk: the one of these two groups that fares worse; empty likewise.
    """

    columns: tuple[str, ...]
    metric: str
    kind: str
    bound: float
    value: float | None
    met: bool
    lowest: str
    highest: str
    sentence: str
    at_risk: str = ""


@dataclass(frozen=True)
class Fairness:
    """The fairness of a challenger on the held-out rows.

    Attributes:
        confidence: of each interval.
        min_rows: with which a group is judged.
        disparities: of each rate that a bound needs, by the columns of the groups.
        verdicts: on each bound.
        declared: columns whose groups the spec names.
    """

    confidence: float
    min_rows: int
    disparities: Sequence[Disparity]
    verdicts: Sequence[FairnessVerdict]
    declared: Sequence[str] = field(default_factory=tuple)

    def without_columns(self, columns: Collection[str]) -> Fairness:
        """The fairness without groups by some columns, but for `declared` ones."""
        hidden = {*columns} - {*self.declared}
        return replace(
            self,
            disparities=[d for d in self.disparities if not hidden & {*d.columns}],
            verdicts=[v for v in self.verdicts if not hidden & {*v.columns}],
        )

    @property
    def compared(self) -> list[Disparity]:
        """The rates that could be compared, the largest differences of many."""
        known = [d for d in self.disparities if d.difference is not None]
        if len(known) <= MAX_COMPARED:
            return known
        return sorted(known, key=lambda d: d.difference or 0.0, reverse=True)[:MAX_COMPARED]

    def as_dict(self) -> dict[str, Any]:
        """The content of `ARTIFACT`."""
        return {"format": FORMAT, **_rounded(asdict(self))}


def parse(content: Any) -> Fairness:
    """Read the content of `ARTIFACT`.

    Raises:
        ArtifactError: it is of another format.
    """
    with reading(ARTIFACT, content, FORMAT):
        return Fairness(
            content["confidence"],
            content["min_rows"],
            [
                Disparity(
                    **{
                        **d,
                        "columns": tuple(d["columns"]),
                        "groups": tuple(GroupRate(**g) for g in d["groups"]),
                    }
                )
                for d in content["disparities"]
            ],
            [FairnessVerdict(**{**v, "columns": tuple(v["columns"])}) for v in content["verdicts"]],
            tuple(content["declared"]),
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class _Rate:
    """A rate of rows.

    Attributes:
        name: in words.
        positive: class that counts as positive; empty if there is but one.
        counted: whether each row counts, shape (rows,).
        values: the quantity whose mean is the rate, shape (rows,).
        labels: whether each label is positive, shape (rows,); None of a regression.
        decisions: whether each prediction is positive, likewise.
    """

    name: str
    positive: str
    counted: np.ndarray
    values: np.ndarray
    labels: np.ndarray | None = None
    decisions: np.ndarray | None = None


def estimate_fairness(
    policy: FairnessGate,
    rows: EvaluatedRows,
    values: GroupValues,
    classes: Sequence[str],
    *,
    confidence: float,
    samples: int,
    seed: int,
) -> Fairness:
    """Compute how far apart groups are, and compare it with the bounds.

    Args:
        policy: the section ``gate.fairness``.
        rows: the held-out rows.
        values: their groups.
        classes: names of the classes, for task multiclass.
        confidence: coverage of each interval, between 0 and 1.
        samples: number of bootstrap samples.
        seed: seed of the random numbers.
    """
    units = rows.partitions if rows.partitions is not None else len(rows.y)
    bootstrap = UnitBootstrap(units, samples, seed, whole=rows.partitions is not None)
    needed = {rate for metric in policy.bounds for rate in _RATES[metric]}
    predictions = [rows.challenger, *([rows.champion] if rows.champion is not None else [])]
    rates = [_rates(rows, predicted, classes, policy.threshold, needed) for predicted in predictions]
    by_columns: list[tuple[Grouping, list[Disparity]]] = [(g, []) for g in values.groupings()]
    for same_rate in zip(*rates, strict=True):  # one at a time: of many classes and rows they are large
        for grouping, of_columns in by_columns:
            of_columns.append(_disparity(same_rate, grouping, bootstrap, policy.min_rows, confidence))
    disparities: list[Disparity] = []
    verdicts: list[FairnessVerdict] = []
    for grouping, of_columns in by_columns:
        for metric in policy.bounds:
            judged = [d for d in of_columns if d.rate in _RATES[metric]]
            verdicts += _verdicts(policy, metric, grouping.title, judged)
        disparities += of_columns
    declared = (*policy.values, *policy.edges)
    return Fairness(confidence, policy.min_rows, disparities, verdicts, declared)


def _rates(
    rows: EvaluatedRows, predicted: np.ndarray, classes: Sequence[str], threshold: float, needed: set[str]
) -> Iterator[_Rate]:
    """The rates of a model's predictions that the bounds need; a missing prediction counts as wrong."""
    y, every = rows.y, np.ones(len(rows.y), bool)
    if rows.task == "regression":
        values = metrics.finite(predicted)
        error = values - y
        quantities = {
            "mean prediction": values,
            "mean error": error,
            "mean absolute error": np.abs(error),
        }
        yield from (_Rate(name, "", every, q) for name, q in quantities.items() if name in needed)
        return
    if rows.task == "multiclass":
        chosen = np.where(np.isnan(predicted).any(axis=1), len(classes), predicted.argmax(axis=1))
        if "error rate" in needed:
            wrong = rows.losses("error_rate", predicted) > 0
            yield _Rate("error rate", "", every, wrong * 1.0, every, ~wrong)
        for j, name in enumerate(classes):
            yield from _decision_rates(y == j, chosen == j, needed - {"error rate"}, name)
        return
    probability = np.where(np.isnan(predicted), 1 - y, predicted).astype(np.float64)
    yield from _decision_rates(y > 0, probability >= threshold, needed)
    if "mean prediction" in needed:
        yield _Rate("mean prediction", "", every, probability)


def _decision_rates(
    labels: np.ndarray, decisions: np.ndarray, needed: set[str], positive: str = ""
) -> Iterator[_Rate]:
    """The rates of decisions between a positive class and the others."""
    every = np.ones(len(labels), bool)
    for name, counted, values in (
        ("selection rate", every, decisions),
        ("true positive rate", labels, decisions),
        ("false positive rate", ~labels, decisions),
        ("error rate", every, labels != decisions),
    ):
        if name in needed:
            yield _Rate(name, positive, counted, values * 1.0, labels, decisions)


def _disparity(
    models: Sequence[_Rate], grouping: Grouping, bootstrap: UnitBootstrap, min_rows: int, confidence: float
) -> Disparity:
    """A rate of the groups with enough rows.

    Args:
        models: the rate of the challenger's predictions and, if there is one, of the champion's.
        grouping: the groups.
        bootstrap: the units of the rows, and the samples.
        min_rows: rows with which a group is judged.
        confidence: of the intervals.
    """
    rate, *of_champion = models
    inside = grouping.codes >= 0
    rows = np.bincount(grouping.codes[rate.counted & inside], minlength=len(grouping.names))
    judged, few = np.flatnonzero(rows >= min_rows), rows[rows < min_rows]
    disparity = Disparity(
        grouping.columns,
        rate.name,
        printable(rate.positive, 40),
        few_groups=len(few),
        few_rows=int(few.sum()),
        other_rows=int((~inside).sum()),
    )
    if len(judged) < 2:
        return disparity
    rank = np.full(len(grouping.names) + 1, -1)  # the last one is that of rows in no group
    rank[judged] = np.arange(len(judged))
    codes = np.where(rate.counted, rank[grouping.codes], -1)
    values, difference, ratio = _by_fairlearn(rate, codes)
    grouped = GroupedRows(bootstrap, codes, len(judged), np.ones(len(codes)))
    _, sampled = grouped.means(rate.values)
    low, high = grouped.interval(sampled, confidence)
    least, most = int(np.argmin(values)), int(np.argmax(values))
    coverage = float(expanded_confidence(confidence, max(2, int(grouped.units[[least, most]].min()))))
    ends = np.quantile(sampled[:, most] - sampled[:, least], [(1 - coverage) / 2, (1 + coverage) / 2])
    groups = [
        GroupRate(
            printable(grouping.names[i], 60), int(rows[i]), float(values[j]), float(low[j]), float(high[j])
        )
        for j, i in enumerate(judged)
    ]
    return replace(
        disparity,
        groups=tuple(groups),
        difference=difference,
        low=float(ends[0]),
        high=float(ends[1]),
        ratio=ratio,
        champion=_by_fairlearn(of_champion[0], codes)[1] if of_champion else None,
    )


def _by_fairlearn(rate: _Rate, codes: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The rate of each group, the difference between the highest and the lowest, and the ratio of these.

    Args:
        rate: the rate.
        codes: group of each row, shape (rows,); -1 for a row that does not count.
    """
    import fairlearn.metrics as fairlearn
    from sklearn.metrics import zero_one_loss

    functions: Mapping[str, Callable[..., float]] = {
        "selection rate": fairlearn.selection_rate,
        "true positive rate": fairlearn.true_positive_rate,
        "false positive rate": fairlearn.false_positive_rate,
        "error rate": zero_one_loss,
    }
    chosen = codes >= 0
    groups = codes[chosen]
    if rate.labels is None or rate.decisions is None:
        weights = np.bincount(groups)
        y: np.ndarray = np.bincount(groups, rate.values[chosen]) / weights
        predicted = y
        members = np.arange(len(weights))
    else:
        cells = groups * 4 + rate.labels[chosen] * 2 + rate.decisions[chosen]
        weights = np.bincount(cells)
        present = np.flatnonzero(weights)
        weights, members = weights[present], present // 4
        y, predicted = present // 2 % 2, present % 2
    frame = fairlearn.MetricFrame(
        metrics=functions.get(rate.name, fairlearn.mean_prediction),
        y_true=y,
        y_pred=predicted,
        sensitive_features=members,
        sample_params={"sample_weight": weights},
    )
    values = frame.by_group.sort_index().to_numpy(np.float64)
    # Where all rates are 0, none is lower than another; Fairlearn divides 0 by 0.
    ratio = 1.0 if not values.any() else float(frame.ratio())
    return values, float(frame.difference()), ratio


def _verdicts(
    policy: FairnessGate, metric: str, title: str, judged: Sequence[Disparity]
) -> Iterator[FairnessVerdict]:
    """Whether the bounds of a metric are kept by groups, by the rate that is furthest from it."""
    bound, columns, words = policy.bounds[metric], judged[0].columns, metric.replace("_", " ")
    known = [d for d in judged if d.difference is not None]
    unknown = next((r for r in _RATES[metric] if r not in {d.rate for d in known}), None)
    for kind, limit, rule in (
        ("difference", bound.max_difference, "must not be above"),
        ("ratio", bound.min_ratio, "must not be below"),
    ):
        if limit is None:
            continue
        if unknown:
            yield FairnessVerdict(
                columns, metric, kind, limit, None, False, "", "",
                f"fairness by {title}, {words}: the {unknown} cannot be compared, because fewer than two groups have "
                f"{policy.min_rows:,} held-out rows{_COUNTED.get(unknown, '')} (gate.fairness.min_rows): hold out more "
                "partitions (training.holdout), combine fewer columns, or lower min_rows",
            )  # fmt: skip
            continue
        distances = [d.difference or 0.0 if kind == "difference" else -(d.ratio or 0.0) for d in known]
        worst = known[int(np.argmax(distances))]
        assert worst.extremes is not None
        value = abs(max(distances))
        met = value <= limit + _ROUNDING if kind == "difference" else value >= limit - _ROUNDING
        low, high = worst.extremes
        sentence = (
            f"fairness by {title}, {words}: {worst.title} {number(low.value)} of {low.group} ({low.rows:,} rows), "
            f"{number(high.value)} of {high.group} ({high.rows:,} rows): {kind} {number(value)}"
            f"{_interval(worst) if kind == 'difference' else ''}, {rule} {limit:g}"
            f"{_omitted(worst, policy.min_rows, len(judged) - len(known))}{'' if met else _REMEDY}"
        )
        at_risk = _at_risk(worst.rate, low, high).group
        yield FairnessVerdict(
            columns, metric, kind, limit, value, met, low.group, high.group, sentence, at_risk
        )


def _at_risk(rate: str, low: GroupRate, high: GroupRate) -> GroupRate:
    """The group that fares worse: the one with more errors, or with fewer positive or lower predictions."""
    if rate == "mean error":
        return max(low, high, key=lambda group: abs(group.value))
    return high if rate in _HARMS else low


def _interval(disparity: Disparity) -> str:
    text = f" [{number(disparity.low)}, {number(disparity.high)}]"
    return text if disparity.champion is None else f"{text}, champion {number(disparity.champion)}"


def _omitted(disparity: Disparity, min_rows: int, unknown_rates: int) -> str:
    """What a verdict leaves out, continuing a sentence."""
    parts = []
    if disparity.few_groups:
        parts.append(
            f"{disparity.few_groups} groups with {disparity.few_rows:,} rows together have fewer than {min_rows:,} "
            "each and are not judged"
        )
    if disparity.other_rows:
        parts.append(f"{disparity.other_rows:,} rows have a value that forms no group")
    if unknown_rates:
        parts.append(f"{unknown_rates} rates of rare classes cannot be compared")
    return f" ({', '.join(parts)})" if parts else ""
