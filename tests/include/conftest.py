"""Fixtures of the library's tests: a model that was trained once, which tests copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perennial.spec import ModelSpec


@dataclass(frozen=True)
class Trained:
    """A model whose first version is champion, and the working folder that holds its lake."""

    spec: ModelSpec
    home: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Iterator[Trained]:
    """Do not change what is in its folder: use `world`."""
    from perennial.promote import promote
    from perennial.train import train
    from support import toys

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PERENNIAL_")]:
            patch.delenv(name)
        patch.setenv("PERENNIAL_HOME", str(folder / "home"))
        patch.setenv("PERENNIAL_MODELS", str(folder / "models"))
        patch.setenv("PERENNIAL_THREADS", "1")
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
        search = {
            "trials": 2,
            "space": {"max_depth": {"choices": [2, 3]}, "learning_rate": {"low": 0.1, "high": 0.4}},
        }
        spec = toys.model(folder / "models", toys.unique(), training={"search": search})
        toys.publish(spec)
        result = train(spec, as_of=toys.LAST, reason="first", run_id="run-1")
        promote(spec, as_of=toys.LAST, actor="test")
    yield Trained(spec, folder / "home", result)


@pytest.fixture
def world(trained: Trained, registry_house: Path) -> Trained:
    """A copy of the trained model's working folder; its champion in MLflow is shared and must stay."""
    shutil.rmtree(registry_house)
    shutil.copytree(trained.home, registry_house)
    return Trained(trained.spec, registry_house, trained.result)


@pytest.fixture
def make_model(registry_house: Path, tmp_path: Path) -> Callable[..., ModelSpec]:
    """Make a model of a name of its own, with nothing published."""
    from support import toys

    def make(task: str = "binary", **changes: Any) -> ModelSpec:
        return toys.model(tmp_path / "models", toys.unique(), task, **changes)

    return make
