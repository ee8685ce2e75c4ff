"""The simple models that a challenger is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.modeling.encoding import Encoding
from perennial.spec.model_spec import ModelSpec
from perennial.training import _baseline_models
from perennial.training._baseline_models import fit_baseline_models
from perennial.training._dataset import Dataset, EncodedRowFile
from support import toys


@pytest.fixture
def make(empty_home: Path, tmp_path: Path) -> Any:
    def make(task: str = "binary", **training: Any) -> ModelSpec:
        return toys.model(tmp_path / "models", toys.unique(), task, training=training)

    return make


def data(folder: Path, y: Any = None, rows: int = 600, classes: tuple[str, ...] = ()) -> Dataset:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, 3)).astype(np.float32)
    matrix[:, 2] = rng.integers(0, 3, rows)
    matrix[::17, 0] = np.nan
    if y is None:
        y = (np.nan_to_num(matrix[:, 0]) > 0) == (matrix[:, 1] > 0)
    file = EncodedRowFile(folder / toys.unique("rows"), 3)
    file.append(matrix, np.asarray(y, np.float32), None)
    encoding = Encoding(("a", "b", "c"), {"c": ["x", "y", "z"]})
    return Dataset(file, rows * 3 // 4, encoding, classes, np.concatenate(file.y), None)


def test_baselines_know_what_they_can(make: Any, tmp_path: Path) -> None:
    straight = data(tmp_path)
    y = np.nan_to_num(next(straight.file.batches(0, 600))[0][:, 1]) > 0
    fitted = fit_baseline_models(make(), rows := data(tmp_path, y))
    matrix = next(rows.file.batches(0, 600))[0]
    constant, linear = fitted["constant"](matrix), fitted["linear"](matrix)
    assert np.allclose(constant, y.mean(), atol=1e-6)
    assert linear[y].min() > linear[~y].max()


def test_baselines_of_a_rare_class_that_the_sample_missed(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_baseline_models, "BASELINE_ROWS", 10)
    y = np.zeros(600)
    y[1] = 1  # the sample takes every sixtieth
    rows = data(tmp_path, y)
    fitted = fit_baseline_models(make(), rows)
    matrix = next(rows.file.batches(0, 600))[0]
    assert set(fitted) == {"constant"}
    assert fitted["constant"](matrix).tolist() == [0] * 600


def test_baselines_of_classes_and_values(make: Any, tmp_path: Path) -> None:
    y = np.arange(600) % 3
    rows = data(tmp_path, y, classes=("a", "b", "c"))
    matrix = next(rows.file.batches(0, 600))[0]
    for predict in fit_baseline_models(make("multiclass"), rows).values():
        assert predict(matrix).shape == (600, 3)
        assert np.allclose(predict(matrix).sum(axis=1), 1)
    for predict in fit_baseline_models(make("regression"), data(tmp_path, y)).values():
        assert predict(matrix).shape == (600,)
