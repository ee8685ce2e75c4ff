"""Models whose rows and labels are published."""

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
