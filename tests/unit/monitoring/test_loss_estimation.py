from __future__ import annotations

import numpy as np
import pytest

from perennial.monitoring._loss_estimation import LossEstimator, fit_error_model


def test_the_error_model_of_a_regression_predicts_where_errors_are_large() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((4000, 2)).astype(np.float32)
    losses = (rng.normal(size=4000) * (1 + 3 * (x[:, 0] > 0.5))) ** 2
    booster, out_of_fold = fit_error_model(x, losses, np.repeat(np.arange(8), 500))
    estimated = LossEstimator("regression", "squared_error", booster).estimate(x, x[:, 0])
    assert estimated is not None
    for expected in (estimated, out_of_fold):
        assert expected[x[:, 0] > 0.5].mean() == pytest.approx(losses[x[:, 0] > 0.5].mean(), rel=0.15)
        assert expected[x[:, 0] < 0.5].mean() == pytest.approx(losses[x[:, 0] < 0.5].mean(), rel=0.3)
