from __future__ import annotations

import pytest

from perennial.monitoring.drift_attribution import loss_attributable_to_drift


def test_the_attributed_loss_is_that_of_the_bins() -> None:
    reference, expected_losses = [50, 50, 0], [0.2, 0.6, 0.4]
    assert loss_attributable_to_drift(reference, [50, 50, 0], expected_losses) == pytest.approx(0)
    assert loss_attributable_to_drift(reference, [0, 100, 0], expected_losses) == pytest.approx(0.2)
    assert loss_attributable_to_drift(reference, [0, 0, 0], expected_losses) is None
