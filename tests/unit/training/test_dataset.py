"""The rows that are trained on: encoded, in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perennial.training import _dataset
from perennial.training._dataset import EncodedRowFile


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
