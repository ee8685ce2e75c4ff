"""Judges a challenger against the champion and the baselines on the same held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import read_labelled_rows
from perennial.features.targets import ListNumbering, encode_targets
from perennial.modeling import registry
from perennial.modeling.comparison import Comparison
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.constraints import MIN_BOOTSTRAP_DAYS
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training.windows import Windows

if TYPE_CHECKING:
    import numpy as np


def gate_decision(
    spec: ModelSpec, values: dict[str, float], baselines: dict[str, Comparison], champion: Comparison | None
) -> tuple[bool, list[str]]:
    """Whether a challenger passes, and a reason for each thing that was looked at.

    It must surely beat the constant and the champion (the interval lies above 0, and above the margin), and the linear
    model must not surely beat it: where a simpler model is as good, the data do not say which is the better.
    """
    passed, reasons = True, []
    metric = spec.metric

    def look(name: str, found: Comparison, ok: bool, rule: str) -> None:
        nonlocal passed
        passed = passed and ok
        reasons.append(
            f"{'ok' if ok else 'FAILED'}: {metric} {found.loss:.4f}, {name} {found.other:.4f}: "
            f"{found.improvement:+.2%} [{found.low:+.2%}, {found.high:+.2%}], {rule}"
        )

    if spec.gate.beat_baseline:
        for name, found in baselines.items():
            if name == "constant":
                look(name, found, found.low > 0, "must be above 0")
            else:
                look(name, found, found.high > 0, "must not be below 0")
    if champion is not None:
        look("champion", champion, champion.low > spec.gate.margin, f"must be above {spec.gate.margin:.2%}")
    else:
        reasons.append("ok: there is no champion yet")
    for name, bound in spec.gate.bounds.items():
        value = values.get(name)
        ok = value is not None and value <= bound
        passed = passed and ok
        shown = "not known" if value is None else f"{value:.4f}"
        reasons.append(f"{'ok' if ok else 'FAILED'}: {name} is {shown}, must not be above {bound:g}")
    return passed, reasons


@dataclass(frozen=True)
class TrainingSource:
    """Where the rows come from: the versions of the published rows and of their labels, and their features."""

    spec: ModelSpec
    features: FeatureQuery
    version: int | None
    labels_version: int | None


def evaluate_challenger(
    source: TrainingSource,
    split: Windows,
    challenger: TrainedModel,
    baselines: dict[str, Any],
    champion: registry.ModelVersion | None,
) -> dict[str, Any]:
    """Champion, challenger and baseline on the held-out rows, each with its own features and encoding."""
    import numpy as np

    from perennial.modeling import comparison, metrics

    spec, features = source.spec, source.features
    old = registry.load_model(champion) if champion else None
    old_spec = registry.load_spec(champion) if champion else spec
    old_features = features if old_spec.digest == spec.digest else FeatureQuery(old_spec)
    y: list[np.ndarray] = []
    mine: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    group: list[np.ndarray] = []
    days: list[np.ndarray] = []
    simple: dict[str, list[np.ndarray]] = {name: [] for name in baselines}
    numbering = ListNumbering(spec)
    for table in read_labelled_rows(spec, split.holdout, source.version, source.labels_version):
        rows = features.compute(table)
        target = encode_targets(spec, table.column("__label"), challenger.classes)
        known = np.isfinite(target)  # a class that training never saw cannot be judged
        matrix = challenger.encoding.encode(rows)
        y.append(target[known])
        mine.append(challenger.predict_matrix(matrix)[known])
        for name, predict in baselines.items():
            simple[name].append(predict(matrix)[known])
        if spec.gate.bootstrap_unit == "days":
            days.append(table.column(delta_tables.PARTITION).cast("date32").cast("int32").to_numpy()[known])
        if spec.group:
            group.append(numbering.number(table)[known])
        if old:
            found = old.predict(rows if old_features is features else old_features.compute(table))
            theirs.append(_same_classes(found, old, challenger)[known])
    if not sum(map(len, y)):
        raise DataError(
            f"no labelled row between {split.holdout[0]} and {split.holdout[-1]}",
            "wait for labels",
            model=spec.name,
        )
    if days and len(np.unique(np.concatenate(days))) < MIN_BOOTSTRAP_DAYS:
        raise DataError(
            f"fewer than {MIN_BOOTSTRAP_DAYS} of the days {split.holdout[0]} to {split.holdout[-1]} have labels",
            "wait for labels, or set gate.bootstrap_unit to rows",
            model=spec.name,
        )
    truth = np.concatenate(y)
    lists = np.concatenate(group) if group else None

    def loss(parts: list[np.ndarray]) -> np.ndarray:
        return metrics.losses(spec.task, spec.metric, truth, np.concatenate(parts), lists)

    how: dict[str, Any] = {
        "confidence": spec.gate.confidence,
        "resamples": spec.gate.bootstrap_samples,
        "seed": spec.training.seed,
        "days": np.concatenate(days) if days else None,
    }
    own = loss(mine)
    to_baselines = {
        name: comparison.paired_bootstrap(own, loss(parts), **how) for name, parts in simple.items()
    }
    to_champion = comparison.paired_bootstrap(own, loss(theirs), **how) if theirs else None
    values = metrics.metrics(spec.task, truth, np.concatenate(mine), lists)
    passed, reasons = gate_decision(spec, values, to_baselines, to_champion)
    return {
        "passed": passed,
        "reasons": reasons,
        "metrics": values,
        "loss": float(own.mean()),
        "rows": len(truth),
        "against_baselines": {name: found.as_dict() for name, found in to_baselines.items()},
        "against_champion": to_champion.as_dict() if to_champion else None,
    }


def _same_classes(found: np.ndarray, old: TrainedModel, new: TrainedModel) -> np.ndarray:
    """The champion's probabilities in the challenger's order of classes; zero for one it does not know."""
    if old.classes == new.classes:
        return found
    import numpy as np

    out = np.zeros((len(found), len(new.classes)), found.dtype)
    for j, name in enumerate(new.classes):
        if name in old.classes:
            out[:, j] = found[:, old.classes.index(name)]
    return out
