"""The evaluation of a challenger against the champion and the baseline models, and the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from perennial.modeling.performance import EvaluatedRows, Performance, SlicePerformance, SliceValues
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.constraints import MIN_BOOTSTRAP_PARTITIONS, MIN_SLICE_ROWS
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, pages
from perennial.training.windows import Windows

#: Most slices that the gate names.
MAX_NAMED_SLICES = 5
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

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as JSON, with rounded comparisons, and without charts and `performance`."""
        content = asdict(replace(self, charts={}, performance=None))
        del content["charts"], content["performance"]
        return content | {
            "coverage": self.coverage.as_dict(),
            "against_baselines": {name: c.as_dict() for name, c in self.against_baselines.items()},
            "against_champion": self.against_champion.as_dict() if self.against_champion else None,
        }


def gate_decision(
    spec: ModelSpec,
    values: Mapping[str, float],
    baselines: Mapping[str, Comparison],
    champion: Comparison | None,
    coverage: Coverage | None = None,
    not_compared: str = "",
    performance_by_slice: Performance | None = None,
) -> tuple[bool, list[str]]:
    """Decide whether a challenger passes the gate.

    The confidence interval of its improvement must be above 0 compared with the constant model, and above the margin
    compared with the champion. Compared with the linear model it must not be below 0: if a simpler model is equally
    good, the data do not show which is better. With a champion that cannot be compared, the baseline models always
    count, so that something is compared.

    Args:
        spec: the model.
        values: the challenger's metrics, by name.
        baselines: comparison with each baseline model, by name.
        champion: comparison with the champion; None if there is none, or it cannot be compared.
        coverage: how many rows all of these rest on, for the first sentence.
        not_compared: why the champion cannot be compared; empty if it can, or there is none.
        performance_by_slice: metrics of both models by slice, for ``gate.slices``.

    Returns:
        Whether it passes, and a sentence for each criterion.
    """
    criteria = [(coverage.evaluated > 0, f"evaluated on {coverage}")] if coverage else []

    def compare(name: str, result: Comparison, ok: bool, rule: str) -> None:
        remedy = "" if ok else _remedy(spec, name)
        criteria.append(
            (
                ok,
                f"{spec.metric} {result.loss:.4f}, {name} {result.other:.4f}: improvement "
                f"{result.improvement:+.2%} [{result.low:+.2%}, {result.high:+.2%}], {rule}{remedy}",
            )
        )

    if spec.gate.beat_baseline or not_compared:
        for name, result in baselines.items():
            if name == "constant":
                compare(name, result, result.low > 0, "must be above 0")
            else:
                compare(name, result, result.high >= 0, "must not be below 0")
        if len(baselines) < 2:
            criteria.append((True, "not compared with a linear model: its training rows have one class only"))
    if champion is not None:
        margin = spec.gate.margin
        compare("champion", champion, champion.low > margin, f"must be above {margin:.2%}")
    elif not_compared:
        criteria.append((True, f"not compared with the champion, only with the baselines: {not_compared}"))
    else:
        criteria.append((True, "there is no champion to compare with"))
    criteria += _bound_criteria(spec, values)
    if champion is not None and performance_by_slice is not None:
        criteria += _slice_criteria(spec, performance_by_slice)
    return all(ok for ok, _ in criteria), [f"{'ok' if ok else 'FAILED'}: {text}" for ok, text in criteria]


def _remedy(spec: ModelSpec, name: str) -> str:
    """What to do about a challenger that is not better than a model, continuing a sentence.

    Args:
        spec: the model.
        name: what it was compared with: a baseline model, or the champion.
    """
    if name == "champion":
        return ": the champion stays"
    if name == "linear":
        return (
            ": set training.candidates to [trees, linear], so that the linear model can be the challenger"
            if "linear" not in spec.training.candidates
            else ": add features, or partitions to train on"
        )
    more = f"hold out more than {spec.training.holdout} (training.holdout), so that the interval "
    return (
        f": add features that say more about the label, or partitions to train on; or {more}becomes narrower"
    )


def _bound_criteria(spec: ModelSpec, values: Mapping[str, float]) -> Iterator[tuple[bool, str]]:
    """Whether each metric keeps the gate's bounds, with a sentence."""
    for name, bound in spec.gate.bounds.items():
        value = values.get(name)
        shown = "not known" if value is None else f"{value:.4f}"
        if bound.min is not None:
            ok = value is not None and value >= bound.min
            yield ok, f"{name} is {shown}, must not be below {bound.min:g}"
        if bound.max is not None:
            ok = value is not None and value <= bound.max
            yield ok, f"{name} is {shown}, must not be above {bound.max:g}"


