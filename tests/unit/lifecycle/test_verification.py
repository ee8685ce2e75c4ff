"""Verification finds damage wherever it is, and says what to do; its findings reach the ledger."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core.errors import StorageError
from perennial.core.settings import settings
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery
from perennial.lifecycle.verification import verify_model
from perennial.modeling import training_records
from perennial.spec.model_spec import ModelSpec
from perennial.steps.monitor import monitor
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, file_digests, ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import toys

pytestmark = pytest.mark.usefixtures("without_drift_report")


@pytest.fixture(autouse=True)
def fresh_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No data file was compared before, and readers do not wait for records."""
    monkeypatch.setattr(file_digests, "RECORD_WAIT_SECONDS", 0.1)
    file_digests._verified.clear()
    yield
    file_digests._verified.clear()


def findings(spec: ModelSpec) -> list[str]:
    return verify_model(spec, actor="test")["findings"]


def decisions(spec: ModelSpec) -> list[str]:
    return [r["decision"] for r in ledger.records(spec.name, LedgerKind.VERIFICATION)]


def files(kind: str, spec: ModelSpec) -> list[Path]:
    uri = delta_tables.table_uri(kind, spec.name)
    return [Path(uri, path) for path in delta_tables.file_paths(uri)]


def _refuse_to_merge(model: str) -> bool:
    """As with an identity that may only read the lake: nothing is wrong with the ledger."""
    raise StorageError("the ledger cannot be written", "allow it", model=model)


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file, as a disk does: its time stays."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_was_written_is_verified(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "merge_files", _refuse_to_merge)
    score(world.spec, start=toys.FIRST)
    result = verify_model(world.spec, actor="test")
    assert result["findings"] == []
    assert result["manifests"] == 2  # train and score
    assert result["records"] == len(ledger.records(world.spec.name)) == 2
    tables = ("published", "labels", "predictions", "served")
    assert result["files"] == sum(len(files(kind, world.spec)) for kind in tables) + 1  # a reference table
    assert decisions(world.spec) == []


@pytest.mark.parametrize("kind", ["published", "labels", "predictions", "served", "references"])
def test_a_damaged_data_file_is_found_once(world: Any, kind: str) -> None:
    spec = world.spec
    score(spec, start=toys.FIRST)
    if kind == "references":
        file = next(Path(reference_tables.uri(spec.references[0])).glob("*.parquet"))
    else:
        file = files(kind, spec)[0]
    damage(file)
    for _ in range(2):
        (finding,) = findings(spec)
        assert str(file) in finding
        assert "was recorded when it was written" in finding
    assert decisions(spec) == ["reported"]
    damage(file)  # flips the bit back
    assert findings(spec) == []
    assert decisions(spec) == ["reported", "resolved"]
    ledger.verify(spec.name)


def test_a_changed_manifest_is_found(world: Any) -> None:
    file = Path(manifests.uri(world.spec.name, "train", toys.LAST))
    file.write_text(file.read_text().replace('"passed": true', '"passed": false'))
    (finding,) = findings(world.spec)
    assert "was changed after it was written: run the step train" in finding


def test_a_damaged_file_of_the_champion_is_found(world: Any, mlflow_folder: Path) -> None:
    record = training_records.all_records(world.spec.name)[-1]
    file = next((mlflow_folder / "artifacts").rglob(f"{record.run_id}/artifacts/perennial/importance.json"))
    damage(file)
    try:
        (finding,) = findings(world.spec)
    finally:
        damage(file)
    assert "importance.json of version 1 in MLflow has digest" in finding


def test_a_removed_ledger_record_is_found(world: Any) -> None:
    from deltalake import DeltaTable

    DeltaTable(f"{settings().lake}/ledger").delete("kind = 'training'")
    assert any("is missing" in finding for finding in findings(world.spec))


def test_the_command_tells_and_ends_with_a_status(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(world.spec.folder.parent))
    done = CliRunner().invoke(app, ["verify", world.spec.name])
    assert (done.exit_code, "good" in done.output) == (0, True), done.output
    file = files("published", world.spec)[0]
    record = Path(settings().lake, "digests", "published", world.spec.name, file.parent.name)
    (record / f"{file.name}.sha256").unlink()
    done = CliRunner().invoke(app, ["verify", world.spec.name, "--json"])
    assert done.exit_code == 1
    (finding,) = json.loads(done.stdout)[world.spec.name]["findings"]
    assert "has no recorded digest" in finding
    done = CliRunner().invoke(app, ["verify", world.spec.name, "--record", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[world.spec.name]["recorded"] == 1


# --- the steps


def test_no_step_reads_a_damaged_partition(world: Any) -> None:
    """The example: a flipped byte in a published file was scored and trained on."""
    spec = world.spec
    score(spec, start=toys.FIRST)
    for file in (files("published", spec)[0], files("published", spec)[-1]):
        damage(file)
    before = toys.content_of("predictions", spec.name)
    for step in (
        lambda: score(spec, start=toys.FIRST, force=True),
        lambda: train(spec, as_of=toys.LAST, force=True),
        lambda: monitor(spec, as_of=toys.LAST),
    ):
        file_digests._verified.clear()
        shutil.rmtree(settings().home / "cache" / "verified", ignore_errors=True)
        with pytest.raises(StorageError, match="a data file is not what was written") as error:
            step()
        assert error.value.model == spec.name
        assert "run the data step of that partition again with --force" in error.value.remedy
    assert toys.content_of("predictions", spec.name) == before
    toys.publish(spec, toys.FIRST, toys.DAYS)
    assert score(spec, start=toys.FIRST, force=True)["status"] == "scored"
    assert toys.content_of("predictions", spec.name) == before


def test_damaged_predictions_are_not_monitored_and_scoring_again_repairs_them(world: Any) -> None:
    spec = world.spec
    score(spec, start=toys.LAST)
    damage(files("predictions", spec)[0])
    with pytest.raises(StorageError, match="predictions") as error:
        monitor(spec, as_of=toys.LAST)
    assert "run the score step of that partition again with --force" in error.value.remedy
    score(spec, start=toys.LAST, force=True)
    assert monitor(spec, as_of=toys.LAST)["status"] == "monitored"


def test_a_damaged_reference_table_is_not_joined(world: Any) -> None:
    file = next(Path(reference_tables.uri(world.spec.references[0])).glob("*.parquet"))
    damage(file)
    with pytest.raises(StorageError, match="a data file is not what was written"):
        FeatureQuery(world.spec)


def test_predictions_that_a_manifest_only_claims_are_made(world: Any) -> None:
    from deltalake import DeltaTable

    spec = world.spec
    score(spec, start=toys.FIRST)
    before = toys.content_of("predictions", spec.name)
    DeltaTable(delta_tables.table_uri("predictions", spec.name)).delete()
    assert score(spec, start=toys.FIRST)["status"] == "scored"
    assert toys.content_of("predictions", spec.name) == before
    assert score(spec, start=toys.FIRST)["status"] == "unchanged"
