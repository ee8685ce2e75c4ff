"""The evaluation of a challenger against the champion and the baseline models, and the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from perennial.core.errors import DataError
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import read_labelled_rows
from perennial.features.targets import ListNumbering, encode_targets
from perennial.modeling import comparison, evaluation_charts, metrics, performance, registry
from perennial.modeling.comparison import Comparison
from perennial.modeling.coverage import NO_LABEL, ONE_GRADE, UNSEEN_CLASS, Coverage
from perennial.modeling.evaluation_charts import Chart
from perennial.modeling.performance import EvaluatedRows, Performance, SliceValues
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.constraints import MIN_BOOTSTRAP_PARTITIONS
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, pages
from perennial.training.gate.decision import gate_decision
from perennial.training.gate.fairness import Fairness, estimate_fairness
from perennial.training.gate.group_values import GroupValues
from perennial.training.windows import Windows

#: A function from an encoded matrix to predictions.
Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class TrainingSource:
    """The data that a training reads.

    Attributes:
        spec: the model.
        features: its features, at pinned versions of the reference tables.
        version: version of the published rows.
        labels_version: version of the labels; None if the rows contain them.
    """

    spec: ModelSpec
    features: FeatureQuery
    version: int | None
    labels_version: int | None


@dataclass(frozen=True)
class Evaluation:
    """The results of a challenger on the held-out rows.

    Attributes:
        passed: whether it passed the gate.
        reasons: a sentence for each criterion of the gate.
        metrics: its metrics, by name.
        loss: its mean loss.
        rows: number of held-out rows with a label.
        coverage: how many of the published rows of the held-out dates the metrics and comparisons rest on.
        against_baselines: comparison with each baseline model, by name.
        against_champion: comparison with the champion; None if there is none, or it cannot be compared.
        not_compared: why the champion cannot be compared; empty if it was, or there is none.
        charts: charts of its predictions on the held-out rows, by name; empty if they could not be drawn.
        performance: its metrics, and those of the champion, with intervals, in total and by slice.
        fairness: how far apart it treats groups; None without ``gate.fairness``.
    """

    passed: bool
    reasons: list[str]
    metrics: dict[str, float]
    loss: float
    rows: int
    coverage: Coverage
    against_baselines: dict[str, Comparison]
    against_champion: Comparison | None
    not_compared: str = ""
    charts: Mapping[str, Chart] = field(default_factory=dict)
    performance: Performance | None = None
    fairness: Fairness | None = None

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as JSON, with rounded comparisons, and without charts, `performance` and `fairness`."""
        content = asdict(replace(self, charts={}, performance=None, fairness=None))
        del content["charts"], content["performance"], content["fairness"]
        return content | {
            "coverage": self.coverage.as_dict(),
            "against_baselines": {name: c.as_dict() for name, c in self.against_baselines.items()},
            "against_champion": self.against_champion.as_dict() if self.against_champion else None,
        }


def evaluate_challenger(
    source: TrainingSource,
    windows: Windows,
    challenger: TrainedModel,
    baselines: Mapping[str, Predictor],
    champion: ModelVersion | None,
    not_compared: str = "",
    confidence: float | None = None,
) -> Evaluation:
    """Evaluate a challenger on the held-out rows.

    Args:
        source: the data of the training.
        windows: dates of the training.
        challenger: the model.
        baselines: baseline models fitted on the same rows, by name; they predict from the challenger's encoding.
        champion: the champion, which predicts from its own features and encoding; None if there is none, or it cannot
            be compared.
        not_compared: why it cannot be compared; empty otherwise.
        confidence: confidence of the intervals; ``gate.confidence`` when not given.

    Raises:
        DataError: too few held-out rows or days have labels, or all grades of each list are equal.
        ArtifactError: the champion's file is missing, or is not what was registered.
    """
    spec = source.spec
    rows = _predict_holdout(source, windows, challenger, baselines, champion)
    _check_holdout(spec, windows, rows)
    y = np.concatenate(rows.y)
    lists = np.concatenate(rows.lists) if rows.lists else None
    coverage = _coverage(source, windows, y, lists)
    predicted = np.concatenate(rows.challenger)
    challenger_losses = _losses(spec, y, predicted, lists)

    def compare(blocks: list[np.ndarray]) -> Comparison:
        other = _losses(spec, y, np.concatenate(blocks), lists)
        return compare_losses(spec, challenger_losses, other, rows.days, confidence)

    against_baselines = {name: compare(blocks) for name, blocks in rows.baselines.items()}
    against_champion = compare(rows.champion) if rows.champion else None
    compared = against_baselines, against_champion
    values = metrics.metrics(spec.task, y, predicted, lists)
    measured, fairness = _estimate_performance(spec, rows, y, predicted, lists)
    passed, reasons = gate_decision(spec, values, *compared, coverage, not_compared, measured, fairness)
    if confidence and confidence > spec.gate.confidence:
        reasons[0] += f"; best of several models, so the intervals have a confidence of {confidence:.2%}"
    return Evaluation(
        passed,
        reasons,
        values,
        float(challenger_losses.mean()),
        len(y),
        coverage,
        *compared,
        not_compared,
        _draw_charts(spec, y, predicted, challenger.classes),
        measured,
        fairness,
    )


