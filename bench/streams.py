"""Generated streams of partitions with known changes: ten kinds, each stream reproducible from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: Partitions before the policies begin, which the first champion is trained on, and partitions after.
HISTORY, LIVE = 60, 120
ROWS = 400
FEATURES = 8
#: Partitions that a gradual change takes, and that a recurring one lasts.
GRADUAL, SEASON = 30, 30
#: Index of the column with the customer segment, and of one without an effect on the label.
SEGMENT, IDLE = 6, 7
KINDS = {
    "none": "nothing changes",
    "idle column": "a column without an effect on the label shifts by two standard deviations",
    "mix": "one customer segment grows from 30% to 70% of the rows; the effects of the columns stay",
    "harder": "more rows are near the decision boundary: the loss rises, and no model could do better",
    "sudden": "the effects of two columns reverse within one night",
    "gradual": "the same, for a few more rows each day over a month",
    "recurring": "the same, for a month, then back, then again",
    "prior": "the odds of the positive class become three times as high for every row",
    "new region": "a column shifts to values that were rare before, where its effect differs",
    "noisier": "the effects of all columns halve",
}


@dataclass(frozen=True)
class Stream:
    """One stream; a partition can be drawn repeatedly.

    Attributes:
        kind: of `KINDS`.
        seed: of all random numbers.
        change: index of the partition with the first change; without a meaning for ``none``.
        weights: effects of the columns before the change, in logits, shape (`FEATURES`,).
    """

    kind: str
    seed: int
    change: int = field(init=False)
    weights: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Draw the effects and the change."""
        rng = np.random.default_rng([self.seed, list(KINDS).index(self.kind)])
        signs = rng.choice([-1.0, 1.0], FEATURES)
        object.__setattr__(self, "weights", signs * np.array([1.2, 1.0, 0.8, 0.6, 0.4, 0.3, 0.0, 0.0]))
        object.__setattr__(self, "change", HISTORY + int(rng.integers(30, 50)))

    @property
    def changes(self) -> list[int]:
        """Indices of the partitions with a change, harmful or not."""
        if self.kind == "none":
            return []
        if self.kind == "recurring":
            return list(range(self.change, HISTORY + LIVE, SEASON))
        return [self.change]

    def reversed_share(self, night: int) -> float:
        """Share of the partition's rows for which the effects are reversed."""
        since = night - self.change
        if self.kind == "sudden":
            return float(since >= 0)
        if self.kind == "gradual":
            return float(np.clip(since / GRADUAL, 0, 1))
        if self.kind == "recurring":
            return float(since >= 0 and (since // SEASON) % 2 == 0)
        return 0.0

    def draw(
        self, night: int, rows: int = ROWS, *, replicate: int = 0, shared_noise: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one partition.

        Args:
            night: index of the partition.
            rows: number of rows.
            replicate: another number draws other rows of the same partition.
            shared_noise: whether all rows of the partition share a random shift, as those of a stormy day do.

        Returns:
            Features, float32, shape (rows, `FEATURES`), and labels 0 or 1, shape (rows,).
        """
        rng = np.random.default_rng([self.seed, night, replicate])
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
        reversed_weights = self.weights * np.array([-1, 1, -1, 1, 1, 1, 1, 1])
        common = 0.6 * x[:, 0] * x[:, 1] - 1
        logit = (
            np.where(rng.random(rows) < self.reversed_share(night), x @ reversed_weights, x @ self.weights)
            + common
        )
        if self.kind == "new region":
            logit -= 2.5 * np.sign(self.weights[0]) * np.maximum(x[:, 0] - 1.5, 0)
        if after and self.kind == "prior":
            logit += 1.1
        if after and self.kind == "noisier":
            logit = 0.5 * logit
        if shared_noise:
            logit += np.random.default_rng([self.seed, night]).normal(0, 0.2)
        return x.astype(np.float32), (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
