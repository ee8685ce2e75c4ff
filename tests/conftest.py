"""Fixtures of every test folder."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# `support` is imported by tests and, by name, by the processes that they start.
sys.path.append(str(Path(__file__).parent))
os.environ.setdefault("DO_NOT_TRACK", "true")


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the MLflow server keeps its store."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def mlflow_url(mlflow_folder: Path) -> Iterator[str]:
    """A real MLflow server, for the whole session."""
    from support import servers

    with servers.mlflow(mlflow_folder) as url:
        yield url


@pytest.fixture(scope="session")
def artifact(mlflow_folder: Path) -> Callable[[str], Path]:
    """Finds the model file of a digest in MLflow's artifact store."""

    def find(digest: str) -> Path:
        files = (mlflow_folder / "artifacts").rglob("model.ubj")
        return next(f for f in files if hashlib.sha256(f.read_bytes()).hexdigest() == digest)

    return find


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, with no lake in it yet and no MLflow to talk to."""
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "PERENNIAL_MEMORY_MB", "PERENNIAL_ALERT_URL"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PERENNIAL_HOME", str(home))
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PERENNIAL_THREADS", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return home


@pytest.fixture
def registry_house(house: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `house`, with the session's MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    return house
