"""The metrics of a challenger and of the champion on the held-out rows, with intervals, in total and by slice.

A slice is the rows with one value of a column of ``monitoring.slices``: one of the most frequent values. All intervals
come from one bootstrap, whose unit is that of the gate (`grouped_bootstrap`). The result is stored with the version
as `ARTIFACT`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from perennial.charts.markup import number
from perennial.core.html import printable
from perennial.modeling import metrics
from perennial.modeling._rank_statistics import rank_statistics
from perennial.modeling.grouped_bootstrap import GroupedRows, UnitBootstrap, simultaneous_intervals
from perennial.modeling.training_records import reading
from perennial.spec.constraints import GATE_METRICS, MIN_BOOTSTRAP_PARTITIONS, MIN_SLICE_ROWS

#: Name of the file, and version of its format.
ARTIFACT, FORMAT = "performance.json", 1
#: Most slices of a column, as in monitoring: its most frequent values.
MAX_SLICES = 20
#: Text of a missing value, as in monitoring.
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Estimate:
    """A quantity with its confidence interval.

    Attributes:
        value: on the rows.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"


@dataclass(frozen=True)
class SlicePerformance:
    """The metrics of one slice.

    Attributes:
        column: of the rows.
        value: its value, as text.
        rows: number of rows.
        metrics: of the challenger, by name; empty if there are too few rows.
        champion: of the champion, likewise; empty if it was not evaluated.
        improvement: of the challenger's loss, as a share of the champion's, with an interval that holds for all slices
            at once; None if it was not compared.
        too_few: why it was not evaluated; empty if it was.
    """

    column: str
    value: str
    rows: int
    metrics: Mapping[str, Estimate]
    champion: Mapping[str, Estimate]
    improvement: Estimate | None = None
    too_few: str = ""

    @property
    def name(self) -> str:
        """The slice as people write it, such as ``carrier = AA``."""
        return printable(f"{self.column} = {self.value}", 80)

    @property
    def improvement_text(self) -> str:
        """The improvement over the champion, in per cent with its interval; empty if it was not compared."""
        if self.improvement is None:
            return ""
        value, low, high = self.improvement.value, self.improvement.low, self.improvement.high
        return f"{value:+.2%} ({low:+.2%} to {high:+.2%})"


@dataclass(frozen=True)
class Performance:
    """The metrics on the held-out rows.

    Attributes:
        confidence: of each interval.
        unit: that the bootstrap drew: ``rows``, ``partitions`` or ``lists``.
        rows: number of rows that count.
        metrics: of the challenger, by name.
        champion: of the champion on the same rows, by name; empty if it was not evaluated.
        slices: by column, the most frequent value first.
        other_rows: number of rows with another value than those of the slices, by column.
    """

    confidence: float
    unit: str
    rows: int
    metrics: Mapping[str, Estimate]
    champion: Mapping[str, Estimate]
    slices: Sequence[SlicePerformance] = ()
    other_rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def worse_slices(self) -> list[SlicePerformance]:
        """The slices in which the challenger is clearly worse than the champion, the worst first."""
        compared = [(s.improvement.value, s) for s in self.slices if s.improvement and s.improvement.high < 0]
        return [s for _, s in sorted(compared, key=lambda pair: pair[0])]

    def without_columns(self, columns: Collection[str]) -> Performance:
        """The performance without the slices by some columns."""
        return replace(
            self,
            slices=[s for s in self.slices if s.column not in columns],
            other_rows={column: n for column, n in self.other_rows.items() if column not in columns},
        )

    def as_dict(self) -> dict[str, Any]:
        """The content of `ARTIFACT`; an estimate is a list of value, low and high."""
        return {
            "format": FORMAT,
            "confidence": self.confidence,
            "unit": self.unit,
            "rows": self.rows,
            "metrics": _as_lists(self.metrics),
            "champion": _as_lists(self.champion),
            "slices": [
                {
                    "column": s.column,
                    "value": s.value,
                    "rows": s.rows,
                    "metrics": _as_lists(s.metrics),
                    "champion": _as_lists(s.champion),
                    "improvement": _as_list(s.improvement) if s.improvement else None,
                    "too_few": s.too_few,
                }
                for s in self.slices
            ],
            "other_rows": dict(self.other_rows),
        }


