"""A model of the toy kind, whose reference table has landed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing
from support import toys


@pytest.fixture
def make(empty_home: Path, tmp_path: Path) -> Any:
    def make(sql: str = toys.SQL, **changes: Any) -> ModelSpec:
        spec = toys.model(tmp_path / "models", "toy", sql=sql, **changes)
        toys.write(landing.source_uri("{landing}/toy_places.parquet"), toys.places())
        return spec

    return make
