"""Usefulness of features: how much worse the challenger is when it is fitted without them.

Each feature is left out once, and the challenger is fitted again without it, on its window, with its parameters and
rounds. Both are compared on the held-out partitions, by the bootstrap of their paired losses that draws whole
partitions. Of a feature table, all features that depend on one of its columns are left out together, and then all that
depend on the table. Unlike permutation importance this says what would happen if the feature were removed: another one
that is correlated with it may take its place.

A study is due once in `EVERY`, in a training, and takes no longer than the training did. What it had no time for
comes first in the next one; until then the previous values are kept, with their date.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from perennial.features.engine import FeatureQuery
from perennial.modeling.comparison import Comparison
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring.partition_sample import PartitionSample, sample_partitions
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS
from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests
from perennial.training.candidates import Candidate, refitter
from perennial.training.challenger_evaluation import TrainingSource, compare_losses

#: The file of a version.
ARTIFACT = "feature_usefulness.json"
#: Most features that are studied, of those of a very wide table: the least important ones.
MAX_UNITS = 200

UnitKind = Literal["feature", "table column", "table"]
#: ``helps``: the model is clearly worse without it. ``harms``: it is clearly better. ``useless``: neither, and without
#: it the loss rises by less than ``retraining.min_gain``. ``unclear``: neither, and it may rise by more.
UsefulnessVerdict = Literal["helps", "harms", "useless", "unclear"]


class UnitUsefulness(TypedDict):
    """What a feature, a column of a feature table, or a feature table is worth to a model.

    Attributes:
        name: of the feature or the table; of a column, ``table.column``.
        kind: which of these it is.
        columns: the model's features that were left out.
        loss: loss of the challenger on the held-out rows.
        loss_without: loss of the model that was fitted without these features.
        rise: ``loss_without / loss - 1``.
        low: lower end of the confidence interval of the rise.
        high: upper end of it.
        verdict: what that says.
        as_of: partition date of the training that this was measured in.
    """

    name: str
    kind: UnitKind
    columns: list[str]
    loss: float
    loss_without: float
    rise: float
    low: float
    high: float
    verdict: UsefulnessVerdict
    as_of: str


class Usefulness(TypedDict):
    """The result of a study, and what is kept of earlier ones.

    Attributes:
        as_of: partition date of the training that made the latest study.
        metric: the loss.
        confidence: of the intervals.
        units: by feature, column of a table, and table.
        together: what all features without use are worth together, if there are several; they may stand in for each
            other.
        not_measured: names of those that were never measured, for want of time.
        sentence: which features and tables do not help; empty if all of them do, or may.
    """

    as_of: str
    metric: str
    confidence: float
    units: list[UnitUsefulness]
    together: UnitUsefulness | None
    not_measured: list[str]
    sentence: str


@dataclass(frozen=True)
class _Unit:
    """Features that are left out together."""

    name: str
    kind: UnitKind
    columns: tuple[str, ...]


def latest(model: str) -> Usefulness | None:
    """The usefulness of a model's features that its latest training has; None if it was never measured.

    Raises:
        StorageError: the lake cannot be read, or has a damaged manifest.
    """
    manifest = manifests.latest(model, "train")
    return (manifest.result.get("usefulness") or None) if manifest else None


def of_same_features(known: Usefulness, model: TrainedModel) -> Usefulness:
    """What is known about features that a model still has."""
    columns = set(model.encoding.columns)
    together = known["together"]
    return _with_sentence(
        {
            **known,
            "units": [unit for unit in known["units"] if columns.issuperset(unit["columns"])],
            "together": together if together and columns.issuperset(together["columns"]) else None,
            "not_measured": [name for name in known["not_measured"] if name in columns],
        }
    )


def measure(
    source: TrainingSource,
    candidate: Candidate,
    as_of: str,
    folder: Path,
    deadline: float,
    previous: Usefulness | None,
) -> Usefulness:
    """Leave out each feature, table column and table, until the time is up.

    Args:
        source: the data of the training.
        candidate: the challenger.
        as_of: partition date of the training.
        folder: working folder.
        deadline: when it must end, as `time.monotonic` counts.
        previous: what is known from earlier trainings.
    """
    spec, model = source.spec, candidate.model
    features = FeatureQuery(spec, source.features.reference_versions)
    refit = refitter(source, candidate, candidate.windows, folder)
    study = DropStudy(spec, candidate, refit, _held_out(source, features, candidate), as_of)
    known = {(unit["kind"], unit["name"]): unit for unit in (previous["units"] if previous else [])}
    units = _in_order(_units(features, model), known, model.importance())
    measured: dict[tuple[UnitKind, str], UnitUsefulness] = {}
    slowest = 0.0
    for unit in units:
        started = time.monotonic()
        if started + slowest > deadline:
            break
        measured[unit.kind, unit.name] = study.without(unit.name, unit.kind, unit.columns)
        slowest = max(slowest, time.monotonic() - started)
    results = known | measured
    useless = [name for (kind, name), unit in measured.items() if kind == "feature" and is_useless(unit)]
    together = None
    if 1 < len(useless) < len(model.encoding.columns) and time.monotonic() + slowest <= deadline:
        together = study.without("together", "feature", tuple(useless))
    missing = [unit.name for unit in units if (unit.kind, unit.name) not in results]
    return _with_sentence(
        {
            "as_of": as_of,
            "metric": spec.metric,
            "confidence": spec.gate.confidence,
            "units": [results[unit.kind, unit.name] for unit in units if (unit.kind, unit.name) in results],
            "together": together,
            "not_measured": missing,
            "sentence": "",
        }
    )


def _units(features: FeatureQuery, model: TrainedModel) -> list[_Unit]:
    """What is left out: each feature; for feature tables also what depends on a column, and on the table."""
    names = model.encoding.columns
    units = [_Unit(name, "feature", (name,)) for name in names]
    sources = features.table_sources()
    by_column: dict[str, list[str]] = {}
    by_table: dict[str, list[str]] = {}
    for join, table in features.spec.feature_tables:
        for column in table.features:
            of_column = [name for name in names if join.prefix + column in sources.get(name, ())]
            for group in (
                by_column.setdefault(f"{table.name}.{column}", []),
                by_table.setdefault(table.name, []),
            ):
                group += [name for name in of_column if name not in group]
    units += [_Unit(name, "table column", tuple(columns)) for name, columns in by_column.items()]
    units += [_Unit(name, "table", tuple(columns)) for name, columns in by_table.items()]
    return [unit for unit in units if 0 < len(unit.columns) < len(names)]


def _in_order(
    units: Iterable[_Unit],
    known: Mapping[tuple[UnitKind, str], UnitUsefulness],
    importance: Mapping[str, float],
) -> list[_Unit]:
    """Units in the order in which they are studied: never measured ones, then those measured longest ago.

    Of those, tables and their columns come first, and the least important features, which are most likely useless.
    """

    def rank(unit: _Unit) -> tuple[Any, ...]:
        earlier = known.get((unit.kind, unit.name))
        return earlier["as_of"] if earlier else "", unit.kind == "feature", importance.get(unit.name, 0.0)

    return sorted(units, key=rank)[:MAX_UNITS]


def _held_out(source: TrainingSource, features: FeatureQuery, candidate: Candidate) -> PartitionSample:
    """A sample of the held-out rows that have a label."""
    dates = candidate.windows.holdout_range
    return sample_partitions(
        source.spec,
        candidate.model,
        features,
        dates.start,
        dates.end,
        labels_until=dates.end,
        version=source.version,
        labels_version=source.labels_version,
    ).labelled


class DropStudy:
    """Compares a challenger with models that are fitted without some of its features.

    Args:
        spec: the model.
        candidate: the challenger.
        refit: fits it again without the features that it is given.
        held_out: labelled rows of the held-out partitions, encoded by the challenger.
        as_of: partition date of the training.
    """

    def __init__(
        self,
        spec: ModelSpec,
        candidate: Candidate,
        refit: Callable[[Collection[str]], TrainedModel],
        held_out: PartitionSample,
        as_of: str,
    ) -> None:
        self._spec, self._model, self._refit, self._held_out = spec, candidate.model, refit, held_out
        self._as_of = as_of
        self._losses = held_out.losses(spec.task, spec.metric)
        self._compared: dict[tuple[str, ...], Comparison] = {}

    def without(self, name: str, kind: UnitKind, columns: Sequence[str]) -> UnitUsefulness:
        """Measure what some features are worth together.

        Args:
            name: of what is left out.
            kind: what that is.
            columns: the features.
        """
        key = tuple(sorted(columns))
        if key not in self._compared:  # a column of a table is often a feature as it is
            self._compared[key] = self._compare(self._refit(key), key)
        compared = self._compared[key]
        # The comparison is relative to the loss without the features, the result to the challenger's.
        scale = compared.other / max(compared.loss, 1e-12)
        rise, low, high = (scale * value for value in (compared.improvement, compared.low, compared.high))
        return {
            "name": name,
            "kind": kind,
            "columns": list(columns),
            "loss": round(compared.loss, 6),
            "loss_without": round(compared.other, 6),
            "rise": round(rise, 6),
            "low": round(low, 6),
            "high": round(high, 6),
            "verdict": verdict(low, high, self._spec.retraining.min_gain),
            "as_of": self._as_of,
        }

    def _compare(self, other: TrainedModel, columns: Sequence[str]) -> Comparison:
        """Compare the challenger with another model on the held-out rows."""
        spec, rows = self._spec, self._held_out
        remaining = [j for j, name in enumerate(self._model.encoding.columns) if name not in columns]
        losses = replace(rows, predicted=other.predict_matrix(rows.x[:, remaining])).losses(
            spec.task, spec.metric
        )
        counted = np.isfinite(self._losses)  # lists of which no order is wrong have no loss
        days = rows.partition_index[counted]
        blocks = [days] if len(np.unique(days)) >= MIN_BASELINE_PARTITIONS else None
        return compare_losses(spec, self._losses[counted], losses[counted], blocks)


def verdict(low: float, high: float, min_gain: float) -> UsefulnessVerdict:
    """What the interval of the relative rise of the loss without a feature says about it.

    Args:
        low: lower end.
        high: upper end.
        min_gain: rise below which a feature does not matter.
    """
    if low > 0:
        return "helps"
    if high < 0:
        return "harms"
    return "useless" if high < min_gain else "unclear"


def is_useless(unit: UnitUsefulness) -> bool:
    """Whether the model would be as good without it, or better."""
    return unit["verdict"] in ("useless", "harms")


def _with_sentence(known: Usefulness) -> Usefulness:
    """The same with its sentence."""
    features = [u["name"] for u in known["units"] if u["kind"] == "feature" and is_useless(u)]
    tables = [u["name"] for u in known["units"] if u["kind"] == "table" and is_useless(u)]
    parts = [f"feature table {name} does not help" for name in tables]
    if features:
        parts.append(f"these features do not help: {', '.join(features)}")
    if features and (together := known["together"]):
        parts.append(f"without all of those, {change_text(known['metric'], together)}")
        if together["verdict"] == "helps":
            parts[-1] += ", so that some of them must stay"
    return {**known, "sentence": "; ".join(parts)}


def change_text(metric: str, unit: UnitUsefulness) -> str:
    """How the loss changes without a feature, with its interval."""
    return f"the {metric} changes by {unit['rise']:+.2%} [{unit['low']:+.2%}, {unit['high']:+.2%}]"
