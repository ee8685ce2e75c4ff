"""The evaluation of a challenger against the champion and the baseline models, and the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from perennial.core.errors import DataError
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import read_labelled_rows
from perennial.features.targets import ListNumbering, encode_targets
from perennial.modeling import comparison, metrics, registry
from perennial.modeling.comparison import Comparison
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.constraints import MIN_BOOTSTRAP_DAYS
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
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
        rows: number of held-out rows.
        against_baselines: comparison with each baseline model, by name.
        against_champion: comparison with the champion; None if there is none.
    """

    passed: bool
    reasons: list[str]
    metrics: dict[str, float]
    loss: float
    rows: int
    against_baselines: dict[str, Comparison]
    against_champion: Comparison | None

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as JSON, with rounded comparisons."""
        return asdict(self) | {
            "against_baselines": {name: c.as_dict() for name, c in self.against_baselines.items()},
            "against_champion": self.against_champion.as_dict() if self.against_champion else None,
        }


def gate_decision(
    spec: ModelSpec,
    values: Mapping[str, float],
    baselines: Mapping[str, Comparison],
    champion: Comparison | None,
) -> tuple[bool, list[str]]:
    """Decide whether a challenger passes the gate.

    The confidence interval of its improvement must be above 0 compared with the constant model, and above the margin
    compared with the champion. Compared with the linear model it must not be below 0: if a simpler model is equally
    good, the data do not show which is better.

    Args:
        spec: the model.
        values: the challenger's metrics, by name.
        baselines: comparison with each baseline model, by name.
        champion: comparison with the champion; None if there is none.

    Returns:
        Whether it passes, and a sentence for each criterion.
    """
    criteria: list[tuple[bool, str]] = []

    def compare(name: str, result: Comparison, ok: bool, rule: str) -> None:
        criteria.append(
            (
                ok,
                f"{spec.metric} {result.loss:.4f}, {name} {result.other:.4f}: "
                f"{result.improvement:+.2%} [{result.low:+.2%}, {result.high:+.2%}], {rule}",
            )
        )

    if spec.gate.beat_baseline:
        for name, result in baselines.items():
            if name == "constant":
                compare(name, result, result.low > 0, "must be above 0")
            else:
                compare(name, result, result.high > 0, "must not be below 0")
    if champion is not None:
        margin = spec.gate.margin
        compare("champion", champion, champion.low > margin, f"must be above {margin:.2%}")
    else:
        criteria.append((True, "there is no champion yet"))
    for name, bound in spec.gate.bounds.items():
        value = values.get(name)
        shown = "not known" if value is None else f"{value:.4f}"
        ok = value is not None and value <= bound
        criteria.append((ok, f"{name} is {shown}, must not be above {bound:g}"))
    return all(ok for ok, _ in criteria), [f"{'ok' if ok else 'FAILED'}: {text}" for ok, text in criteria]


def evaluate_challenger(
    source: TrainingSource,
    windows: Windows,
    challenger: TrainedModel,
    baselines: Mapping[str, Predictor],
    champion: ModelVersion | None,
) -> Evaluation:
    """Evaluate a challenger on the held-out rows.

    Args:
        source: the data of the training.
        windows: dates of the training.
        challenger: the model.
        baselines: baseline models fitted on the same rows, by name; they predict from the challenger's encoding.
        champion: the champion, which predicts from its own features and encoding; None if there is none.

    Raises:
        DataError: too few held-out rows or days have labels.
        ArtifactError: the champion's file is missing, or is not what was registered.
    """
    spec = source.spec
    rows = _predict_holdout(source, windows, challenger, baselines, champion)
    _check_holdout(spec, windows, rows)
    y = np.concatenate(rows.y)
    lists = np.concatenate(rows.lists) if rows.lists else None

    def losses(blocks: list[np.ndarray]) -> np.ndarray:
        return metrics.losses(spec.task, spec.metric, y, np.concatenate(blocks), lists)

    challenger_losses = losses(rows.challenger)

    def compare(blocks: list[np.ndarray]) -> Comparison:
        return comparison.paired_bootstrap(
            challenger_losses,
            losses(blocks),
            confidence=spec.gate.confidence,
            resamples=spec.gate.bootstrap_samples,
            seed=spec.training.seed,
            days=np.concatenate(rows.days) if rows.days else None,
        )

    against_baselines = {name: compare(blocks) for name, blocks in rows.baselines.items()}
    against_champion = compare(rows.champion) if rows.champion else None
    values = metrics.metrics(spec.task, y, np.concatenate(rows.challenger), lists)
    passed, reasons = gate_decision(spec, values, against_baselines, against_champion)
    loss = float(challenger_losses.mean())
    return Evaluation(passed, reasons, values, loss, len(y), against_baselines, against_champion)


@dataclass(frozen=True)
class _HoldoutRows:
    """The held-out rows in blocks.

    Arrays have the shape (rows,), multiclass predictions (rows, classes).

    Attributes:
        y: labels.
        challenger: the challenger's predictions.
        champion: the champion's predictions; empty if there is none.
        baselines: predictions of the baseline models, by name.
        lists: ranking only: number of each row's list.
        days: day of each row, if the gate's bootstrap draws days.
    """

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
    predict_champion = _champion_predictor(champion, source, challenger) if champion else None
    rows = _HoldoutRows(baselines={name: [] for name in baselines})
    numbering = ListNumbering(spec)
    for table in read_labelled_rows(spec, windows.holdout, source.version, source.labels_version):
        computed = features.compute(table)
        y = encode_targets(spec, table.column("__label"), challenger.classes)
        known = np.isfinite(y)  # a class unseen in training cannot be evaluated
        matrix = challenger.encoding.encode(computed)
        rows.y.append(y[known])
        rows.challenger.append(challenger.predict_matrix(matrix)[known])
        for name, predict in baselines.items():
            rows.baselines[name].append(predict(matrix)[known])
        if spec.gate.bootstrap_unit == "days":
            days = table.column(delta_tables.PARTITION).cast(pa.date32()).cast(pa.int32()).to_numpy()
            rows.days.append(days[known])
        if spec.group:
            rows.lists.append(numbering.number(table)[known])
        if predict_champion:
            rows.champion.append(predict_champion(table, computed)[known])
    return rows


def _champion_predictor(
    champion: ModelVersion, source: TrainingSource, challenger: TrainedModel
) -> Callable[[pa.Table, pa.Table], np.ndarray]:
    """The champion as a function of rows and the challenger's features of these rows.

    Features are computed again only if the champion's spec differs.
    """
    model, spec = registry.load_model(champion), registry.load_spec(champion)
    features = None if spec.digest == source.spec.digest else FeatureQuery(spec)

    def predict(table: pa.Table, computed: pa.Table) -> np.ndarray:
        predictions = model.predict(features.compute(table) if features else computed)
        return _align_classes(predictions, model.classes, challenger.classes)

    return predict


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
    if rows.days and len(np.unique(np.concatenate(rows.days))) < MIN_BOOTSTRAP_DAYS:
        raise DataError(
            f"fewer than {MIN_BOOTSTRAP_DAYS} of the days {dates.start} to {dates.end} have labels",
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