def _estimate_performance(
    spec: ModelSpec, rows: _HoldoutRows, y: np.ndarray, predicted: np.ndarray, lists: np.ndarray | None
) -> tuple[Performance, Fairness | None]:
    """The metrics of challenger and champion with their intervals, in total and by slice; and gaps between groups."""
    evaluated = EvaluatedRows(
        spec.task,
        spec.metric,
        y,
        predicted,
        np.concatenate(rows.champion) if rows.champion else None,
        lists,
        np.concatenate(rows.days) if rows.days else None,
    )
    confidence, samples, seed = spec.gate.confidence, spec.gate.bootstrap_samples, spec.training.seed
    measured = performance.estimate_performance(
        evaluated, rows.slices, confidence=confidence, samples=samples, seed=seed
    )
    if spec.gate.fairness is None:
        return measured, None
    fairness = estimate_fairness(
        spec.gate.fairness,
        evaluated,
        rows.groups,
        rows.classes,
        confidence=confidence,
        samples=samples,
        seed=seed,
    )
    return measured, fairness


def _losses(spec: ModelSpec, y: np.ndarray, predicted: np.ndarray, lists: np.ndarray | None) -> np.ndarray:
    """The loss of each held-out row; for a ranking of each list that has one."""
    values = metrics.losses(spec.task, spec.metric, y, predicted, lists)
    # Which lists have a loss depends on their grades only, so these are the same for all models.
    return values if lists is None else values[~np.isnan(values)]


def compare_losses(
    spec: ModelSpec,
    losses: np.ndarray,
    other: np.ndarray,
    days: list[np.ndarray] | None = None,
    confidence: float | None = None,
) -> Comparison:
    """Compare the losses of two models on the same rows, by the gate's bootstrap.

    Args:
        spec: the model.
        losses: losses of one model, shape (rows,).
        other: losses of the other model, shape (rows,).
        days: blocks of the rows' partitions, which are drawn as a whole; rows are drawn when there are none.
        confidence: confidence of the interval; ``gate.confidence`` when not given.
    """
    return comparison.paired_bootstrap(
        losses,
        other,
        confidence=confidence or spec.gate.confidence,
        resamples=spec.gate.bootstrap_samples,
        seed=spec.training.seed,
        days=np.concatenate(days) if days else None,
    )


def _draw_charts(
    spec: ModelSpec, y: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]
) -> Mapping[str, Chart]:
    """The charts of the challenger's predictions; empty if they cannot be drawn."""
    charts, _ = pages.attempt(
        f"the charts of the evaluation of {spec.name}",
        lambda: evaluation_charts.performance_charts(spec.task, y, predicted, classes),
    )
    return charts or {}


def _coverage(source: TrainingSource, windows: Windows, y: np.ndarray, lists: np.ndarray | None) -> Coverage:
    """How many of the published rows of the held-out dates the evaluation rests on; none is an error."""
    spec, dates = source.spec, windows.holdout_range
    published = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name), source.version)
    rows = sum(n for day, n in published.items() if day in dates)
    omitted, evaluated, unseen = {NO_LABEL: rows - len(y)}, len(y), 0
    if lists is not None:
        omitted[ONE_GRADE] = metrics.rows_of_one_grade(y, lists)
        evaluated -= omitted[ONE_GRADE]
    if spec.task == "multiclass":
        unseen = int((y < 0).sum())
    coverage = Coverage(evaluated, rows, omitted, {UNSEEN_CLASS: unseen})
    if not coverage.evaluated:
        raise DataError(
            f"no list of the held-out rows has two grades: {coverage}",
            "check label.expression and group: the order of a list matters only if its grades differ",
            model=spec.name,
        )
    return coverage


@dataclass(frozen=True)
class _HoldoutRows:
    """The held-out rows in blocks.

    Arrays have the shape (rows,), multiclass predictions (rows, classes), where the classes are those of the
    challenger, then those that only the champion knows. So all models are compared on the same rows, and a class that a
    model does not know counts as wrong for this model.

    Attributes:
        y: labels.
        challenger: the challenger's predictions.
        champion: the champion's predictions; empty if there is none.
        baselines: predictions of the baseline models, by name.
        lists: ranking only: number of each row's list.
        days: day of each row, if the gate's bootstrap draws days.
        slices: values of the columns of ``monitoring.slices``.
        groups: groups of ``gate.fairness``.
        classes: names of the classes, for multiclass.
    """

    slices: SliceValues
    groups: GroupValues
    classes: tuple[str, ...]
    y: list[np.ndarray] = field(default_factory=list)
    challenger: list[np.ndarray] = field(default_factory=list)
    champion: list[np.ndarray] = field(default_factory=list)
    baselines: dict[str, list[np.ndarray]] = field(default_factory=dict)
    lists: list[np.ndarray] = field(default_factory=list)
    days: list[np.ndarray] = field(default_factory=list)


