"""A version can be trained again, byte for byte; what prevents it is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core import dates
from perennial.core.errors import ArtifactError, RegistryError, StorageError
from perennial.governance.reproduction import GPU_TOLERANCE, outcome_of, reproduce
from perennial.modeling import registry, training_records
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import delta_tables, landing, ledger
from perennial.storage.ledger import LedgerKind
from perennial.training.runs import recipe
from support import toys

Make = Callable[..., ModelSpec]


def outcomes(spec: ModelSpec) -> list[str]:
    return [r["decision"] for r in ledger.records(spec.name, LedgerKind.REPRODUCTION)]


def test_a_version_is_reproduced_whatever_was_published_since(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_THREADS", "2")
    # not in the order of their names: a search draws them in that of the spec
    space = {"max_depth": {"choices": [2, 3]}, "learning_rate": {"low": 0.1, "high": 0.4}}
    search = {"trials": 3, "space": space}
    spec = make_model(training={"refit": True, "search": search, "candidates": ["trees", "linear"]})
    toys.publish(spec)
    first = train(spec, as_of=toys.LAST)
    promote(spec, as_of=toys.LAST, actor="test")
    second = train(spec, as_of=toys.LAST, force=True)  # judged against the first
    versions = len(registry_versions(spec))
    assert registry.load_spec(registry.get_version(spec.name, first["version"])).digest == spec.digest
    # afterwards rows, references, champion, threads and the spec change
    monkeypatch.setenv("PERENNIAL_THREADS", "1")
    uri, rows = delta_tables.table_uri("published", spec.name), toys.rows("binary", toys.FIRST, 7)
    rows = rows.append_column(delta_tables.PARTITION, pa.array([toys.FIRST] * 7))
    delta_tables.replace(uri, rows, toys.FIRST)
    places = toys.places().set_column(2, "size", pa.array([7.0] * 4))
    toys.write(landing.source_uri(spec.references[0].source), places)
    changed = spec.model_copy(update={"training": spec.training.model_copy(update={"rounds": 3})})
    evaluated = {training_records.EVALUATED_MODEL_FILE}
    for trained, other_files in ((first, evaluated), (second, set[str]())):
        result = reproduce(changed, version=trained["version"], actor="ada")
        assert result["outcome"] == "identical" and result["differences"] == []
        assert set(result["files"]) == {training_records.MODEL_FILE} | other_files
        assert result["metrics"]["log_loss"][0] == result["metrics"]["log_loss"][1]
    printed = CliRunner().invoke(app, ["reproduce", spec.name, first["version"]])
    assert printed.exit_code == 0 and "the same model, byte for byte" in printed.output
    assert outcomes(spec) == ["reproduced"] * 3
    assert len(registry_versions(spec)) == versions, "nothing is registered"


def registry_versions(spec: ModelSpec) -> list[Any]:
    return training_records.all_records(spec.name)


def test_a_difference_is_found_and_its_cause_named(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world.spec
    true_environment = recipe.environment

    def other() -> dict[str, str]:
        return {**true_environment(), "numpy": "1.0"}

    version = registry.get_version(spec.name, world.result["version"])
    trained = registry.load_spec(version)
    other_seed = trained.model_copy(update={"training": trained.training.model_copy(update={"seed": 99})})
    monkeypatch.setattr(registry, "load_spec", lambda _: other_seed)
    monkeypatch.setattr(recipe, "environment", other)
    result = reproduce(spec)
    assert result["outcome"] == "different" and result["version"] == world.result["version"]
    then, now = result["files"][training_records.MODEL_FILE]
    assert then == world.result["digest"] != now
    assert [d.split(":")[0] for d in result["differences"]] == ["numpy"]
    (record,) = ledger.records(spec.name, LedgerKind.REPRODUCTION)
    assert record["decision"] == "different" and "numpy: " in record["reason"]
    monkeypatch.setattr(catalog, "load_model_by_name", lambda _: spec)
    printed = CliRunner().invoke(app, ["reproduce", spec.name])
    assert printed.exit_code == 1 and "1.0 now" in printed.output


def test_what_is_gone_is_named(world: Any) -> None:
    spec = world.spec
    with pytest.raises(RegistryError, match="7"):
        reproduce(spec, version="7")
    uri = delta_tables.table_uri("published", spec.name)
    day = dates.add_days(toys.FIRST, 1)
    rows = toys.rows("binary", day, 9).append_column(delta_tables.PARTITION, pa.array([day] * 9))
    delta_tables.replace(uri, rows, day)
    table = delta_tables.open_table(uri)
    assert table is not None
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(StorageError, match="published"):
        reproduce(spec)
    assert outcomes(spec) == []


def test_a_version_without_a_recipe_is_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "ARTIFACT", "other.json")
    with pytest.raises(ArtifactError, match="has no recipe"):
        reproduce(world.spec)


@pytest.mark.parametrize(
    ("device", "again", "expected"),
    [
        ("cuda", 0.5 * (1 + GPU_TOLERANCE * 0.99), "equivalent"),
        ("cuda", 0.5 * (1 - GPU_TOLERANCE * 0.99), "equivalent"),
        ("cuda", 0.5 * (1 + GPU_TOLERANCE * 1.1), "different"),
        ("cuda", math.nan, "different"),
        ("cuda", None, "different"),  # no metric is known
        ("cpu", 0.5, "different"),  # on a CPU the files are the same, or the model is another one
    ],
)
def test_metrics_of_a_version_trained_on_a_gpu_agree_within_the_tolerance(
    device: str, again: float | None, expected: str
) -> None:
    version = registry.ModelVersion("toy", "1", "run", "model", {"device": device})
    metrics = {} if again is None else {"log_loss": (0.5, again), "roc_auc": (0.8, 0.8)}
    assert outcome_of(version, {"model.ubj": ("a", "b")}, metrics) == expected
    assert outcome_of(version, {"model.ubj": ("a", "a")}, metrics) == "identical"