def parse(content: Any) -> Performance:
    """Read the content of `ARTIFACT`.

    Raises:
        ArtifactError: it is of another format.
    """
    with reading(ARTIFACT, content, FORMAT):
        return Performance(
            content["confidence"],
            content["unit"],
            content["rows"],
            _parse_estimates(content["metrics"]),
            _parse_estimates(content["champion"]),
            [
                SlicePerformance(
                    s["column"],
                    s["value"],
                    s["rows"],
                    _parse_estimates(s["metrics"]),
                    _parse_estimates(s["champion"]),
                    Estimate(*s["improvement"]) if s["improvement"] else None,
                    s["too_few"],
                )
                for s in content["slices"]
            ],
            content["other_rows"],
        )


def _as_list(estimate: Estimate) -> list[float]:
    return [round(x, 6) for x in (estimate.value, estimate.low, estimate.high)]


def _as_lists(estimates: Mapping[str, Estimate]) -> dict[str, list[float]]:
    return {name: _as_list(estimate) for name, estimate in estimates.items()}


def _parse_estimates(content: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    return {name: Estimate(*numbers) for name, numbers in content.items()}


class SliceValues:
    """The values of the columns of the slices, collected table by table."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._numbers: dict[str, dict[str, int]] = {column: {} for column in columns}
        self._codes: dict[str, list[np.ndarray]] = {column: [] for column in columns}

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table that has the columns."""
        for column, numbers in self._numbers.items():
            text = table.column(column).cast(pa.string())
            encoded = text.combine_chunks().dictionary_encode("encode")
            names = [NO_VALUE if value is None else value for value in encoded.dictionary.to_pylist()]
            known = [numbers.setdefault(name, len(numbers)) for name in names]
            self._codes[column].append(np.asarray(known, np.int64)[encoded.indices.to_numpy()])

    def codes(self, column: str) -> tuple[list[str], np.ndarray]:
        """The values of a column as texts, and the number of each row's value among them, shape (rows,)."""
        blocks = self._codes[column]
        return [*self._numbers[column]], np.concatenate(blocks) if blocks else np.zeros(0, np.int64)

    def frequent(self, counted: np.ndarray) -> Iterator[tuple[str, list[str], np.ndarray]]:
        """Each column with its most frequent values, and the number of each row's value among them.

        Args:
            counted: whether each row counts, shape (rows,).

        Yields:
            The column; its values in order; their number of each row, shape (rows,), -1 for another value.
        """
        for column, numbers in self._numbers.items():
            codes = np.concatenate(self._codes[column])
            counts = np.bincount(codes[counted], minlength=len(numbers))
            order = np.argsort(-counts, kind="stable")[:MAX_SLICES]
            order = order[counts[order] > 0]
            rank = np.full(len(numbers), -1)
            rank[order] = np.arange(len(order))
            names = list(numbers)
            yield column, [names[i] for i in order], rank[codes]


@dataclass(frozen=True)
class EvaluatedRows:
    """The held-out rows, of which every model predicted the same ones.

    Attributes:
        task: task of the model.
        metric: the gate's metric.
        y: labels, as for `metrics.losses`, shape (rows,).
        challenger: its predictions, as for `metrics.losses`.
        champion: its predictions; None if it was not evaluated.
        lists: ranking only: number of each row's list, shape (rows,).
        partitions: partition of each row, shape (rows,), if the bootstrap draws partitions.
    """

    task: str
    metric: str
    y: np.ndarray
    challenger: np.ndarray
    champion: np.ndarray | None = None
    lists: np.ndarray | None = None
    partitions: np.ndarray | None = None

    @property
    def unit(self) -> str:
        """What the bootstrap draws."""
        if self.partitions is not None:
            return "partitions"
        return "rows" if self.lists is None else "lists"

    def losses(self, metric: str, predicted: np.ndarray) -> np.ndarray:
        """The loss of each row, shape (rows,); for ranking of its list, NaN if no order of it is wrong."""
        values = metrics.losses(self.task, metric, self.y, predicted, self.lists)
        if self.lists is None:
            return values
        lengths = np.diff(np.flatnonzero(np.r_[True, self.lists[1:] != self.lists[:-1], True]))
        return np.repeat(values, lengths)

    def weights(self) -> np.ndarray:
        """Weight of each row, shape (rows,): every list of a ranking counts once, those without a loss do not."""
        if self.lists is None:
            return np.ones(len(self.y))
        _, index, lengths = np.unique(self.lists, return_inverse=True, return_counts=True)
        loss = self.losses(self.metric, self.challenger)
        return np.where(np.isnan(loss), 0.0, 1 / lengths[index])


def estimate_performance(
    rows: EvaluatedRows, values: SliceValues, *, confidence: float, samples: int, seed: int
) -> Performance:
    """Compute the metrics of the models, in total and by slice, with their intervals.

    Args:
        rows: the held-out rows.
        values: values of the columns of the slices, of the same rows.
        confidence: coverage of each interval, between 0 and 1.
        samples: number of bootstrap samples.
        seed: seed of the random numbers.
    """
    weights = rows.weights()
    identities = rows.partitions if rows.partitions is not None else rows.lists
    bootstrap = UnitBootstrap(
        len(rows.y) if identities is None else identities, samples, seed, whole=rows.partitions is not None
    )
    evaluator = _Evaluator(rows, confidence)
    total = GroupedRows(bootstrap, np.zeros(len(rows.y), np.int64), 1, weights)
    slices: list[SlicePerformance] = []
    paired: list[_Paired] = []
    other_rows = {}
    for column, names, codes in values.frequent(weights > 0):
        grouped = GroupedRows(bootstrap, codes, len(names), weights)
        evaluated, of_column = evaluator.slices(grouped, column, names)
        paired += [(len(slices) + i, *pair) for i, pair in of_column]
        slices += evaluated
        other_rows[column] = int(((codes < 0) & (weights > 0)).sum())
    _compare_slices(slices, paired, confidence)
    challenger, champion = evaluator.metrics(total)
    return Performance(
        confidence,
        rows.unit,
        int(total.rows[0]),
        challenger[0],
        champion[0] if champion else {},
        slices,
        {column: n for column, n in other_rows.items() if n},
    )


#: A slice's number; its improvement and that of each sample; its number of units.
_Paired = tuple[int, float, np.ndarray, int]
#: A metric of each group, shape (groups,), and of each bootstrap sample, shape (samples, groups).
_Sampled = tuple[np.ndarray, np.ndarray]


class _Evaluator:
    """Computes the metrics of groups of rows; the losses of each row only once."""

    def __init__(self, rows: EvaluatedRows, confidence: float) -> None:
        self._rows, self._confidence = rows, confidence
        self._predictions = [p for p in (rows.challenger, rows.champion) if p is not None]
        self._losses = [
            {m: np.nan_to_num(rows.losses(m, p)) for m in GATE_METRICS[rows.task]} for p in self._predictions
        ]

    def metrics(self, grouped: GroupedRows) -> list[list[dict[str, Estimate]]]:
        """The metrics of each model and group, by name; without those that a group does not have."""
        models = []
        for predicted, losses in zip(self._predictions, self._losses, strict=True):
            groups: list[dict[str, Estimate]] = [{} for _ in grouped.rows]
            for name, (value, sampled) in self._sampled(grouped, predicted, losses):
                low, high = grouped.interval(sampled, self._confidence)
                for i in np.flatnonzero(np.isfinite(value)):
                    groups[i][name] = Estimate(float(value[i]), float(low[i]), float(high[i]))
            models.append(groups)
        # The second list is that of the champion.
        return models if len(models) > 1 else [*models, []]

    def slices(
        self, grouped: GroupedRows, column: str, names: Sequence[str]
    ) -> tuple[list[SlicePerformance], list[tuple[int, tuple[float, np.ndarray, int]]]]:
        """The slices of a column, and the paired differences of those with enough rows."""
        challenger, champion = self.metrics(grouped)
        difference: _Sampled | None = None
        if champion:
            ours, theirs = (losses[self._rows.metric] for losses in self._losses)
            scale = np.maximum(grouped.means(theirs)[0], 1e-12)
            mean, sampled = grouped.means(theirs - ours)
            difference = mean / scale, sampled / scale
        slices, paired = [], []
        for i, name in enumerate(names):
            rows, units = int(grouped.rows[i]), int(grouped.units[i])
            too_few = _too_few(rows, units, self._rows.unit)
            slices.append(
                SlicePerformance(
                    column,
                    name,
                    rows,
                    {} if too_few else challenger[i],
                    {} if too_few or not champion else champion[i],
                    None,
                    too_few,
                )
            )
            if difference is not None and not too_few:
                paired.append((i, (float(difference[0][i]), difference[1][:, i], units)))
        return slices, paired

    def _sampled(
        self, grouped: GroupedRows, predicted: np.ndarray, losses: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, _Sampled]]:
        """The metrics of `metrics.metrics`, of each group and bootstrap sample, by name."""
        means = {name: grouped.means(values) for name, values in losses.items()}
        yield from means.items()
        task, y = self._rows.task, self._rows.y
        if task == "binary":
            yield from _ranked(grouped, y, np.where(np.isnan(predicted), 1 - y, predicted)).items()
        elif task == "multiclass":
            yield "accuracy", _map(means["error_rate"], lambda error: 1 - error)
        elif task == "ranking":
            yield "ndcg", _map(means["ndcg_loss"], lambda loss: 1 - loss)
        else:
            yield "rmse", _map(means["squared_error"], np.sqrt)
            centred = y - y.mean()
            first, second = grouped.means(centred), grouped.means(centred**2)
            yield (
                "r2",
                (
                    _r2(means["squared_error"][0], first[0], second[0]),
                    _r2(means["squared_error"][1], first[1], second[1]),
                ),
            )


