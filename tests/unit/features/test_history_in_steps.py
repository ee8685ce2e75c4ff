"""A model whose features come from a feature table goes through all steps."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from perennial.core import dates
from perennial.features import feature_tables
from perennial.governance import holds, retention
from perennial.lifecycle import promotion
from perennial.lifecycle.unused_feature_tables import delete_unused
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import manifests
from support import toys
from support.feeds import history_table as toy_tables

DAY = dates.add_days(toys.FIRST, 12)


@pytest.fixture
def spec(mlflow_url: str, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    name = toys.unique("history")
    toys.model(tmp_path / "models", name)
    toy_tables.write(tmp_path / "models", source=name)
    made = toys.model(
        tmp_path / "models", name, sql=toy_tables.MODEL_SQL, gate={"beat_baseline": False},
        features={"tables": ["place_history"], "references": []},
    )  # fmt: skip
    toys.publish(made)
    return made


@pytest.mark.usefixtures("without_drift_report")
def test_a_model_learns_from_history_and_is_followed(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = cast("dict[str, Any]", train(spec, as_of=toys.LAST))
    assert trained["gate"]["passed"], trained["gate"]
    version = registry.get_version(spec.name, trained["version"])
    assert registry.load_spec(version).digest == spec.digest
    assert {*toy_tables.COLUMNS} <= {*registry.load_model(version).encoding.columns}
    again = cast("dict[str, Any]", train(spec, as_of=toys.LAST))
    assert (again["status"], again["version"]) == ("unchanged", trained["version"])
    promote(spec, as_of=toys.LAST, actor="test")
    assert score(spec, start=toys.FIRST, end=toys.LAST)["rows_out"] == toys.DAYS * toys.ROWS
    done = manifests.read(spec.name, "score", DAY)
    assert done is not None and set(done.inputs["tables"]) == {"place_history"}
    predictions = toys.content_of("predictions", spec.name)
    assert score(spec, start=toys.FIRST, end=toys.LAST)["status"] == "unchanged"
    watched = cast("dict[str, Any]", monitor(spec, as_of=toys.LAST))
    assert watched["performance"]["metrics"], watched["reason"]
    assert watched["signals"]["skew"]["state"] == "ok", "served and recomputed features are the same"
    done = manifests.read(spec.name, "monitor", toys.LAST)
    assert done is not None and set(done.inputs["tables"]) == {"place_history"}
    assert cast("dict[str, Any]", monitor(spec, as_of=toys.LAST))["status"] == "unchanged"
    # Replaced history is scored again, as far as its windows and the age of its values reach.
    toys.publish(spec, DAY, 1, n=30)
    result = score(spec, start=toys.FIRST, end=toys.LAST)
    assert result["partitions"] == dates.dates(DAY, toys.LAST)
    changed = toys.content_of("predictions", spec.name)
    assert [r for r in predictions if r["partition_date"] < DAY] == [
        r for r in changed if r["partition_date"] < DAY
    ]
    assert predictions != changed
    # Another definition: the champion keeps its own. The one that nothing uses is deleted, with its manifests.
    table = spec.feature_tables[0][1]
    models, newer = tmp_path / "models", toy_tables.SQL.replace("4 DAYS", "3 DAYS")
    unused = toy_tables.load(models, source=spec.name, sql=toy_tables.SQL.replace("4 DAYS", "2 DAYS"))
    current = toy_tables.load(models, source=spec.name, sql=newer)
    for other in (unused, current):
        feature_tables.build(other, toys.FIRST, DAY)
    name = feature_tables.table_name(unused)
    assert delete_unused() == [], "they were computed today"
    assert delete_unused(min_age=timedelta(days=-1)) == [name]
    left = [uri for uri in map(feature_tables.uri, (table, unused, current)) if Path(uri).exists()]
    assert left == [feature_tables.uri(table), feature_tables.uri(current)]
    assert manifests.read_all(name, feature_tables.STEP, [toys.FIRST, DAY]) == {}
    assert score(spec, start=toys.FIRST, end=toys.LAST)["status"] == "unchanged"
    assert feature_tables.build(unused, toys.FIRST, toys.FIRST).rows == {toys.FIRST: toys.ROWS}
    # The spec joins it no more, and the champion still depends on it.
    without = toys.model(models, spec.name)
    models_in_use = retention._joining(without, promotion.in_use(without))
    (joining,) = (model for model in models_in_use if model.spec.name == spec.name)
    assert joining.joins(table.name) and joining.tables(trained["version"])[0].digest == table.digest
    # A held model keeps what any of its versions was trained with.
    monkeypatch.setattr(promotion, "in_use", lambda _: {})
    holds.hold(spec.name, reason="audit", actor="ada")
    delete_unused(min_age=timedelta(days=-1))
    assert Path(feature_tables.uri(table)).exists()
    holds.release(spec.name, reason="ended", actor="ada")
    assert feature_tables.table_name(table) in delete_unused(min_age=timedelta(days=-1))
