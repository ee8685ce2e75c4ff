"""A lake with models of every state, and a client of the console over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from perennial.console.app import create_app
from perennial.console.host import LocalHost
from perennial.spec.model_spec import ModelSpec
from support.console import world as console_world


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ModelSpec]]:
    """A folder with the lake of models of every state, and the models by name."""
    root = tmp_path_factory.mktemp("console")
    with pytest.MonkeyPatch.context() as patch:
        look_at(root, patch)
        patch.setattr("perennial.ingestion.data_profile.write_profile", lambda *_: "")
        return root, console_world.build(root / "models")


@pytest.fixture
def world(built: tuple[Path, dict[str, ModelSpec]], monkeypatch: pytest.MonkeyPatch) -> dict[str, ModelSpec]:
    """Models of every state, and no MLflow: its address leads nowhere."""
    root, models = built
    look_at(root, monkeypatch)
    return models


def look_at(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let this process work on a lake."""
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING"):
        patch.delenv(name, raising=False)
    patch.setenv("PERENNIAL_HOME", str(root / "home"))
    patch.setenv("PERENNIAL_MODELS", str(root / "models"))
    patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


@pytest.fixture
def browser(world: dict[str, ModelSpec]) -> TestClient:
    return TestClient(create_app(LocalHost()), base_url="http://127.0.0.1")
