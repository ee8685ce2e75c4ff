"""Policies of retraining, played over streams whose truth is known: what each costs, and what it keeps of the best.

The policy ``ours`` takes its decisions by the library's own code: `monitoring.baseline`, `monitoring.signals`,
`lifecycle.retraining` and the gate's comparison. The labels of a night are known on the night after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xgboost
from sklearn.metrics import roc_auc_score

from bench.streams import HISTORY, LIVE, SLOW, Stream
from perennial.lifecycle import retraining
from perennial.modeling import comparison, metrics
from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import baseline, retraining_gain, signals
from perennial.monitoring.nightly_sample import NightlySample, predict_margin
from perennial.spec.model_spec import ModelSpec

POLICIES = ("never", "nightly", "calendar", "ours")
#: Nights that a model learns from, unless a change says otherwise, and nights it is judged on.
WINDOW, HOLDOUT = 46, 14
#: Nights between two trainings by calendar.
CALENDAR = 30
#: Rows that the oracle learns from, and that harm is measured on.
MANY = 20_000
#: Relative loss from which a change is harmful, and up to which it is harmless.
HARM, HARMLESS = 0.05, 0.01
_TREES = {"objective": "binary:logistic", "max_depth": 4, "learning_rate": 0.1, "min_child_weight": 20, "reg_lambda": 5,
          "nthread": 1, "verbosity": 0}  # fmt: skip
_ROUNDS = 50


@dataclass
class Played:
    """What a policy made of a stream.

    Attributes:
        losses: mean log loss of each live night. areas: area under its ROC curve.
        trained: nights on which a training was asked for. promoted: those of
            them that brought a new model. alarms: nights on which a followed number became certain.
    """

    policy: str
    losses: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    promoted: list[int] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)

    def score(self, model: TrainedModel, x: np.ndarray, y: np.ndarray) -> None:
        """Note how a model did on a night."""
        predicted = model.predict_matrix(x)
        self.losses.append(float(metrics.losses("binary", "log_loss", y, predicted).mean()))
        self.areas.append(float(roc_auc_score(y, predicted)))

    @property
    def skill(self) -> float:
        """Mean over the nights of 1 - log loss / log 2: 0 for a coin, 1 for certainty."""
        return 1 - float(np.mean(self.losses)) / math.log(2)

    @property
    def auc(self) -> float:
        """Mean over the nights of the area under the ROC curve."""
        return float(np.mean(self.areas))


class World:
    """What is common to all policies: the nights, the first model, and, where the truth is known, the oracle.

    Args:
        nights: features and labels of each night. history: how many of them are over when the policies begin.
        stream: where they come from; None where nobody knows the truth.
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
    def of(cls, stream: Stream, spec: ModelSpec) -> World:
        """The world of a generated stream."""
        return cls(spec, [stream.draw(n) for n in range(HISTORY + LIVE)], HISTORY, stream)

    @property
    def live(self) -> range:
        """The nights that the policies live through."""
        return range(self.history, len(self.nights))

    @property
    def stream(self) -> Stream:
        """The stream, whose truth is known."""
        assert self._stream is not None
        return self._stream

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of the nights ``first`` to ``last``, both included."""
        part = self.nights[max(first, 0) : last + 1]
        return np.concatenate([x for x, _ in part]), np.concatenate([y for _, y in part])

    @cached_property
    def first(self) -> TrainedModel:
        """The model that all policies begin with."""
        return fit(*self.rows(self.history - WINDOW - HOLDOUT, self.history - HOLDOUT - 1))

    @cached_property
    def oracle(self) -> Played:
        """A model trained, at each change, on many rows of what is true from then on: the best possible."""
        found, model, true = Played("oracle"), self.first, None
        for night in self.live:
            now = (round(self.stream.turned(night) * 6), sum(c <= night for c in self.stream.changes))
            if now != true:
                model, true = fit(*self.stream.draw(night, MANY, again=1)), now
            found.score(model, *self.nights[night])
        return found

    @cached_property
    def harms(self) -> list[tuple[int, float]]:
        """For each change, how much more the model of before it loses than one trained on what is true, and from when.

        The night is that on which it first loses `HARM` more, or that of the change where it never does. Measured on
        many rows, of nights without luck.
        """
        found = []
        changes = self.stream.changes
        for i, change in enumerate(changes):
            before = self.first if not i else fit(*self.stream.draw(change - 1, MANY, again=2, luck=False))
            slow = SLOW if self.stream.kind == "gradual" else 0
            end = min([change + slow, len(self.nights) - 1, *(c - 1 for c in changes[i + 1 : i + 2])])
            night, gap = change, 0.0
            for night in range(change, end + 1):
                x, y = self.stream.draw(night, MANY, again=3, luck=False)
                best = loss(fit(*self.stream.draw(night, MANY, again=4, luck=False)), x, y)
                gap = max(gap, loss(before, x, y) / best - 1)
                if gap > HARM:
                    break
            found.append((night if gap > HARM else change, round(gap, 4)))
        return found


def fit(x: np.ndarray, y: np.ndarray) -> TrainedModel:
    """A model of plain XGBoost, as the training step would wrap it."""
    names = tuple(f"f{j}" for j in range(x.shape[1]))
    matrix = xgboost.QuantileDMatrix(x, y, nthread=1, feature_names=list(names))
    return TrainedModel(xgboost.train(_TREES, matrix, _ROUNDS), Encoding(names, {}), "binary")


def loss(model: TrainedModel, x: np.ndarray, y: np.ndarray) -> float:
    """Mean log loss."""
    return float(metrics.losses("binary", "log_loss", y, model.predict_matrix(x)).mean())


def play(world: World, policy: str) -> Played:
    """Let one policy live through the nights of a stream."""
    found = Played(policy)
    model = world.first
    ours = _Ours(world, model) if policy == "ours" else None
    for night in world.live:
        found.score(model, *world.nights[night])
        last = night - 1  # the latest night with labels
        if policy == "nightly" or (
            policy == "calendar" and (night - world.history) % CALENDAR == CALENDAR - 1
        ):
            found.trained.append(night)
            found.promoted.append(night)
            model = fit(*world.rows(last - WINDOW + 1, last))
        elif ours is not None:
            for event in ours.night(night):
                getattr(found, event).append(night)
            model = ours.model
    return found


class _Ours:
    """The library's own policy."""

    def __init__(self, world: World, model: TrainedModel) -> None:
        self.world, self.asked = world, -(10**6)
        self.content: dict[str, Any] | None = None
        self._begin(model, world.history - HOLDOUT, world.history - 1)

    def _begin(self, model: TrainedModel, first: int, last: int) -> None:
        """A new champion, judged on the nights ``first`` to ``last``."""
        world, self.model, self.alarmed = self.world, model, False
        quiet = _evidence(world, model, first, last)
        content, _ = baseline.build_baseline(world.spec, model, quiet, dict)
        self.content = (
            baseline.inherit_from_champion(content, self.content) if last - first + 1 < HOLDOUT else content
        )
        self.watch = baseline.parse_baseline(self.content, world.spec, None)
        self.since, self.numbers = last + 1, {"performance": [], "gain": []}

    def night(self, night: int) -> Iterator[str]:
        """What happens after a night has been scored: ``alarms``, ``trained``, ``promoted``."""
        world, last = self.world, night - 1
        if last < self.since:
            return
        recent = _evidence(world, self.model, last - retraining_gain.LOOKBACK_NIGHTS, last)
        for name in self.numbers:
            self.numbers[name].append(self._number(name, recent))
        dates = tuple(str(n) for n in range(self.since, last + 1))
        found = {
            n: signals.signal_from_series(np.array(v), dates, self.watch.baselines.get(n), "loss")
            for n, v in self.numbers.items()
        }
        bad = any(s.state == "bad" for s in found.values())
        if bad and not self.alarmed:
            yield "alarms"
        self.alarmed = bad
        triggers = retraining.triggers_from_signals({n: s.as_dict() for n, s in found.items()})
        if not triggers or night - self.asked < world.spec.retraining.cooldown_days:
            return
        self.asked = night
        yield "trained"
        began = min(int(found[n].since or last) for n in triggers)
        if self._retrain(began, last):
            yield "promoted"

    def _number(self, name: str, recent: NightlySample) -> float:
        if name == "gain":
            last = len(recent.dates) - 1
            return float(
                retraining_gain.nightly_retraining_gain(
                    "binary", "log_loss", "binary:logistic", recent, since=last
                )[-1]
            )
        recent = recent.where(recent.night == len(recent.dates) - 1)
        losses = recent.losses("binary", "log_loss") - self.watch.expected.losses(recent.x, recent.predicted)
        return float(recent.mean(losses)[-1])

    def _retrain(self, began: int, last: int) -> bool:
        """Train on each window that the policy knows, judge all on the same rows; whether one is better for sure."""
        world, spec = self.world, self.world.spec
        held = max(1, min(HOLDOUT, (last - began + 1) // 3))
        x, y = world.rows(last - held + 1, last)
        old = metrics.losses("binary", "log_loss", y, self.model.predict_matrix(x))
        starts = {last - held - WINDOW + 1, 0} | ({began} if last - held >= began else set())
        models = [fit(*world.rows(start, last - held)) for start in sorted(starts)]
        found = [metrics.losses("binary", "log_loss", y, m.predict_matrix(x)) for m in models]
        best = int(np.argmin([f.mean() for f in found]))
        verdict = comparison.paired_bootstrap(
            found[best], old, confidence=spec.gate.confidence, resamples=300, seed=0
        )
        if verdict.low <= spec.gate.margin:
            return False
        self._begin(models[best], last - held + 1, last)
        return True


def _evidence(world: World, model: TrainedModel, first: int, last: int) -> NightlySample:
    x, y = world.rows(first, last)
    nights = range(max(first, 0), last + 1)
    night = np.repeat(np.arange(len(nights)), [len(world.nights[n][1]) for n in nights])
    return NightlySample(
        tuple(str(n) for n in nights), night, x, predict_margin(model, x), model.predict_matrix(x), y
    )


def results(stream: Stream, spec: ModelSpec) -> dict[str, Any]:
    """All policies on one generated stream, as numbers."""
    world = World.of(stream, spec)
    return {
        "kind": stream.kind,
        "seed": stream.seed,
        "change": stream.change,
        "harms": world.harms,
        "oracle": {"skill": world.oracle.skill, "auc": world.oracle.auc},
        "policies": {p: numbers(play(world, p)) for p in POLICIES},
    }


def numbers(found: Played) -> dict[str, Any]:
    """What is kept of a policy's life."""
    return {
        "skill": found.skill,
        "auc": found.auc,
        "trained": found.trained,
        "promoted": found.promoted,
        "alarms": found.alarms,
    }
