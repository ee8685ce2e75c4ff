"""Streams of nights whose truth is known: ten kinds, with or without a change, each from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: Nights that the first champion learns from, and nights that follow.
HISTORY, LIVE = 60, 120
ROWS = 400
FEATURES = 8
#: Nights that a gradual change takes, and that a recurring one lasts.
SLOW, SEASON = 30, 30
SEGMENT, IDLE = 6, 7
KINDS = {
    "none": "nothing changes",
    "idle column": "a column that the model has no use for moves by two standard deviations",
    "mix": "one customer segment grows from 30% to 70%; what is true of each stays true",
    "harder": "more rows are near the edge between the classes: the loss rises, no model could do better",
    "sudden": "the effect of two columns turns around overnight",
    "gradual": "the same, a few more rows each night for a month",
    "recurring": "the same, for a month, then back, then again",
    "prior": "the positive class becomes three times as likely, whatever the row",
    "new region": "a column moves to values hardly seen before, where its effect is another",
    "noisier": "the columns say half as much about the label as before",
}


@dataclass(frozen=True)
class Stream:
    """One stream; every night of it can be drawn again.

    Attributes:
        change: the night on which something changes; it means nothing for ``none``.
    """

    kind: str
    seed: int
    change: int = field(init=False)
    weights: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Draw the truth."""
        rng = np.random.default_rng([self.seed, list(KINDS).index(self.kind)])
        signs = rng.choice([-1.0, 1.0], FEATURES)
        object.__setattr__(self, "weights", signs * np.array([1.2, 1.0, 0.8, 0.6, 0.4, 0.3, 0.0, 0.0]))
        object.__setattr__(self, "change", HISTORY + int(rng.integers(30, 50)))

    @property
    def changes(self) -> list[int]:
        """Nights of all changes, harmful or not."""
        if self.kind == "none":
            return []
        if self.kind == "recurring":
            return list(range(self.change, HISTORY + LIVE, SEASON))
        return [self.change]

    def turned(self, night: int) -> float:
        """Share of the rows for which the other truth holds."""
        since = night - self.change
        if self.kind == "sudden":
            return float(since >= 0)
        if self.kind == "gradual":
            return float(np.clip(since / SLOW, 0, 1))
        if self.kind == "recurring":
            return float(since >= 0 and (since // SEASON) % 2 == 0)
        return 0.0

    def draw(
        self, night: int, rows: int = ROWS, *, again: int = 0, luck: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features, float32 of shape (rows, `FEATURES`), and labels, of one night.

        Args:
            again: other rows of the same night. luck: whether the night has one of its own, for all its rows.
        """
        rng = np.random.default_rng([self.seed, night, again])
        after = night >= self.change
        x = rng.normal(size=(rows, FEATURES))
        segment = rng.random(rows) < (0.7 if after and self.kind == "mix" else 0.3)
        x[:, 1] += segment
        x[:, SEGMENT] = segment
        if after and self.kind == "idle column":
            x[:, IDLE] += 2
        if after and self.kind == "new region":
            x[:, 0] += 2
        if after and self.kind == "harder":
            x[:, :4] *= 0.5
        other = self.weights * np.array([-1, 1, -1, 1, 1, 1, 1, 1])
        shared = 0.6 * x[:, 0] * x[:, 1] - 1
        logit = np.where(rng.random(rows) < self.turned(night), x @ other, x @ self.weights) + shared
        if self.kind == "new region":
            logit -= 2.5 * np.sign(self.weights[0]) * np.maximum(x[:, 0] - 1.5, 0)
        if after and self.kind == "prior":
            logit += 1.1
        if after and self.kind == "noisier":
            logit = 0.5 * logit
        if luck:
            logit += np.random.default_rng([self.seed, night]).normal(0, 0.2)
        return x.astype(np.float32), (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