def _slice_criteria(spec: ModelSpec, measured: Performance) -> Iterator[tuple[bool, str]]:
    """Whether no slice is clearly worse than ``gate.slices`` tolerates, with a sentence for each that is."""
    policy = spec.gate.slices
    if policy is None:
        return
    judged = [s for s in measured.slices if s.improvement is not None and s.rows >= policy.min_rows]
    others = f"{len(measured.slices) - len(judged)} others have fewer rows and are not judged"
    if not judged:
        yield (
            False,
            f"no slice of {', '.join(spec.monitoring.slices)} has {policy.min_rows:,} held-out rows (gate.slices."
            f"min_rows), so none is judged: hold out more than {spec.training.holdout} (training.holdout), or lower "
            f"min_rows to {MIN_SLICE_ROWS} or more",
        )
        return
    rule = f"must not be clearly worse by more than {policy.max_worsening:.2%}"
    worse = [s for s in measured.worse_slices if s in judged and _worsening(s) > policy.max_worsening]
    for s in worse[:MAX_NAMED_SLICES]:
        yield (
            False,
            f"slice {s.name}: {spec.metric} {s.metrics[spec.metric].value:.4f}, champion "
            f"{s.champion[spec.metric].value:.4f}: improvement {s.improvement_text} on {s.rows:,} rows, {rule}: add "
            "features that say more about these rows, or partitions to train on that have more of them; or raise "
            "gate.slices.max_worsening",
        )
    if len(worse) > MAX_NAMED_SLICES:
        yield False, f"{len(worse) - MAX_NAMED_SLICES} more slices are worse: see the report of the training"
    if not worse:
        lowest = min(judged, key=lambda s: s.improvement.value if s.improvement else 0.0)
        yield (
            True,
            f"none of {len(judged)} slices with at least {policy.min_rows:,} rows is clearly worse than the champion "
            f"by more than {policy.max_worsening:.2%} ({others}), the lowest improvement is that of {lowest.name}: "
            f"{lowest.improvement_text} on {lowest.rows:,} rows",
        )


def _worsening(slice_: SlicePerformance) -> float:
    """By how much a slice is clearly worse than the champion, as a share of its loss."""
    return -slice_.improvement.high if slice_.improvement else 0.0


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
    values = metrics.metrics(spec.task, y, predicted, lists)
    measured = _estimate_performance(spec, rows, y, predicted, lists)
    passed, reasons = gate_decision(
        spec, values, against_baselines, against_champion, coverage, not_compared, measured
    )
    if confidence and confidence > spec.gate.confidence:
        reasons[0] += f"; best of several models, so the intervals have a confidence of {confidence:.2%}"
    return Evaluation(
        passed,
        reasons,
        values,
        float(challenger_losses.mean()),
        len(y),
        coverage,
        against_baselines,
        against_champion,
        not_compared,
        _draw_charts(spec, y, predicted, challenger.classes),
        measured,
    )


def _estimate_performance(
    spec: ModelSpec, rows: _HoldoutRows, y: np.ndarray, predicted: np.ndarray, lists: np.ndarray | None
) -> Performance:
    """The metrics of challenger and champion with their intervals, in total and by slice."""
    evaluated = EvaluatedRows(
        spec.task,
        spec.metric,
        y,
        predicted,
        np.concatenate(rows.champion) if rows.champion else None,
        lists,
        np.concatenate(rows.days) if rows.days else None,
    )
    return performance.estimate_performance(
        evaluated,
        rows.slices,
        confidence=spec.gate.confidence,
        samples=spec.gate.bootstrap_samples,
        seed=spec.training.seed,
    )


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
    """

    slices: SliceValues
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
) -> _HoldoutRows:
    spec, features = source.spec, source.features
    classes, predict_champion = challenger.classes, None
    champion_classes: tuple[str, ...] = ()
    if champion:
        model = registry.load_comparable_model(champion, windows.holdout[0])
        champion_classes = model.classes
        classes += tuple(c for c in champion_classes if c not in classes)
        predict_champion = _champion_predictor(champion, model, source)
    rows = _HoldoutRows(SliceValues(spec.monitoring.slices), baselines={name: [] for name in baselines})
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
        rows.slices.add(table)
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
    rows = _predict_holdout(source, replace(windows, holdout=dates), model, {}, None)
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