def _predict_holdout(
    source: TrainingSource,
    windows: Windows,
    challenger: TrainedModel,
    baselines: Mapping[str, Predictor],
    champion: ModelVersion | None,
    *,
    by_group: bool = True,
) -> _HoldoutRows:
    """Predict the held-out rows by all models.

    Args:
        source: the data of the training.
        windows: dates of the training.
        challenger: the model.
        baselines: baseline models, by name.
        champion: the champion; None if there is none.
        by_group: whether to collect the values that form slices and groups.
    """
    spec, features = source.spec, source.features
    classes, predict_champion = challenger.classes, None
    champion_classes: tuple[str, ...] = ()
    if champion:
        model = registry.load_comparable_model(champion, windows.holdout[0])
        champion_classes = model.classes
        classes += tuple(c for c in champion_classes if c not in classes)
        predict_champion = _champion_predictor(champion, model, source)
    slices, groups = SliceValues(spec.monitoring.slices), GroupValues(spec.gate.fairness)
    rows = _HoldoutRows(slices, groups, classes, baselines={name: [] for name in baselines})
    numbering = ListNumbering(spec)
    for table in read_labelled_rows(spec, windows.holdout, source.version, source.labels_version):
        computed = features.compute(table)
        matrix = challenger.encoding.encode(computed)
        rows.y.append(encode_targets(spec, table.column("__label"), classes))
        rows.challenger.append(_align_classes(challenger.predict_matrix(matrix), challenger.classes, classes))
        for name, predict in baselines.items():
            rows.baselines[name].append(_align_classes(predict(matrix), challenger.classes, classes))
        if spec.gate.bootstrap_unit == "partitions":
            days = table.column(delta_tables.PARTITION).cast(pa.date32()).cast(pa.int32()).to_numpy()
            rows.days.append(days)
        if by_group:
            rows.slices.add(table)
            rows.groups.add(table)
        if spec.group:
            rows.lists.append(numbering.number(table))
        if predict_champion:
            predicted = predict_champion(table, computed)
            rows.champion.append(_align_classes(predicted, champion_classes, classes))
    return rows


def _champion_predictor(
    champion: ModelVersion, model: TrainedModel, source: TrainingSource
) -> Callable[[pa.Table, pa.Table], np.ndarray]:
    """The champion as a function of rows and the challenger's features of these rows.

    Features are computed again only if the champion's spec differs.
    """
    spec = registry.load_spec(champion)
    features = None if spec.digest == source.spec.digest else FeatureQuery(spec)

    def predict(table: pa.Table, computed: pa.Table) -> np.ndarray:
        return model.predict(features.compute(table) if features else computed)

    return predict


def losses_on(
    source: TrainingSource, windows: Windows, dates: tuple[str, ...], model: TrainedModel
) -> np.ndarray:
    """The loss of a model on each labelled row of some dates, or on each list that has one; shape (rows,)."""
    rows = _predict_holdout(source, replace(windows, holdout=dates), model, {}, None, by_group=False)
    if not rows.y:
        return np.zeros(0)
    y, predicted = np.concatenate(rows.y), np.concatenate(rows.challenger)
    return _losses(source.spec, y, predicted, np.concatenate(rows.lists) if rows.lists else None)


def _check_holdout(spec: ModelSpec, windows: Windows, rows: _HoldoutRows) -> None:
    """Refuse to evaluate on too few rows or days.

    Raises:
        DataError: there are too few.
    """
    dates = windows.holdout_range
    if not sum(map(len, rows.y)):
        raise DataError(
            f"no labelled row between {dates.start} and {dates.end}",
            "wait until labels arrive, or check the label feed",
            model=spec.name,
        )
    if rows.days and len(np.unique(np.concatenate(rows.days))) < MIN_BOOTSTRAP_PARTITIONS:
        raise DataError(
            f"fewer than {MIN_BOOTSTRAP_PARTITIONS} of the partitions {dates.start} to {dates.end} have labels",
            "wait until labels arrive, or set gate.bootstrap_unit to rows",
            model=spec.name,
        )


def _align_classes(predictions: np.ndarray, classes: tuple[str, ...], order: tuple[str, ...]) -> np.ndarray:
    """Reorder probabilities by class; zero for a class that the model does not know."""
    if classes == order:
        return predictions
    aligned = np.zeros((len(predictions), len(order)), predictions.dtype)
    for j, name in enumerate(order):
        if name in classes:
            aligned[:, j] = predictions[:, classes.index(name)]
    return aligned
