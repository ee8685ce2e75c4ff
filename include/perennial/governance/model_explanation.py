"""What a version does in general: what each feature adds to its raw scores, by the feature's value.

It is computed once, when the version is registered, on a sample of the held-out rows, and stored with it. The
contributions are those of `prediction_explanation`, of the registered model. Values are shown in bins of several rows;
of features of personal data only the importance is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from perennial.charts import page
from perennial.charts.bar_chart import BarChart
from perennial.charts.interval_chart import Interval, IntervalChart, IntervalRow
from perennial.charts.line_chart import LineChart, Series
from perennial.charts.markup import Markup, element, number, table, text
from perennial.governance.model_card.stored_documents import load_document
from perennial.governance.prediction_explanation import score_scale
from perennial.modeling.encoding import Encoding
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.modeling.training_records import reading
from perennial.monitoring.partition_sample import PartitionSample
from perennial.spec.model_spec import ModelSpec

#: Name of the file among those of a version, that of the page, and version of the format.
ARTIFACT, PAGE, FORMAT = "explanation.json", "explanation.html", 1
#: Most rows that are explained, and at least; what is computed grows with the rows times the bytes of the booster.
MAX_ROWS, MIN_ROWS, MAX_ROW_BYTES = 2000, 200, 500_000_000
#: Most cells of the contributions: rows times classes times features.
MAX_CELLS = 20_000_000
#: Most features whose importance is stored, and those whose values are shown.
MAX_FEATURES, MAX_SHOWN = 200, 12
#: Most bins of a feature, rows that each has at least, and classes that are shown.
MAX_BINS, MIN_BIN_ROWS, MAX_CLASSES = 15, 10, 4
#: What stands for rows without a value, and for those of rare categories.
MISSING, OTHERS = "(missing)", "(others)"
#: Share of a bin's rows whose contributions are below and above its interval.
TAIL = 0.1


@dataclass(frozen=True)
class Importance:
    """How important a feature is.

    Attributes:
        feature: its name.
        contribution: mean absolute contribution to the raw score, over rows and classes.
        gain: its share in the gain of all splits.
    """

    feature: str
    contribution: float
    gain: float


@dataclass(frozen=True)
class Bin:
    """Rows with similar values of a feature.

    Attributes:
        label: the values, as text.
        value: their mean; None for categories, and for rows without a value.
        rows: number of rows.
        mean: mean contribution, for each class that is shown; a single one for other tasks.
        low: contribution below which a tenth of them are, likewise.
        high: contribution above which a tenth of them are, likewise.
    """

    label: str
    value: float | None
    rows: int
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Dependence:
    """The contribution of a feature by its value.

    Attributes:
        feature: its name.
        bins: in the order of their values; categories by contribution.
    """

    feature: str
    bins: list[Bin]


@dataclass(frozen=True)
class GlobalExplanation:
    """What a version does in general.

    Attributes:
        partitions: of the rows, as ``start..end``.
        rows: number of rows.
        scale: what the raw score is.
        classes: that are shown; none unless the task is multiclass.
        importance: the most important features, the first on top.
        feature_count: number of all features.
        dependence: of the most important features that may be shown.
        hidden: features whose values are not shown, because they are personal data.
    """

    partitions: str
    rows: int
    scale: str
    classes: list[str]
    importance: list[Importance]
    feature_count: int
    dependence: list[Dependence]
    hidden: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The content of `ARTIFACT`."""
        return {"format": FORMAT, **asdict(self)}


def parse(content: Any) -> GlobalExplanation:
    """Read the content of `ARTIFACT`.

    Raises:
        ArtifactError: it is of another format.
    """
    with reading(ARTIFACT, content, FORMAT):
        values = {name: content[name] for name in GlobalExplanation.__dataclass_fields__}
        values["importance"] = [Importance(**item) for item in values["importance"]]
        values["dependence"] = [
            Dependence(item["feature"], [Bin(**b) for b in item["bins"]]) for item in values["dependence"]
        ]
        return GlobalExplanation(**values)


def read(version: ModelVersion, present: ModelSpec) -> GlobalExplanation:
    """The explanation that is stored with a version, without values of what is personal data by now.

    Args:
        version: the version.
        present: the present spec.

    Raises:
        ArtifactError: it has none, or the file is not what was recorded.
    """
    return without_features(parse(load_document(version, ARTIFACT, "explanation")), present.personal_names)


def without_features(explanation: GlobalExplanation, hidden: Collection[str]) -> GlobalExplanation:
    """The explanation without the values of some features."""
    shown = [d for d in explanation.dependence if d.feature not in hidden]
    more = [d.feature for d in explanation.dependence if d.feature in hidden]
    return replace(explanation, dependence=shown, hidden=[*explanation.hidden, *more])