def _too_few(rows: int, units: int, unit: str) -> str:
    """Why a slice is not evaluated; empty if it is."""
    if rows < MIN_SLICE_ROWS:
        return f"too few rows: {rows:,}, {MIN_SLICE_ROWS} are needed"
    if unit != "rows" and units < MIN_BOOTSTRAP_PARTITIONS:
        return f"too few {unit}: {units}, {MIN_BOOTSTRAP_PARTITIONS} are needed"
    return ""


def _map(metric: _Sampled, function: Callable[[np.ndarray], np.ndarray]) -> _Sampled:
    return function(metric[0]), function(metric[1])


def _r2(squared_error: np.ndarray, mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """The coefficient of determination; NaN where all labels are equal."""
    variance = mean_square - mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 1e-12 * mean_square, 1 - squared_error / variance, np.nan)


def _ranked(grouped: GroupedRows, y: np.ndarray, scores: np.ndarray) -> dict[str, _Sampled]:
    """AUC and average precision of each group; sampled on the logit scale, so that intervals stay within 0 to 1."""
    statistics = [
        rank_statistics(y[rows], scores[rows]) for rows in map(grouped.members, range(len(grouped.rows)))
    ]
    sampled = {}
    for name in ("auc", "average_precision"):
        value = np.array([s[name].value if s else np.nan for s in statistics])
        if not np.isfinite(value).any():
            continue
        influence = np.zeros(len(y))
        for group, statistic in enumerate(statistics):
            if statistic:
                influence[grouped.members(group)] = statistic[name].influence
        p = np.clip(value, 1e-9, 1 - 1e-9)
        logit = np.log(p / (1 - p)) + grouped.means(influence)[1] / (p * (1 - p))
        sampled[name] = value, 1 / (1 + np.exp(-logit))
    return sampled


def _compare_slices(slices: list[SlicePerformance], paired: Sequence[_Paired], confidence: float) -> None:
    """Set the improvement over the champion of the slices with enough rows."""
    if not paired:
        return
    means = np.array([mean for _, mean, _, _ in paired])
    sampled = np.column_stack([samples for _, _, samples, _ in paired])
    units = np.array([units for *_, units in paired])
    low, high = simultaneous_intervals(means, sampled, units, confidence)
    for (i, mean, _, _), lowest, highest in zip(paired, low, high, strict=True):
        s = slices[i]
        improvement = Estimate(mean, float(lowest), float(highest))
        slices[i] = SlicePerformance(s.column, s.value, s.rows, s.metrics, s.champion, improvement)
