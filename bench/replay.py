"""Replay of retraining policies over streams with known changes: the loss and the number of trainings of each.

The policy ``perennial`` decides by the library's own code: `monitoring.baseline`, `monitoring.signals`,
`lifecycle.retraining` and the gate's comparison. The labels of a partition are known on the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xgboost
from sklearn.metrics import roc_auc_score

from bench.streams import GRADUAL, HISTORY, LIVE, Stream
from perennial.lifecycle import retraining
from perennial.modeling import comparison, metrics
from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import baseline, retraining_gain, signals
from perennial.monitoring.partition_sample import PartitionSample
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import RetrainingSpec
from perennial.training.windows import SHORT_VALID, regular_holdout

POLICIES = ("never", "nightly", "monthly", "perennial")
#: Partitions that a model is trained on, unless a change was detected, and partitions that it is evaluated on.
WINDOW, HOLDOUT = 46, 14
#: Partitions between two trainings of the policy ``monthly``.
MONTH = 30
#: Rows that the oracle is trained on, and that harm is measured on.
ORACLE_ROWS = 20_000
#: Relative rise of the loss from which a change is harmful, and up to which it is harmless.
HARM, HARMLESS = 0.05, 0.01
#: Minutes from which a flight counts as late, where the predictions are delays.
LATE = 15
_TREES = {"max_depth": 4, "learning_rate": 0.1, "min_child_weight": 20, "reg_lambda": 5, "nthread": 1,
          "verbosity": 0}  # fmt: skip
_ROUNDS = 50


@dataclass
class Replay:
    """The outcome of one policy on one stream.

    Attributes:
        policy: its name.
        spec: the model's spec.
        losses: mean loss of each live partition, that of the gate's metric.
        areas: area under the ROC curve of each live partition; of a regression, that for `LATE`. NaN if all labels are
            equal.
        trained: partitions on which a training was requested, by a calendar or a signal.
        regular: partitions on which one was requested by the trigger ``regular`` only.
        promoted: those of both on which the new model became champion.
        alarms: partitions on which a signal became bad.
    """

    policy: str
    spec: ModelSpec
    losses: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    regular: list[int] = field(default_factory=list)
    promoted: list[int] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)

    def score(self, model: TrainedModel, x: np.ndarray, y: np.ndarray) -> None:
        """Add a model's loss and area on one partition."""
        predicted = model.predict_matrix(x)
        positive = y > LATE if self.spec.task == "regression" else y > 0
        self.losses.append(float(metrics.losses(self.spec.task, self.spec.metric, y, predicted).mean()))
        self.areas.append(float(roc_auc_score(positive, predicted)) if 0 < positive.mean() < 1 else math.nan)

    @property
    def loss(self) -> float:
        """Mean over the partitions of the loss."""
        return float(np.mean(self.losses))

    @property
    def skill(self) -> float | None:
        """1 - log loss / log 2: 0 for a coin toss, 1 for perfect predictions; None for a regression."""
        return None if self.spec.task == "regression" else 1 - self.loss / math.log(2)

    @property
    def auc(self) -> float:
        """Mean over the partitions of the area under the ROC curve."""
        return float(np.nanmean(self.areas))


