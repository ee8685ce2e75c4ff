"""What is older than the spec keeps is deleted; never what a version in use needs, or while the model is held."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core import dates
from perennial.core.errors import RegistryError
from perennial.governance import disk_usage, holds, retention
from perennial.governance.reproduction import reproduce
from perennial.lifecycle import backlog
from perennial.modeling import registry
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, ledger, object_store
from perennial.storage.ledger import LedgerKind
from support import toys
from support.small_model import DAY, SmallModel, rows

LATER = dates.add_days(toys.LAST, 40)


def keeping(spec: ModelSpec, **values: Any) -> ModelSpec:
    content = spec.model_dump(mode="json") | {"retention": values}
    kept = ModelSpec.model_validate(content)
    kept._sql, kept._suite, kept._sets, kept._tables = spec._sql, spec._suite, spec._sets, spec._tables
    return kept


def days_of(spec: ModelSpec, kind: str) -> list[str]:
    return delta_tables.partitions(delta_tables.table_uri(kind, spec.name))


def test_old_partitions_reports_and_history_go_and_what_is_in_use_stays(world: Any) -> None:
    spec = keeping(
        world.spec, rows="20 days", predictions="20 days", reports="20 days", table_history="1 day"
    )
    version = registry.get_version(spec.name, world.result["version"])
    needed = set(dates.dates(version.trained_range.start, version.holdout_range.end))
    before = days_of(spec, "published")
    toys.publish(world.spec, LATER, 1)
    old = dates.add_days(toys.FIRST, -1)
    toys.publish(world.spec, old, 1)
    report = f"{delta_tables.table_uri('reports', spec.name)}/monitor/{old}.html"
    trained = f"{delta_tables.table_uri('reports', spec.name)}/train/{version.as_of}.html"
    for file in (report, trained):
        object_store.write_text(file, "a report")
    planned = retention.apply(spec, as_of=LATER, dry_run=True)
    assert old in days_of(spec, "published"), "nothing is deleted"
    done = retention.apply(spec, as_of=LATER, actor="ada")
    assert done["partitions"] == planned["partitions"] and done["reports"] == planned["reports"] >= 1
    left = days_of(spec, "published")
    assert old not in left and LATER in left and set(left) >= needed & set(before)
    assert not Path(report).exists() and Path(trained).exists()
    (record,) = ledger.records(spec.name, LedgerKind.RETENTION)
    assert record["actor"] == "ada" and record["evidence"]["in_use"] == [version.version]
    assert retention.apply(spec, as_of=LATER)["partitions"] == {}, "there is nothing left"
    assert reproduce(spec)["outcome"] == "identical", "all that the champion was trained on is there"


def test_files_of_old_versions_are_deleted_unless_a_version_in_use_pins_them(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, uri = (
        keeping(world.spec, table_history="1 day"),
        delta_tables.table_uri("published", world.spec.name),
    )
    # the first replaces a file that the champion was trained on, the second one that no version was
    for n in (30, 31):
        toys.publish(world.spec, dates.add_days(toys.FIRST, 1), 1, n=n)
    assert retention.apply(spec, as_of=LATER, dry_run=True)["files"] == 0, "they are not a day old"
    monkeypatch.setattr(type(spec.retention.table_history), "length", lambda *_: timedelta(0))
    before = set(Path(uri).rglob("*.parquet"))
    result = retention.apply(spec, as_of=LATER)
    gone = before - set(Path(uri).rglob("*.parquet"))
    assert len(gone) == 1 and result["files"] >= 1 and result["bytes"] > 0
    assert reproduce(spec)["outcome"] == "identical"


def test_versions_that_nothing_uses_are_deleted(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from perennial.steps.train import train

    spec = keeping(world.spec, versions=1)
    first = world.result["version"]
    second, third = (str(train(world.spec, as_of=toys.LAST, force=True)["version"]) for _ in range(2))
    assert retention.apply(spec, as_of=LATER, dry_run=True)["versions"] == [second]
    assert retention.apply(spec, as_of=LATER)["versions"] == [second]
    assert registry.find_version(spec.name, second) is None
    assert registry.find_version(spec.name, first) and registry.find_version(spec.name, third)


def test_a_held_model_keeps_everything(world: Any) -> None:
    spec = keeping(world.spec, rows="6 days")
    toys.publish(world.spec, dates.add_days(toys.FIRST, -1), 1)
    holds.hold(spec.name, reason="audit", actor="ada")
    result = retention.apply(spec, as_of=LATER)
    assert "ada" in result["hold"] and result["partitions"] == {}
    assert retention.summarise(result).startswith("nothing is deleted: held by ada since ")
    holds.release(spec.name, reason="ended", actor="ada")
    assert retention.apply(spec, as_of=LATER)["partitions"]


def test_without_mlflow_nothing_is_deleted(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, before = keeping(world.spec, rows="6 days"), days_of(world.spec, "published")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError):
        retention.apply(spec, as_of=LATER)
    assert days_of(spec, "published") == before


def test_what_was_deleted_is_not_published_again(small_model: SmallModel) -> None:
    small_model.land(rows())
    small_model.run()
    spec = small_model.spec
    delta_tables.remove_rows(delta_tables.table_uri("published", "small"), [DAY])
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


def test_rows_must_cover_a_training(world: Any) -> None:
    with pytest.raises(ValueError, match=r"retention\.rows is 2 days, which is less than a training reads"):
        keeping(world.spec, rows="2 days")
