"""Which of a training's models the gate sees, and how often a model no better than the champion passes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.modeling.comparison import paired_bootstrap, simultaneous_confidence
from perennial.modeling.coverage import Coverage
from perennial.spec.model_spec import ModelSpec
from perennial.training.candidates import Candidate, select_candidate
from perennial.training.challenger_evaluation import Evaluation, gate_decision
from support import toys

#: Windows that a training can have.
CANDIDATES = 3
REPLICATES = 600


def candidate(
    spec: ModelSpec, losses: np.ndarray, champion: np.ndarray, days: Any, confidence: float, validated: bool
) -> Candidate:
    """A candidate with given losses on the held-out rows; ``validated``: with one on those for early stopping, too."""

    def evaluate() -> Evaluation:
        compared = paired_bootstrap(
            losses, champion, confidence=confidence, resamples=300, seed=spec.training.seed, days=days
        )
        passed, reasons = gate_decision(spec, {}, {}, compared)
        return Evaluation(passed, reasons, {}, compared.loss, len(champion), Coverage(1, 1), {}, compared)

    unused: Any = None
    validation_loss = float(np.random.default_rng(int(losses[0] * 2**32)).exponential())
    loss = validation_loss if validated else float("nan")
    return Candidate("sliding", unused, unused, unused, evaluate, unused, 0, 0, loss)


def draw_losses(random: np.random.Generator, days: np.ndarray) -> np.ndarray:
    """Losses of a model on held-out rows: skewed, and alike within a day."""
    return np.asarray(random.exponential(1, len(days)) + random.exponential(1, days[-1] + 1)[days])


def share_that_passes(
    spec: ModelSpec,
    days: np.ndarray,
    *,
    by_day: bool,
    n: int,
    validated: bool = True,
    corrected: bool = False,
) -> float:
    """How often the gate lets the selected one of ``n`` candidates pass, none of which is better than the champion."""
    confidence = spec.gate.confidence
    if corrected:
        confidence = simultaneous_confidence(confidence, n)
    passed = 0
    for seed in range(REPLICATES):
        random = np.random.default_rng(seed)
        champion = draw_losses(random, days)
        make = partial(
            candidate,
            spec,
            champion=champion,
            days=days if by_day else None,
            confidence=confidence,
            validated=validated,
        )
        passed += select_candidate(make(draw_losses(random, days)) for _ in range(n)).evaluation.passed
    return passed / REPLICATES


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    gate = {"confidence": 0.8, "beat_baseline": False, "bootstrap_unit": "partitions"}
    return toys.model(tmp_path, "toy", gate=gate, training={"holdout": "14 days"})


#: What the intervals allow, (1 - confidence) / 2, and four standard errors of a share of the replicates.
ALLOWED = 0.1 + 4 * np.sqrt(0.1 * 0.9 / REPLICATES)
INDEPENDENT, OF_14_DAYS = np.arange(100), np.repeat(np.arange(14), 8)


@pytest.mark.parametrize("n", [1, CANDIDATES])
def test_a_challenger_no_better_than_the_champion_passes_as_rarely_as_the_confidence_says(
    spec: ModelSpec, n: int
) -> None:
    assert 0.03 < share_that_passes(spec, INDEPENDENT, by_day=False, n=n) < ALLOWED
    assert 0.03 < share_that_passes(spec, OF_14_DAYS, by_day=True, n=n) < ALLOWED


def test_selected_on_the_rows_of_the_gate_it_passes_as_rarely_with_wider_intervals(spec: ModelSpec) -> None:
    share = share_that_passes(spec, INDEPENDENT, by_day=False, n=CANDIDATES, validated=False, corrected=True)
    assert 0.03 < share < ALLOWED


def test_selected_on_the_rows_of_the_gate_or_with_rows_alike_within_a_day_it_passes_more_often(
    spec: ModelSpec,
) -> None:
    """So the test above could fail."""
    assert share_that_passes(spec, INDEPENDENT, by_day=False, n=CANDIDATES, validated=False) > ALLOWED
    assert share_that_passes(spec, OF_14_DAYS, by_day=False, n=1) > ALLOWED