def explain_model(
    spec: ModelSpec, model: TrainedModel, sample: PartitionSample, encoding: Encoding
) -> GlobalExplanation | None:
    """Explain a model by its contributions to the raw scores of a sample; None without rows.

    Args:
        spec: the model's.
        model: the model.
        sample: rows.
        encoding: of the rows; that of the model may have other categories.
    """
    rows = _evenly(len(sample.x), _row_limit(model))
    if not len(rows):
        return None
    x = model.encoding.recode(sample.x[rows], encoding)
    parts = model.contributions(x)
    by_class = parts if model.classes else parts[:, None, :]  # (rows, classes, features)
    absolute = np.abs(by_class).mean(axis=(0, 1), dtype=np.float64)
    names, gain, hidden = model.encoding.columns, model.importance(), set(spec.personal_names)
    order = sorted(range(len(names)), key=lambda j: (-absolute[j], names[j]))
    classes = _main_classes(model, by_class)
    shown = [j for j in order if names[j] not in hidden and absolute[j] > 0][:MAX_SHOWN]
    return GlobalExplanation(
        partitions=f"{sample.dates[0]}..{sample.dates[-1]}",
        rows=len(rows),
        scale=score_scale(spec, model),
        classes=[model.classes[c] for c in classes] if model.classes else [],
        importance=[
            Importance(names[j], _rounded(absolute[j]), gain.get(names[j], 0.0)) for j in order[:MAX_FEATURES]
        ],
        feature_count=len(names),
        dependence=[
            Dependence(
                names[j], _bins(x[:, j], by_class[:, classes, j], model.encoding.categories.get(names[j]))
            )
            for j in shown
        ],
        hidden=[names[j] for j in order if names[j] in hidden],
    )


