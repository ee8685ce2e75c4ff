"""The simple models that a challenger is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.training import _baseline_models
from perennial.training._baseline_models import fit_baseline_models
from support.training_rows import generated_rows


def test_baselines_know_what_they_can(make_empty: Any, tmp_path: Path) -> None:
    straight = generated_rows(tmp_path)
    y = np.nan_to_num(next(straight.file.batches(0, 600))[0][:, 1]) > 0
    fitted = fit_baseline_models(make_empty(), rows := generated_rows(tmp_path, y))
    matrix = next(rows.file.batches(0, 600))[0]
    constant, linear = fitted["constant"](matrix), fitted["linear"](matrix)
    assert np.allclose(constant, y.mean(), atol=1e-6)
    assert linear[y].min() > linear[~y].max()


def test_baselines_of_a_rare_class_that_the_sample_missed(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_baseline_models, "BASELINE_ROWS", 10)
    y = np.zeros(600)
    y[1] = 1  # the sample takes every sixtieth
    rows = generated_rows(tmp_path, y)
    fitted = fit_baseline_models(make_empty(), rows)
    matrix = next(rows.file.batches(0, 600))[0]
    assert set(fitted) == {"constant"}
    assert fitted["constant"](matrix).tolist() == [0] * 600


def test_baselines_of_classes_and_values(make_empty: Any, tmp_path: Path) -> None:
    y = np.arange(600) % 3
    rows = generated_rows(tmp_path, y, classes=("a", "b", "c"))
    matrix = next(rows.file.batches(0, 600))[0]
    for predict in fit_baseline_models(make_empty("multiclass"), rows).values():
        assert predict(matrix).shape == (600, 3)
        assert np.allclose(predict(matrix).sum(axis=1), 1)
    for predict in fit_baseline_models(make_empty("regression"), generated_rows(tmp_path, y)).values():
        assert predict(matrix).shape == (600,)
