"""What is older than the spec keeps is deleted; never what a version in use needs, or while the model is held."""

from __future__ import annotations

import dataclasses
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core import dates
from perennial.core.durations import Duration
from perennial.core.errors import PerennialError, RegistryError, RegistryRequestError, StorageError
from perennial.features import feature_tables
from perennial.governance import _registered_versions, disk_usage, holds, retention
from perennial.governance.reproduction import reproduce
from perennial.ingestion.run import STEP
from perennial.lifecycle import backlog
from perennial.modeling import mlflow_api, registry
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, file_digests, ledger, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest
from support import toys
from support.feeds import history_table
from support.small_model import DAY, SmallModel, rows

LATER = dates.add_days(toys.LAST, 40)


def keeping(spec: ModelSpec, **values: Any) -> ModelSpec:
    content = spec.model_dump(mode="json") | {"retention": values}
    kept = ModelSpec.model_validate(content)
    kept._sql, kept._suite, kept._sets, kept._tables = spec._sql, spec._suite, spec._sets, spec._tables
    return kept


def days_of(spec: ModelSpec, kind: str) -> list[str]:
    return delta_tables.partitions(delta_tables.table_uri(kind, spec.name))


def register_copies(spec: ModelSpec, of: str, count: int) -> list[str]:
    """Register versions, each with a run, and record a training of each as that of another version was recorded."""
    (trained,) = (r for r in ledger.records(spec.name, LedgerKind.TRAINING) if r["model_version"] == of)
    numbers = []
    for _ in range(count):
        run = mlflow_api.call("POST", "/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
        run_id, folder = (run["run"]["info"][name] for name in ("run_id", "artifact_uri"))
        body = {"name": spec.name, "source": f"{folder}/model", "run_id": run_id}
        made = mlflow_api.call("POST", "/api/2.0/mlflow/model-versions/create", json=body)
        numbers.append(str(made["model_version"]["version"]))
        ledger.append(spec.name, kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason="a copy", actor="test",
                      model_version=numbers[-1], evidence=trained["evidence"] | {"run_id": run_id})  # fmt: skip
    return numbers


def test_what_is_old_goes_and_what_is_in_use_stays(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = keeping(
        world.spec, rows="20 days", predictions="20 days", reports="20 days", table_history="1 day"
    )
    uri = delta_tables.table_uri("published", spec.name)
    version = registry.get_version(spec.name, world.result["version"])
    needed = set(dates.dates(version.trained_range.start, version.holdout_range.end))
    before = days_of(spec, "published")
    # the first replaces a file that the champion was trained on, the second one that no version was
    for n in (30, 31):
        toys.publish(world.spec, dates.add_days(toys.FIRST, 1), 1, n=n)
    files = set(Path(uri).rglob("*.parquet"))
    toys.publish(world.spec, LATER, 1)
    old = dates.add_days(toys.FIRST, -1)
    toys.publish(world.spec, old, 1)
    report = f"{delta_tables.table_uri('reports', spec.name)}/monitor/{old}.html"
    trained = f"{delta_tables.table_uri('reports', spec.name)}/train/{version.as_of}.html"
    for file in (report, trained):
        object_store.write_text(file, "a report")
    planned = retention.apply(spec, as_of=LATER, dry_run=True)
    assert old in days_of(spec, "published") and planned["files"] == 0, "nothing is deleted, or a day old"
    find = registry.find_version
    edited = {"trained_range": LATER, "holdout_range": LATER}
    monkeypatch.setattr(
        registry, "find_version",
        lambda *of: (v := find(*of)) and dataclasses.replace(v, tags=v.tags | edited),
    )  # fmt: skip
    monkeypatch.setattr(type(spec.retention.table_history), "length", lambda *_: timedelta(0))
    done = retention.apply(spec, as_of=LATER, actor="ada")
    assert done["partitions"] == planned["partitions"] and done["reports"] == planned["reports"] >= 1
    left = days_of(spec, "published")
    assert old not in left and LATER in left and set(left) >= needed & set(before)
    assert not Path(report).exists() and Path(trained).exists()
    assert len(files - set(Path(uri).rglob("*.parquet"))) == 1 and done["bytes"] > 0
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    assert record["actor"] == "ada" and record["evidence"]["in_use"] == [version.version]
    assert retention.apply(spec, as_of=LATER)["partitions"] == {}, "there is nothing left"
    monkeypatch.setattr(registry, "find_version", find)
    assert reproduce(spec)["outcome"] == "identical", "all that the champion was trained on is there"


def test_versions_that_nothing_uses_are_deleted(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, first = keeping(world.spec, versions=1), world.result["version"]
    second, third = register_copies(spec, first, 2)
    assert retention.apply(spec, as_of=LATER, dry_run=True)["versions"] == [second]
    call = mlflow_api.call

    def refusing(method: str, path: str, **options: Any) -> Any:
        if "delete" in path:
            raise RegistryRequestError("403", "")
        return call(method, path, **options)

    monkeypatch.setattr(mlflow_api, "call", refusing)
    refused = retention.apply(spec, as_of=LATER)
    assert (refused["versions"], refused["refused"]) == ([], [second])
    assert f"not versions {second}, which only an administrator" in retention.summarise(refused)
    deleted: list[str] = []

    def recording(method: str, path: str, **options: Any) -> Any:
        deleted.extend([path.rpartition("2.0/")[2]] if "delete" in path else [])
        return call(method, path, **options)

    monkeypatch.setattr(mlflow_api, "call", recording)
    present = _registered_versions.present

    def pinned(model: str) -> Any:
        registry.set_alias(spec.name, second, "pinned")
        return present(model)

    with monkeypatch.context() as patch:
        patch.setattr(_registered_versions, "present", pinned)
        assert retention.apply(spec, as_of=LATER)["versions"] == [], "it came into use meanwhile"
    registry.remove_alias(spec.name, second, "pinned")
    assert retention.apply(spec, as_of=LATER)["versions"] == [second]
    assert deleted == ["mlflow/runs/delete", "mlflow/model-versions/delete"], "a version names its run"
    assert registry.find_version(spec.name, second) is None
    assert registry.find_version(spec.name, first) and registry.find_version(spec.name, third)


def test_a_held_model_keeps_everything(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = keeping(world.spec, rows="6 days", versions=1, table_history="120 months")
    toys.publish(world.spec, dates.add_days(toys.FIRST, -1), 1)
    holds.hold(spec.name, reason="audit", actor="ada")
    result = retention.apply(spec, as_of=LATER)
    assert "ada" in result["hold"] and result["partitions"] == {}
    assert ": nothing, since the model is held by ada since " in retention.summarise(result)
    holds.release(spec.name, reason="ended", actor="ada")
    with pytest.raises(PerennialError, match="is in the future"):
        retention.apply(spec, as_of="2999-01-01")

    def fail(*_: object) -> None:
        raise RegistryError("MLflow ended", "")

    monkeypatch.setattr(_registered_versions, "present", fail)
    with pytest.raises(RegistryError):
        retention.apply(spec, as_of=LATER)
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    assert record["evidence"]["partitions"]["published"] == 2, "what was deleted before the error is recorded"
    retention.apply(keeping(world.spec, table_history="120 months"), as_of=LATER)
    table = delta_tables.open_table(delta_tables.table_uri("published", spec.name))
    assert table is not None
    assert table.metadata().configuration["delta.logRetentionDuration"] == "interval 3720 days"


def test_a_hold_stops_a_retention_that_runs(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = keeping(world.spec, reports="6 days", table_history="120 months")
    root = delta_tables.table_uri("reports", spec.name)
    reports = [f"{root}/monitor/{dates.add_days(toys.FIRST, -n)}.html" for n in (1, 2, 3)]
    for file in reports:
        object_store.write_text(file, "a page")
    delete, holding = object_store.delete_file, []

    def deleting(uri: str) -> None:
        if not holding:
            holding.append(
                threading.Thread(
                    target=holds.hold, args=(spec.name,), kwargs={"reason": "audit", "actor": "ada"}
                )
            )
            holding[0].start()
            deadline = time.monotonic() + 30
            while not ledger.open_holds(spec.name) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert holding[0].is_alive(), "it waits for what is being deleted"
        delete(uri)

    monkeypatch.setattr(retention, "_FILES_AT_ONCE", 1)
    monkeypatch.setattr(object_store, "delete_file", deleting)
    result = retention.apply(spec, as_of=LATER)
    holding[0].join()
    assert result["reports"] == 1 and sum(map(object_store.exists, reports)) == 2
    assert ": 1 reports; no more, since the model is held by ada since " in retention.summarise(result)
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    assert record["evidence"]["reports"] == 1


def test_what_a_killed_run_deleted_is_not_passed_over(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = keeping(world.spec, rows="6 days", table_history="120 months")
    toys.publish(world.spec, dates.add_days(toys.FIRST, -1), 1)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_record", lambda *_: None)  # the process ended before
        assert retention.apply(spec, as_of=LATER)["partitions"]
    assert ledger.records(spec.name, LedgerKind.RETENTION) == []
    assert retention.apply(spec, as_of=LATER, dry_run=True)["interrupted"] == ""
    retention.apply(spec, as_of=LATER)
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    assert f"a run as of {LATER} did not end: what it deleted may not be counted" in record["reason"]
    assert retention.apply(spec, as_of=LATER)["interrupted"] == ""


def test_a_deletion_whose_commit_cannot_be_recorded_is_not_passed_over(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = keeping(world.spec, rows="6 days", table_history="120 months")
    toys.publish(world.spec, dates.add_days(toys.FIRST, -1), 1)

    def failing(*_: object) -> None:
        raise StorageError("the disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(file_digests, "record_commit", failing)
        with pytest.raises(StorageError, match="disk is full"):
            retention.apply(spec, as_of=LATER)
    assert ledger.records(spec.name, LedgerKind.RETENTION) == []
    retention.apply(spec, as_of=LATER)
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    assert record["evidence"]["interrupted"] == LATER


def test_a_shared_feature_table_is_kept_for_all_models_that_join_it(
    mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = (toys.unique(prefix) for prefix in ("a", "b"))
    toys.model(tmp_path / "models", source)
    history_table.write(tmp_path / "models", source=source)

    def joining(name: str, training: dict[str, Any] | None = None, **retention: Any) -> ModelSpec:
        return toys.model(
            tmp_path / "models", name, sql=history_table.MODEL_SQL, retention=retention, training=training or {},
            features={"tables": ["place_history"], "references": []},
        )  # fmt: skip

    spec = joining(source, table_history="1 day", rows="7 days")
    toys.publish(spec)
    ((_, table),) = spec.feature_tables
    for _ in range(2):
        feature_tables.build(table, toys.LAST, force=True)
    length = Duration.length
    monkeypatch.setattr(
        Duration, "length",
        lambda self, cadence: timedelta(0) if str(self) == "1 day" else length(self, cadence),
    )  # fmt: skip

    def deleted(of: ModelSpec) -> int:
        """Files of the feature table: the rows were written once."""
        return retention.apply(of, as_of=toys.LAST, dry_run=True)["files"]

    joining(other, training={"window": "2 days"})
    assert deleted(spec) == 0, "the other model keeps older versions for two years"
    of_other = joining(other, training={"window": "2 days"}, table_history="1 day")
    assert (deleted(spec), deleted(of_other)) == (1, 0), "it is deleted once"
    holds.hold(other, reason="audit", actor="ada")
    assert deleted(spec) == 0

    def emptied() -> dict[str, int]:
        return retention.apply(spec, as_of=toys.LAST, dry_run=True)["partitions"]

    holds.release(other, reason="ended", actor="ada")
    assert emptied() == {"published": 3, "labels": 3}, (
        "the other model trains on 2 days, 5 held out, 1 without labels, and 8 that their features depend on"
    )
    joining(other, training={"window": "2 days", "holdout": "2 days"})
    assert emptied() == {"published": 5, "labels": 5}, (
        "7 days, and the 8 that the features of their rows depend on"
    )
    joining(other)
    assert emptied() == {}, "the other model trains on all there is"


@pytest.mark.parametrize(
    ("every", "cron", "length", "expected"),
    [
        ("day", "0 2 * * *", "10 days", 20),
        ("week", "0 2 * * 1", "10 days", 4),
        ("month", "0 2 1 * *", "40 days", 5),
    ],
)
def test_each_part_of_the_lookback_is_rounded_up(
    empty_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: str,
    cron: str,
    length: str,
    expected: int,
) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    spec = toys.model(tmp_path / "models", "toy", data={"every": every}, label={"arrives_after": "1 partition"},
                      training={"holdout": "5 partitions"}, monitoring={"window": "7 partitions"},
                      schedule={"data": cron, "monitor": cron})  # fmt: skip
    table = history_table.load(tmp_path / "models", lookback=length, max_age=length)
    assert retention._lookback(spec, table) == expected


def fail(uri: str) -> Any:
    raise StorageError(f"{uri} cannot be read", "")


def test_nothing_is_deleted_while_it_is_not_known_what_is_in_use(
    world: Any, mlflow_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, before = keeping(world.spec, rows="6 days"), days_of(world.spec, "published")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError):
        retention.apply(spec, as_of=LATER)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    lists = object_store.list_files
    with monkeypatch.context() as patch:
        patch.setattr(
            object_store, "list_files", lambda f, **o: fail(f) if "_delta_log" in f else lists(f, **o)
        )
        with pytest.raises(StorageError):
            retention.apply(spec, as_of=LATER)
    monkeypatch.setattr(registry, "find_version", lambda *_: None)
    with pytest.raises(RegistryError, match=r"does not have version \d+, the champion"):
        retention.apply(spec, as_of=LATER)
    assert days_of(spec, "published") == before


def test_what_was_deleted_is_not_published_again(small_model: SmallModel) -> None:
    small_model.land(rows())
    spec = small_model.spec
    done = {"rows": 40}
    manifests.write(Manifest("small", STEP, DAY, {}, done, rows_in=40, rows_out=40), time.monotonic())
    later = dates.add_days(DAY, 90)
    assert backlog.unpublished(spec, later).overdue == [DAY]
    kept = keeping(spec, rows="60 days")
    assert backlog.unpublished(kept, later).overdue == []
    assert backlog.unlabelled(kept, later).overdue == []


def test_disk_use_is_given_by_table(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world.spec
    toys.publish(spec, toys.FIRST, 1, n=30)
    uses = {use["name"]: use for use in disk_usage.of_model(spec)}
    files = [p for p in Path(delta_tables.table_uri("published", spec.name)).rglob("*") if p.is_file()]
    assert uses["published"]["bytes"] == sum(p.stat().st_size for p in files)
    assert (
        uses["published"]["files"] == len(files)
        and 0 < uses["published"]["older"] < uses["published"]["bytes"]
    )
    assert "references.places" in uses
    monkeypatch.setattr(catalog, "load_model_by_name", lambda _: spec)
    printed = CliRunner().invoke(app, ["retention", spec.name, "--as-of", LATER])
    assert printed.exit_code == 0 and "published" in printed.output and "To be deleted" in printed.output


def test_a_version_whose_log_is_gone_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"{tmp_path}/published/toy"
    for _ in range(2):
        delta_tables.replace(uri, pa.table({"x": [1], delta_tables.PARTITION: [DAY]}), DAY)
    Path(uri, "_delta_log", f"{1:020d}.json").unlink()
    assert retention._in_log(uri, [0, 1]) == [0]
    assert "the log does not have versions 1 any more" in caplog.text


def test_rows_must_cover_a_training(world: Any) -> None:
    with pytest.raises(ValueError, match=r"retention\.rows is 2 days, which is less than a training reads"):
        keeping(world.spec, rows="2 days")
