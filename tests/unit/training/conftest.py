"""Models, with published rows and labels or without, and how often checkpoints are saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.spec.model_spec import ModelSpec
from support import toys


@pytest.fixture
def make(empty_home: Path, tmp_path: Path) -> Callable[..., ModelSpec]:
    def make(task: str = "binary", **changes: Any) -> ModelSpec:
        spec = toys.model(tmp_path / "models", toys.unique(), task, **changes)
        toys.publish(spec)
        return spec

    return make


@pytest.fixture
def make_empty(empty_home: Path, tmp_path: Path) -> Callable[..., ModelSpec]:
    """Make a model with keys of its training, and nothing published."""

    def make(task: str = "binary", **training: Any) -> ModelSpec:
        return toys.model(tmp_path / "models", toys.unique(), task, training=training)

    return make


@pytest.fixture
def every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a checkpoint after each boosting round."""
    monkeypatch.setenv("PERENNIAL_CHECKPOINT_SECONDS", "0")
