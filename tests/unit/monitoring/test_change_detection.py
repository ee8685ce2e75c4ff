from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perennial.monitoring._change_detection import BETS, CLIP, fit_cusum_baseline, log_e_detector


def test_the_level_is_the_mean_over_the_bets() -> None:
    z = np.random.default_rng(0).normal(0.3, 2, (3, 40))
    for series, levels in zip(z, log_e_detector(z), strict=True):
        log_e = dict.fromkeys(BETS, 0.0)
        for night, value in enumerate(np.clip(series, -CLIP, CLIP)):
            log_e = {bet: max(s, 0.0) + bet * value - bet**2 / 2 for bet, s in log_e.items()}
            assert levels[night] == pytest.approx(np.log(np.mean(np.exp(list(log_e.values())))), rel=1e-12)


def test_false_alarms_stay_within_the_budget() -> None:
    """Gaussian values at the very edge of the allowance, and values with heavy tails."""
    rng = np.random.default_rng(0)
    heavy = 0.5 + rng.standard_t(5, (401, 365)) / np.sqrt(5 / 3)
    for years in (rng.normal(0.5, 1, (401, 365)), heavy):
        fitted = fit_cusum_baseline(years[0, :60] - 0.5, allowance=0.5, false_alarms=0.5)
        assert fitted is not None
        edge = replace(fitted, mean=0.0, sd=max(fitted.sd, 1.0), allowance=0.5)
        assert (log_e_detector(edge.standardise(years[1:])).max(axis=1) > fitted.limit).mean() < 0.5