class Scenario:
    """What all policies start from: the partitions, the first model, and, for generated streams, the oracle.

    Args:
        spec: the model's.
        nights: features and labels of each partition.
        history: number of partitions before the policies begin.
        stream: the stream of the partitions; None for real data, whose changes are not known.
    """

    def __init__(
        self,
        spec: ModelSpec,
        nights: list[tuple[np.ndarray, np.ndarray]],
        history: int,
        stream: Stream | None = None,
    ) -> None:
        self.spec, self.nights, self.history = spec, nights, history
        self._stream = stream

    @classmethod
    def from_stream(cls, stream: Stream, spec: ModelSpec) -> Scenario:
        """The partitions of a generated stream."""
        return cls(spec, [stream.draw(n) for n in range(HISTORY + LIVE)], HISTORY, stream)

    @property
    def live(self) -> range:
        """Indices of the partitions on which the policies act."""
        return range(self.history, len(self.nights))

    @property
    def stream(self) -> Stream:
        """The generated stream."""
        assert self._stream is not None
        return self._stream

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of the partitions ``first`` to ``last``, both included."""
        part = self.nights[max(first, 0) : last + 1]
        return np.concatenate([x for x, _ in part]), np.concatenate([y for _, y in part])

    @cached_property
    def first_model(self) -> TrainedModel:
        """The first champion of all policies."""
        return fit(self.spec, *self.rows(self.history - WINDOW - HOLDOUT, self.history - HOLDOUT - 1))

    @cached_property
    def oracle(self) -> Replay:
        """The best possible policy: at each change, a model fitted to many rows of the changed partition."""
        replay, model, previous = Replay("oracle", self.spec), self.first_model, None
        for night in self.live:
            regime = (
                round(self.stream.reversed_share(night) * 6),
                sum(c <= night for c in self.stream.changes),
            )
            if regime != previous:
                model = fit(self.spec, *self.stream.draw(night, ORACLE_ROWS, replicate=1))
                previous = regime
            replay.score(model, *self.nights[night])
        return replay

    @cached_property
    def harms(self) -> list[tuple[int, float]]:
        """For each change, from which partition on it is harmful, and how much.

        The harm is the relative loss of the model from before the change beyond that of one fitted after it, at its
        highest; the partition is the first on which it exceeds `HARM`, or that of the change where it never does. It is
        measured on many rows, without shared noise.
        """
        harms = []
        changes = self.stream.changes
        for i, change in enumerate(changes):
            before = self.first_model
            if i:
                before = fit(
                    self.spec, *self.stream.draw(change - 1, ORACLE_ROWS, replicate=2, shared_noise=False)
                )
            gradual = GRADUAL if self.stream.kind == "gradual" else 0
            end = min([change + gradual, len(self.nights) - 1, *(c - 1 for c in changes[i + 1 : i + 2])])
            night, harm = change, 0.0
            for night in range(change, end + 1):
                x, y = self.stream.draw(night, ORACLE_ROWS, replicate=3, shared_noise=False)
                after = fit(self.spec, *self.stream.draw(night, ORACLE_ROWS, replicate=4, shared_noise=False))
                harm = max(harm, loss(before, x, y) / loss(after, x, y) - 1)
                if harm > HARM:
                    break
            harms.append((night if harm > HARM else change, round(harm, 4)))
        return harms


def sample_spec(model: str) -> ModelSpec:
    """The spec of a sample model, with the default policy of retraining instead of the demonstration's."""
    return catalog.load_model_by_name(model).model_copy(update={"retraining": RetrainingSpec()})


def fit(spec: ModelSpec, x: np.ndarray, y: np.ndarray) -> TrainedModel:
    """Fit a plain XGBoost model, in the wrapper of the training step."""
    names = tuple(f"f{j}" for j in range(x.shape[1]))
    matrix = xgboost.QuantileDMatrix(x, y, nthread=1, feature_names=list(names))
    booster = xgboost.train(_TREES | {"objective": spec.objective}, matrix, _ROUNDS)
    return TrainedModel(booster, Encoding(names, {}), spec.task)


def loss(model: TrainedModel, x: np.ndarray, y: np.ndarray) -> float:
    """Mean log loss of a binary model."""
    return float(metrics.losses("binary", "log_loss", y, model.predict_matrix(x)).mean())


def replay_policy(scenario: Scenario, policy: str) -> Replay:
    """Replay one policy over all live partitions."""
    replay = Replay(policy, scenario.spec)
    model = scenario.first_model
    perennial = _PerennialPolicy(scenario, model) if policy == "perennial" else None
    for night in scenario.live:
        replay.score(model, *scenario.nights[night])
        last = night - 1  # the latest partition with labels
        if policy == "nightly" or (policy == "monthly" and (night - scenario.history) % MONTH == MONTH - 1):
            replay.trained.append(night)
            replay.promoted.append(night)
            model = fit(scenario.spec, *scenario.rows(last - WINDOW + 1, last))
        elif perennial is not None:
            for event in perennial.events(night):
                getattr(replay, event).append(night)
            model = perennial.model
    return replay


