"""A run killed (SIGKILL) at each of its writes: nothing half-written can be read, and a rerun completes it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import delta_tables, landing, ledger, locks, manifests, object_store
from perennial.storage.ledger import LedgerKind
from support import processes, toys

pytestmark = pytest.mark.usefixtures("without_data_profile", "without_drift_report")

END = dates.add_days(toys.FIRST, 2)
BAD = 2  # rows of each day that go to quarantine
KINDS = ("published", "labels", "quarantine")


def killed(spec: ModelSpec, step: str, place: str, moment: str, nth: int, **arguments: Any) -> None:
    process = processes.start(processes.killed_step, str(spec.folder), step, arguments, place, moment, nth)
    assert processes.wait(process) == [-signal.SIGKILL]


def whole(spec: ModelSpec, kind: str, rows: int) -> None:
    """Each partition of a table that can be read has all its rows."""
    found = toys.content_of(kind, spec.name)
    for day in {r[delta_tables.PARTITION] for r in found}:
        assert sum(r[delta_tables.PARTITION] == day for r in found) == rows


def manifests_whole() -> None:
    for path in Path(settings().lake, "manifests").rglob("*.json"):
        if not path.name.startswith("."):
            model, step, name = path.parts[-3:]
            assert manifests.read(model, step, name.removesuffix(".json")) is not None


def champion(spec: ModelSpec) -> str | None:
    found = registry.get_champion(spec)
    return found.version if found else None


def test_a_process_has_the_libraries_and_the_steps_when_it_starts(tmp_path: Path) -> None:
    """Otherwise each of them spends seconds on imports."""
    names = ["mlflow.xgboost", "great_expectations", *(f"perennial.steps.{step}" for step in dispatch.STEPS)]
    assert processes.wait(processes.start(processes.loaded, str(tmp_path / "answer"), *names)) == [0]
    assert json.loads((tmp_path / "answer").read_text()) == names


# data


def landed(empty_home: Path, models: Path) -> ModelSpec:
    import pyarrow as pa

    spec = toys.model(models, "toy")
    toys.land(spec, days=3)
    for day in dates.dates(toys.FIRST, END):
        table = toys.rows("binary", day)
        x = table["x"].to_pylist()
        x[:BAD] = [99.0] * BAD
        toys.write(landing.source_uri(spec.data.source, day), table.set_column(2, "x", pa.array(x)))
    return spec


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the tables hold after a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PERENNIAL_LAKE", raising=False)
        patch.delenv("PERENNIAL_LANDING", raising=False)
        patch.setenv("PERENNIAL_HOME", str(folder / "home"))
        spec = landed(folder / "home", folder / "models")
        dispatch.run("data", spec, start=toys.FIRST, end=END)
        return {kind: toys.content_of(kind, "toy") for kind in KINDS}


@pytest.mark.parametrize(
    ("place", "moment", "nth"),
    [
        # quarantine, then rows, then labels
        ("perennial.storage.delta_tables.Writer.replace", "during", 1),
        ("perennial.storage.delta_tables.Writer.replace", "during", 2),
        ("perennial.storage.delta_tables.Writer.replace", "after", 2),
        ("perennial.storage.delta_tables.Writer.replace", "during", 3),
        ("deltalake.DeltaTable.create", "after", 2),
        ("perennial.storage.object_store.write_bytes", "before", 1),
        ("perennial.storage.manifests.write", "before", 2),
        ("perennial.storage.manifests.write", "after", 3),
    ],
)
def test_data(
    empty_home: Path, tmp_path: Path, undisturbed: dict[str, Any], place: str, moment: str, nth: int
) -> None:
    spec = landed(empty_home, tmp_path / "models")
    killed(spec, "data", place, moment, nth, start=toys.FIRST, end=END)
    whole(spec, "published", toys.ROWS - BAD)
    manifests_whole()
    result = dispatch.run("data", spec, start=toys.FIRST, end=END)
    assert (result["rows_in"], result["quarantined"]) == (3 * toys.ROWS, 3 * BAD)
    assert {kind: toys.content_of(kind, "toy") for kind in KINDS} == undisturbed
    assert dispatch.run("data", spec, start=toys.FIRST, end=END)["status"] == "unchanged"


# train


@pytest.fixture
def quick(make_model: Callable[..., ModelSpec]) -> ModelSpec:
    spec = make_model(training={"rounds": 5})
    toys.publish(spec)
    return spec


@pytest.mark.parametrize(
    ("place", "moment"),
    [
        ("perennial.training.search.search_and_fit", "after"),
        ("perennial.training.tracking.TrainingRun.register", "before"),
        ("mlflow.register_model", "after"),
        ("perennial.modeling.registry.set_alias", "after"),
        ("perennial.storage.ledger.append", "before"),
        ("perennial.storage.ledger.append", "after"),
        ("perennial.storage.manifests.write", "before"),
        ("perennial.storage.manifests.write", "after"),
    ],
)
def test_train(quick: ModelSpec, place: str, moment: str) -> None:
    killed(quick, "train", place, moment, 1, as_of=toys.LAST)
    assert champion(quick) is None
    manifests_whole()
    ledger.verify(quick.name)
    result = dispatch.run("train", quick, as_of=toys.LAST)
    assert dispatch.run("train", quick, as_of=toys.LAST) == result | {"status": "unchanged"}
    trained = [
        r for r in ledger.records(quick.name, LedgerKind.TRAINING) if r["model_version"] == result["version"]
    ]
    assert len(trained) == 1
    import mlflow

    client = mlflow.MlflowClient(settings().mlflow_uri)
    experiment = client.get_experiment_by_name(quick.name)
    assert not client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    # every version that was registered is the same model
    digests = {registry.get_version(quick.name, str(n)).digest for n in range(1, int(result["version"]) + 1)}
    assert digests == {result["digest"]}
    if (place, moment) == ("perennial.storage.manifests.write", "after"):
        assert result["version"] == "1"


# promote and rollback


@pytest.mark.parametrize(
    ("place", "moment"),
    [
        ("perennial.modeling.registry.set_alias", "before"),
        ("perennial.modeling.registry.set_alias", "after"),
        ("perennial.storage.ledger.append", "before"),
        ("deltalake.write_deltalake", "before"),
        ("perennial.storage.ledger.append", "after"),
    ],
)
def test_promote(quick: ModelSpec, place: str, moment: str) -> None:
    result = dispatch.run("train", quick, as_of=toys.LAST)
    assert result["gate"]["passed"], result["gate"]["reasons"]
    killed(quick, "promote", place, moment, 1, as_of=toys.LAST, actor="test")
    assert champion(quick) in (None, result["version"])
    ledger.verify(quick.name)
    with locks.hold(f"promote-{quick.name}", timeout=0):
        pass  # its lock died with it
    answer = dispatch.run("promote", quick, as_of=toys.LAST, actor="test")
    assert answer["promoted"] is True
    assert champion(quick) == result["version"]
    assert [r["model_version"] for r in ledger.records(quick.name, LedgerKind.PROMOTION)] == [
        result["version"]
    ]
    assert ledger.records(quick.name, LedgerKind.EXTERNAL_CHANGE) == []


# score and monitor


@pytest.mark.parametrize(
    ("place", "moment", "nth", "again"),
    [
        ("perennial.modeling.registry._download", "after", 1, False),
        ("pathlib.Path.replace", "before", 1, False),
        ("perennial.storage.delta_tables.Writer.replace", "before", 1, False),
        ("perennial.storage.delta_tables.Writer.replace", "during", 1, False),
        ("perennial.storage.delta_tables.Writer.replace", "during", 1, True),
        ("perennial.storage.delta_tables.Writer.replace", "after", 1, False),
        ("perennial.storage.delta_tables.Writer.replace", "after", 1, True),
        ("perennial.storage.delta_tables.Writer.replace", "before", 2, False),  # the log of what was served
        ("perennial.storage.delta_tables.Writer.replace", "during", 2, True),
        ("perennial.storage.manifests.write", "before", 2, False),
        ("perennial.storage.manifests.write", "before", 2, True),
        ("perennial.storage.manifests.write", "after", 2, False),
    ],
)
def test_score(world: Any, place: str, moment: str, nth: int, again: bool) -> None:
    spec, end = world.spec, dates.add_days(toys.FIRST, 1)
    shutil.rmtree(settings().home / "cache", ignore_errors=True)
    before: list[dict[str, Any]] = []
    if again:
        dispatch.run("score", spec, start=toys.FIRST, end=end)
        before = toys.content_of("predictions", spec.name)
        shutil.rmtree(settings().home / "cache")
    killed(spec, "score", place, moment, nth, start=toys.FIRST, end=end, force=again)
    whole(spec, "predictions", toys.ROWS)
    manifests_whole()
    if again:
        assert toys.content_of("predictions", spec.name) == before
    dispatch.run("score", spec, start=toys.FIRST, end=end)
    assert len(toys.content_of("predictions", spec.name)) == 2 * toys.ROWS
    assert not before or toys.content_of("predictions", spec.name) == before
    whole(spec, "served", toys.ROWS)
    assert dispatch.run("score", spec, start=toys.FIRST, end=end)["status"] == "unchanged"
    assert champion(spec) == world.result["version"]


@pytest.mark.parametrize(
    ("place", "moment", "nth"),
    [
        ("perennial.storage.object_store.write_bytes", "before", 1),
        ("perennial.storage.delta_tables.Writer.replace", "during", 1),
        ("perennial.storage.delta_tables.Writer.replace", "after", 1),
        ("perennial.storage.manifests.write", "before", 1),
    ],
)
def test_monitor(world: Any, place: str, moment: str, nth: int) -> None:
    spec = world.spec
    dispatch.run("score", spec, start=dates.add_days(toys.LAST, -6), end=toys.LAST)
    killed(spec, "monitor", place, moment, nth, as_of=toys.LAST)
    manifests_whole()
    result = dispatch.run("monitor", spec, as_of=toys.LAST)
    assert result["verdict"] == "ok", result["reason"]
    rows = toys.content_of("monitoring", spec.name)
    assert [r["role"] for r in rows].count("verdict") == 1
    assert object_store.read_text(result["report"]).rstrip().endswith(("</html>", ">"))
    assert dispatch.run("monitor", spec, as_of=toys.LAST)["status"] == "unchanged"
