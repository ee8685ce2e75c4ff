"""The rows that are trained on: encoded, in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perennial.governance.reproduction import reproduce
from perennial.spec.model_spec import ModelSpec
from perennial.steps.train import train
from perennial.training import _dataset
from perennial.training._dataset import EncodedRowFile
from support import toys


def test_a_file_gives_back_what_was_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dataset, "BATCH_ROWS", 7)
    file = EncodedRowFile(tmp_path / "rows", 3)
    matrix = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    matrix[3, 1] = np.nan
    file.append(matrix[:12], np.zeros(12), None)
    file.append(matrix[12:], np.zeros(8), None)
    batches = list(file.batches(5, 20))
    assert [r for _, r in batches] == [slice(5, 12), slice(12, 19), slice(19, 20)]
    assert np.array_equal(np.concatenate([m for m, _ in batches]), matrix[5:], equal_nan=True)


def test_categories_get_their_rank_however_they_came(tmp_path: Path) -> None:
    file = EncodedRowFile(tmp_path / "rows", 1)
    file.append(np.float32([[0], [2], [np.nan], [1]]), np.zeros(4), None)
    file.lookup[0] = np.float32([2, 0, 1, np.nan])  # seen as c, a, b
    ((values, _),) = file.batches(0, 4)
    assert np.array_equal(values[:, 0], [2, 1, np.nan, 0], equal_nan=True)


def test_a_training_of_a_sample_says_so_and_is_reproduced(make_model: Callable[..., ModelSpec]) -> None:
    spec = make_model(training={"max_rows": 1000, "rounds": 3})
    toys.publish(spec, n=4 * toys.ROWS)
    result = train(spec, as_of=toys.LAST)
    learned, held_out = result["rows"]["fit"] + result["rows"]["valid"], result["rows"]["holdout"]
    assert learned == pytest.approx(1000, rel=0.1) and held_out == 4 * 5 * toys.ROWS, "these are not sampled"
    report = Path(result["report"]).read_text()
    assert "of the rows, by training.max_rows)" in report
    assert reproduce(spec, version=result["version"])["outcome"] == "identical"