class _PerennialPolicy:
    """The policy of the library."""

    def __init__(self, scenario: Scenario, model: TrainedModel) -> None:
        self.scenario, self.last_request, self.last_training = scenario, -(10**6), scenario.history
        self.content: dict[str, Any] | None = None
        self._promote(model, scenario.history - HOLDOUT, scenario.history - 1)

    def _promote(self, model: TrainedModel, first: int, last: int) -> None:
        """Make a model champion that was evaluated on the partitions ``first`` to ``last``."""
        scenario, self.alarmed = self.scenario, False
        # challengers are compared with the evaluated model, on rows that a refit has learned
        self.model = self.evaluated = model
        content, error_model = baseline.build_baseline(
            scenario.spec, model, _sample(scenario, model, first, last), dict
        )
        self.content = (
            baseline.inherit_from_champion(content, self.content) if last - first + 1 < HOLDOUT else content
        )
        parsed = baseline.parse_baseline(self.content, scenario.spec, None)
        self.baseline = replace(
            parsed, loss_estimator=replace(parsed.loss_estimator, error_model=error_model)
        )
        self.since = last + 1
        self.series: dict[str, list[float]] = {"performance": [], "gain": []}

    def events(self, night: int) -> Iterator[str]:
        """The events after a partition was scored: ``alarms``, ``trained``, ``regular``, ``promoted``."""
        self.waiting_change: int | None = None  # that of signals in their cooldown
        yield from self._respond_to_signals(night)
        policy, cadence = self.scenario.spec.retraining, self.scenario.spec.cadence
        if "regular" in policy.triggers and night - self.last_training >= policy.regular.partitions(cadence):
            self.last_training = night
            yield "regular"
            if self._retrain(self.waiting_change, night - 1, regular_holdout(self.scenario.spec)):
                yield "promoted"

    def _respond_to_signals(self, night: int) -> Iterator[str]:
        scenario, last = self.scenario, night - 1
        if last < self.since:
            return
        recent = _sample(scenario, self.model, last - retraining_gain.LOOKBACK_PARTITIONS, last)
        for name in self.series:
            self.series[name].append(self._latest_value(name, recent))
        dates = tuple(str(n) for n in range(self.since, last + 1))
        evaluated = {
            name: signals.signal_from_series(np.array(values), dates, self.baseline.series.get(name), "loss")
            for name, values in self.series.items()
        }
        is_bad = any(signal.state == "bad" for signal in evaluated.values())
        if is_bad and not self.alarmed:
            yield "alarms"
        self.alarmed = is_bad
        triggers = retraining.triggers_from_signals({n: s.as_dict() for n, s in evaluated.items()})
        cooldown = scenario.spec.retraining.cooldown.partitions(scenario.spec.cadence)
        if not triggers:
            return
        change = min(int(evaluated[name].since or last) for name in triggers)
        if night - self.last_request < cooldown:
            self.waiting_change = change
            return
        self.last_request = self.last_training = night
        yield "trained"
        if self._retrain(change, last):
            yield "promoted"

    def _latest_value(self, name: str, recent: PartitionSample) -> float:
        """The value of a series on the last partition of a sample."""
        spec = self.scenario.spec
        if name == "gain":
            last = len(recent.dates) - 1
            gains = retraining_gain.gain_by_partition(
                spec.task, spec.metric, spec.objective, recent, since=last
            )
            return float(gains[-1])
        latest = recent.select(recent.partition_index == len(recent.dates) - 1)
        expected = self.baseline.loss_estimator.estimate(latest.x, latest.predicted)
        assert expected is not None
        return float(latest.partition_means(latest.losses(spec.task, spec.metric) - expected)[-1])

    def _retrain(self, change: int | None, last: int, held_out: int = HOLDOUT) -> bool:
        """Train on each window of the policy, and let the gate evaluate the best; returns whether it is promoted.

        Args:
            change: the partition since which signals see a change; None if they see none.
            last: the latest partition with labels.
            held_out: number of partitions to evaluate on without a change.
        """
        scenario, spec = self.scenario, self.scenario.spec
        holdout = held_out if change is None else max(1, min(HOLDOUT, (last - change + 1) // 3))
        end = last - holdout
        x, y = scenario.rows(end + 1, last)

        def holdout_losses(model: TrainedModel) -> np.ndarray:
            return metrics.losses(spec.task, spec.metric, y, model.predict_matrix(x))

        confidence = spec.gate.confidence
        if change is not None and change <= end:
            starts = sorted({end - WINDOW + 1, 0, change})
            models = {start: fit(spec, *scenario.rows(start, end)) for start in starts}
            confidence = comparison.simultaneous_confidence(confidence, len(models))
            start = min(models, key=lambda each: float(holdout_losses(models[each]).mean()))
            model = models[start]
        else:
            start = self._best_start(sorted({end - WINDOW + 1, end - HOLDOUT + 1, 0}), end)
            model = fit(spec, *scenario.rows(start, end))
        losses, champion_losses = holdout_losses(model), holdout_losses(self.evaluated)
        verdict = comparison.paired_bootstrap(
            losses, champion_losses, confidence=confidence, resamples=300, seed=0
        )
        if verdict.low <= spec.gate.margin:
            return False
        self._promote(model, end + 1, last)
        if spec.training.refit:
            keeps_start = start in (0, change)
            self.model = fit(spec, *scenario.rows(start if keeps_start else start + holdout, last))
        return True

    def _best_start(self, starts: list[int], end: int) -> int:
        """The first partition of the window whose model does best on the latest partitions, which all can spare."""
        scenario, spec = self.scenario, self.scenario.spec
        if len(starts) == 1:
            return starts[0]
        lengths = [end - max(start, 0) + 1 for start in starts]
        valid = min(max(1, min(7, n // 5), min(SHORT_VALID, n // 3) if n == HOLDOUT else 0) for n in lengths)
        x, y = scenario.rows(end - valid + 1, end)
        models = [fit(spec, *scenario.rows(start, end - valid)) for start in starts]
        losses = [metrics.losses(spec.task, spec.metric, y, m.predict_matrix(x)).mean() for m in models]
        return starts[int(np.argmin(losses))]


def _sample(scenario: Scenario, model: TrainedModel, first: int, last: int) -> PartitionSample:
    """All rows of the partitions ``first`` to ``last``."""
    x, y = scenario.rows(first, last)
    nights = range(max(first, 0), last + 1)
    night = np.repeat(np.arange(len(nights)), [len(scenario.nights[n][1]) for n in nights])
    dates = tuple(str(n) for n in nights)
    return PartitionSample(dates, night, x, model.predict_margin(x), model.predict_matrix(x), y)


def replay_stream(stream: Stream, spec: ModelSpec) -> dict[str, Any]:
    """All policies on one generated stream, as JSON."""
    scenario = Scenario.from_stream(stream, spec)
    return {
        "kind": stream.kind,
        "seed": stream.seed,
        "change": stream.change,
        "harms": scenario.harms,
        "oracle": {"skill": scenario.oracle.skill, "auc": scenario.oracle.auc},
        "policies": {p: to_json(replay_policy(scenario, p)) for p in POLICIES},
    }


def to_json(replay: Replay) -> dict[str, Any]:
    """The numbers of a policy's replay."""
    return {
        "skill": replay.skill,
        "loss": replay.loss,
        "auc": replay.auc,
        "trained": replay.trained,
        "regular": replay.regular,
        "promoted": replay.promoted,
        "alarms": replay.alarms,
    }
