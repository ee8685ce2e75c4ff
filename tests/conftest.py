"""Fixtures of every test folder."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec
    from support.databases.postgres import Server

# `support` is imported by tests and, by name, by the processes that they start.
sys.path.append(str(Path(__file__).parent))
os.environ.setdefault("DO_NOT_TRACK", "true")
# Tests share the cores with the servers that they use: OpenMP's waiting threads must not spin on them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
pytest.register_assert_rewrite("support.lock_contract")
# Each run draws the same examples, so that a failure is seen where it was made; `--hypothesis-profile random` looks for
# others. An example may take its time: the machine does other things, too.
hypothesis.settings.register_profile("random", derandomize=False, deadline=None)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

from distribution import (  # noqa: E402 - `distribution` and `skips` are importable from here on
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)
from skips import (  # noqa: E402
    pytest_addoption,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "pytest_xdist_auto_num_workers",
    "pytest_xdist_make_scheduler",
]

# The libraries and thousands of tests are objects that stay: looking through them again and again takes seconds.
gc.set_threshold(50_000, 20, 20)


#: Where the library works, as the environment says when the tests begin.
_FOLDERS = {
    f"PERENNIAL_{name}": os.environ.get(f"PERENNIAL_{name}") for name in ("HOME", "LAKE", "LANDING", "MODELS")
}


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported and collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def restored_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves one of these variables, or its process's priority, changed for the tests after it.

    A fixture of a module or session must not keep its folders in the environment either: other tests would work there.
    Tests in pods are alone in their process, and do.
    """
    before, priority = _guarded_variables(), os.getpriority(os.PRIO_PROCESS, 0)
    if not request.node.get_closest_marker("kubernetes"):
        assert {n: before.get(n) for n in _FOLDERS} == _FOLDERS, (
            "a fixture has left its folders for all later tests"
        )
    yield
    after = _guarded_variables()
    for name in before.keys() | after.keys():
        os.environ.pop(name, None)
    os.environ.update(before)
    assert after == before, "the test must restore these environment variables"
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority, "the test slows down those after it"


def _guarded_variables() -> dict[str, str]:
    return {
        n: v for n, v in os.environ.items() if n.startswith(("PERENNIAL_", "AWS_", "MLFLOW_TRACKING_URI"))
    }


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server, for the whole session."""
    from support.databases import postgres

    if postgres.programs() is None:
        pytest.skip("there is no PostgreSQL server that the user nobody can run")
    with postgres.server() as server:
        yield server


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
    """Settings that name S3 and a server, which nothing connects to; returns an empty folder of compute profiles."""
    profiles = tmp_path / "compute"
    profiles.mkdir()
    monkeypatch.setenv("PERENNIAL_COMPUTE", str(profiles))
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://b/lake")
    monkeypatch.setenv("PERENNIAL_LANDING", "s3://b/landing")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.mlflow:5000")
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
    with toys.working_folder(folder, mlflow_url):
        search = {
            "trials": 2,
            "space": {"max_depth": {"choices": [2, 3]}, "learning_rate": {"low": 0.1, "high": 0.4}},
        }
        spec = toys.model(folder / "models", toys.unique(), training={"search": search})
        toys.publish(spec)
        page = "https://airflow.example.com/dags/toy.train/runs/run-1"
        result = train(spec, as_of=toys.LAST, reason="first", run_id="run-1", run_url=page)
        promote(spec, as_of=toys.LAST, actor="test")
    yield Trained(spec, folder / "home", result)


@pytest.fixture
def world(trained: Trained, mlflow_home: Path, mlflow_url: str) -> Iterator[Trained]:
    """A copy of the trained model's working folder; the champion in MLflow is shared and must not change."""
    import requests

    from support import toys

    shutil.rmtree(mlflow_home)
    shutil.copytree(trained.home, mlflow_home)
    toys.forget_anchor(trained.spec.name)
    yield Trained(trained.spec, mlflow_home, trained.result)
    alias = {"name": trained.spec.name, "alias": "champion"}
    answer = requests.get(f"{mlflow_url}/api/2.0/mlflow/registered-models/alias", params=alias, timeout=30)
    assert answer.json()["model_version"]["version"] == trained.result["version"], "other tests need it, too"


@pytest.fixture
def make_model(mlflow_home: Path, tmp_path: Path) -> Callable[..., ModelSpec]:
    """Make a model with a unique name, and nothing published."""
    from support import toys

    def make(task: str = "binary", **changes: Any) -> ModelSpec:
        return toys.model(tmp_path / "models", toys.unique(), task, **changes)

    return make


@pytest.fixture
def without_drift_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Evidently's plots, most of a monitoring's time, out of its report; not of tests marked ``drift_report``."""
    if not request.node.get_closest_marker("drift_report"):
        from perennial.monitoring import report

        monkeypatch.setattr(report, "evidently_drift_report", lambda *_: report.DriftReport())


@pytest.fixture
def without_data_profile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no data profile, half of the data step's time; not for tests marked ``data_profile``."""
    if not request.node.get_closest_marker("data_profile"):
        monkeypatch.setattr("perennial.ingestion.data_profile.write_profile", lambda *_: "")


@pytest.fixture
def without_data_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty pages of validation, which Great Expectations takes long to draw."""
    monkeypatch.setattr("perennial.validation.data_docs.render_data_doc", lambda _: "")


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
