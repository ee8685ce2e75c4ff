"""Fixtures of every test folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

# `support` is imported by tests and, by name, by the processes that they start.
sys.path.append(str(Path(__file__).parent))
os.environ.setdefault("DO_NOT_TRACK", "true")
pytest.register_assert_rewrite("support.lock_contract")


#: Folders whose tests share servers that take long to start: one process runs them, before other tests.
TOGETHER = ("live", "docker", "kubernetes")


def _place(nodeid: str) -> str:
    """The scope of a test: its folder, if that is one of `TOGETHER`, or else its file."""
    file = nodeid.split("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(f"tests/integration/{folder}/")), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no process waits for another at the end."""
    items.sort(key=lambda item: _place(item.nodeid) not in TOGETHER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores, because the live tests mostly wait; at most four, because each takes 1 to 2 GiB."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests over processes by scope.

    (Marks of pytest-xdist's own groups do nothing with pytest 9: it no longer reads names from where they are put.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ScopeScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _place(nodeid)

    return ScopeScheduling(config, log)


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the MLflow server's store."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def mlflow_url(mlflow_folder: Path) -> Iterator[str]:
    """A real MLflow server, for the whole session."""
    from support import servers

    with servers.mlflow(mlflow_folder) as url:
        yield url


@pytest.fixture(scope="session")
def artifact(mlflow_folder: Path) -> Callable[[ModelSpec, str], Path]:
    """Finds the model file of a version in MLflow's artifact store."""

    def find(spec: ModelSpec, version: str) -> Path:
        from perennial.modeling import registry

        model = registry.get_version(spec.name, version).model_id
        return next((mlflow_folder / "artifacts").rglob(f"{model}/artifacts/model.ubj"))

    return find


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder (``PERENNIAL_HOME``), without a lake, and no MLflow."""
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
def remote_lake(empty_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Settings that name a lake on S3, which nothing connects to; returns an empty folder of compute profiles."""
    profiles = tmp_path / "compute"
    profiles.mkdir()
    monkeypatch.setenv("PERENNIAL_COMPUTE", str(profiles))
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://b/lake")
    monkeypatch.setenv("PERENNIAL_LANDING", "s3://b/landing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    monkeypatch.delenv("PERENNIAL_TRAINER_IMAGE", raising=False)
    return profiles


@pytest.fixture
def mlflow_home(empty_home: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `empty_home`, with the session's MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    return empty_home


@dataclass(frozen=True)
class Trained:
    """A model whose first version is champion, and the working folder that holds its lake."""

    spec: ModelSpec
    home: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Iterator[Trained]:
    """A trained model for the whole session. Tests must not change its folder: they use `world`."""
    from perennial.steps.promote import promote
    from perennial.steps.train import train
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
def world(trained: Trained, mlflow_home: Path) -> Trained:
    """A copy of the trained model's working folder; the champion in MLflow is shared and must not change."""
    shutil.rmtree(mlflow_home)
    shutil.copytree(trained.home, mlflow_home)
    return Trained(trained.spec, mlflow_home, trained.result)


@pytest.fixture
def make_model(mlflow_home: Path, tmp_path: Path) -> Callable[..., ModelSpec]:
    """Make a model with a unique name, and nothing published."""
    from support import toys

    def make(task: str = "binary", **changes: Any) -> ModelSpec:
        return toys.model(tmp_path / "models", toys.unique(), task, **changes)

    return make


_status = 0


def pytest_sessionfinish(exitstatus: int) -> None:
    """Keep the status for `pytest_unconfigure`."""
    global _status
    _status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Exit with that status, as the commands do: a native thread could turn a successful run into an abort."""
    from perennial.core.runtime import flush_and_exit

    flush_and_exit(_status)