def _row_limit(model: TrainedModel) -> int:
    """Rows that can be explained in a second or a few."""
    cells = len(model.encoding.columns) * max(1, len(model.classes))
    size = 1 if model.design else len(model.booster.save_raw("ubj"))
    limit = min(MAX_ROWS, max(MIN_ROWS, MAX_ROW_BYTES // max(1, size)))
    return max(1, min(limit, MAX_CELLS // cells))


def _evenly(count: int, limit: int) -> np.ndarray:
    """Positions of at most ``limit`` of ``count`` rows, the same ones each time."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64))
        if count
        else np.zeros(0, int)
    )


def _main_classes(model: TrainedModel, by_class: np.ndarray) -> list[int]:
    """The classes whose scores change most, in their order."""
    if not model.classes:
        return [0]
    sizes = np.abs(by_class).mean(axis=(0, 2))
    return sorted(np.argsort(-sizes, kind="stable")[:MAX_CLASSES].tolist())


def _bins(values: np.ndarray, parts: np.ndarray, categories: list[str] | None) -> list[Bin]:
    """The contributions by value.

    Args:
        values: encoded values of the feature, shape (rows,).
        parts: its contributions, shape (rows, classes).
        categories: by code; None for a number.
    """
    known = ~np.isnan(values)
    grouped = _categories(values, categories) if categories is not None else _intervals(values, known)
    bins = [_bin(label, value, parts[rows]) for label, value, rows in grouped]
    if categories is not None:
        bins.sort(key=lambda b: (b.label == OTHERS, -b.mean[0], b.label))
    if (~known).sum() >= MIN_BIN_ROWS:
        bins.append(_bin(MISSING, None, parts[~known]))
    return bins


def _categories(values: np.ndarray, categories: list[str]) -> list[tuple[str, float | None, np.ndarray]]:
    """The most frequent categories, and all others together, each with its rows."""
    codes = np.where(np.isnan(values), -1, values).astype(np.int64)
    counts = np.bincount(codes[codes >= 0], minlength=len(categories))
    order = [int(c) for c in np.argsort(-counts, kind="stable")[:MAX_BINS] if counts[c] >= MIN_BIN_ROWS]
    grouped: list[tuple[str, float | None, np.ndarray]] = [(categories[c], None, codes == c) for c in order]
    rare = (codes >= 0) & ~np.isin(codes, order)
    return [*grouped, (OTHERS, None, rare)] if rare.sum() >= MIN_BIN_ROWS else grouped


def _intervals(values: np.ndarray, known: np.ndarray) -> list[tuple[str, float | None, np.ndarray]]:
    """Intervals with about as many rows each, which divide all rows that have a value."""
    count = int(known.sum())
    if count < MIN_BIN_ROWS:
        return []
    distinct, sizes = np.unique(values[known], return_counts=True)
    least = max(MIN_BIN_ROWS, 1 if len(distinct) <= MAX_BINS else -(-count // MAX_BINS))
    ends, rows = [], 0
    for position, size in enumerate(sizes.tolist()):
        rows += size
        if rows >= least:
            ends.append(position)
            rows = 0
    ends[-1] = len(distinct) - 1  # what is left over belongs to the last one
    numbers = np.searchsorted(distinct[ends], values, side="left")
    grouped: list[tuple[str, float | None, np.ndarray]] = []
    for i, end in enumerate(ends):
        low, high = float(distinct[ends[i - 1] + 1 if i else 0]), float(distinct[end])
        members = known & (numbers == i)
        label = number(low) if low == high else f"{number(low)} to {number(high)}"
        grouped.append((label, _rounded(values[members].mean(dtype=np.float64)), members))
    return grouped


def _bin(label: str, value: float | None, parts: np.ndarray) -> Bin:
    low, high = np.quantile(parts, [TAIL, 1 - TAIL], axis=0)
    mean = parts.mean(axis=0, dtype=np.float64)
    return Bin(label, value, len(parts), *([*map(_rounded, ends)] for ends in (mean, low, high)))


def _rounded(value: Any) -> float:
    return float(f"{float(value):.6g}")


def importance_figure(explanation: GlobalExplanation) -> Markup:
    """The most important features, by contribution."""
    top = [(i.feature, i.contribution) for i in explanation.importance[:20]]
    return BarChart(
        f"Mean absolute contribution to the {explanation.scale}", top, "mean absolute contribution"
    ).figure()


def dependence_figures(explanation: GlobalExplanation) -> list[Markup]:
    """The contribution of each feature that may be shown, by its value."""
    return [_figure(explanation, d) for d in explanation.dependence]


def _figure(explanation: GlobalExplanation, dependence: Dependence) -> Markup:
    bins = dependence.bins
    names = explanation.classes or ["mean contribution"]
    title = f"{dependence.feature}: contribution to the {explanation.scale}"
    points = [b for b in bins if b.value is not None]
    if len(points) > 1:
        series = [Series(name, _points(points, "mean", c)) for c, name in enumerate(names)]
        if not explanation.classes:
            series += [
                Series("a tenth of the rows is below", _points(points, "low", 0)),
                Series("a tenth is above", _points(points, "high", 0)),
            ]
        missing = [f"without a value: {number(b.mean[0])}" for b in bins if b.label == MISSING]
        ends = f"from {number(points[0].mean[0])} at {points[0].label} to {number(points[-1].mean[0])} at "
        described = "; ".join([f"{ends}{points[-1].label}", *missing])
        return LineChart(title, series, x_name=dependence.feature, description=described).figure()
    rows = [
        IntervalRow(
            b.label,
            {n: Interval(b.mean[c], b.low[c], b.high[c]) for c, n in enumerate(names)},
            f"{b.rows:,} rows",
        )
        for b in bins
    ]
    return IntervalChart(title, names, rows, dependence.feature, 0.0, "no contribution").figure()


def _points(bins: Sequence[Bin], attribute: str, position: int) -> list[tuple[str | float, float | None]]:
    return [(b.value, getattr(b, attribute)[position]) for b in bins if b.value is not None]


def importance_table(explanation: GlobalExplanation) -> Markup:
    """All features that are stored, with both importances."""
    total = sum(i.contribution for i in explanation.importance) or 1.0
    rows = [
        (i.feature, number(i.contribution), f"{i.contribution / total:.1%}", f"{i.gain:.1%}")
        for i in explanation.importance
    ]
    return table(["feature", "mean absolute contribution", "share", "share of the gain"], rows)


def introduction(explanation: GlobalExplanation) -> list[str]:
    """What the figures show, in sentences."""
    span = explanation.partitions.replace("..", " to ")
    sentences = [
        f"On {explanation.rows:,} held-out rows from {span}: what each feature adds to the {explanation.scale} of a "
        "row, compared with the mean of all rows. A contribution says what the model does, not what causes what.",
    ]
    if explanation.classes:
        sentences.append(f"The classes {', '.join(explanation.classes)} are shown.")
    if explanation.hidden:
        sentences.append(f"Values of personal data are not shown: {', '.join(explanation.hidden)}.")
    return sentences


def to_html(title: str, explanation: GlobalExplanation) -> str:
    """The explanation as a page of its own.

    Args:
        title: model and version.
        explanation: the explanation.
    """
    return page.document(
        f"What {title} does",
        element("h1", text(f"What {title} does")),
        *(element("p", text(sentence)) for sentence in introduction(explanation)),
        page.section("Importance", importance_figure(explanation)),
        page.section("By value", page.charts(dependence_figures(explanation))),
        page.section("All features", importance_table(explanation)),
    )
