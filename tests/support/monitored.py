"""A small model for tests of monitoring: published rows, labels, predictions, and a champion with its artifacts."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xgboost

from perennial.core import dates
from perennial.core.partitions import DAILY
from perennial.features.engine import FeatureQuery
from perennial.lifecycle import champion
from perennial.modeling import registry
from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import baseline, histograms
from perennial.monitoring.partition_sample import sample_partitions
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

FIRST = "2024-01-01"
ROWS = 200
#: SQL of labels that are more often 1 the larger x is, if the rows were published from the same date.
TRUTH = (
    "(hash(i, getvariable($$salt$$)) % 1000 > 200 + 6 * (hash(i, 9, getvariable($$salt$$)) % 100))::INTEGER"
)
HOLDOUT_DAYS = 14


def make_spec(**changes: Any) -> ModelSpec:
    content: dict[str, Any] = {
        "name": "toy",
        "task": "binary",
        "owner": "tests",
        "description": "A toy.",
        "data": {
            "source": "{landing}/toy/{date}.parquet",
            "key": ["id"],
            "event_time": "at",
            "columns": {"id": "string", "at": "timestamp", "x": "number", "k": "string", "who": "string"},
            "personal": ["who"],
        },
        "label": {
            "source": "{landing}/labels/{date}.parquet",
            "columns": {"id": "string", "y": "integer"},
            "expression": "y",
            "arrives_after": "1 day",
        },
        "features": {"categorical": ["k", "who"], "personal": {"who": "tests need a personal feature"}},
        "monitoring": {"window": "7 days", "min_rows": 100},
        "retraining": {"triggers": ["gain", "performance", "drift"]},
        "schedule": {"start": FIRST},
    }
    for key, value in changes.items():
        content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    spec = ModelSpec.model_validate(content)
    spec._sql, spec._suite = "SELECT id, x, k, who FROM rows", "{}"
    return spec


@dataclass
class World:
    """The lake of the small model, and the champion that MLflow would return."""

    folder: Path
    spec: ModelSpec
    champion: registry.ModelVersion | None = None
    model: TrainedModel | None = None

    def publish(
        self,
        start: str,
        days: int,
        *,
        shift: float = 0.0,
        x: str | None = None,
        k: str = "'a' || (i % 3)",
        rows: int = ROWS,
    ) -> None:
        """Publish ``rows`` rows a day; ``x`` is uniform over 0 to 1, plus ``shift``."""
        con = duckdb_session.connect()
        for n in range(days):
            day = dates.add_days(start, n)
            con.execute(f"SET VARIABLE salt = {n}")
            table = con.sql(
                f"SELECT '{day}-' || i AS id, TIMESTAMP '{day} 12:00:00' AS at, "
                f"{x or f'(hash(i, getvariable($$salt$$)) % 1000) / 1000.0 + {shift}'} AS x, {k} AS k, "
                f"'person ' || i AS who, '{day}' AS partition_date FROM range({rows}) r(i)"
            ).to_arrow_table()
            delta_tables.replace(delta_tables.table_uri("published", self.spec.name), table, day)

    def label(self, start: str, days: int, value: str = "(i % 2)::INTEGER", rows: int = ROWS) -> None:
        con = duckdb_session.connect()
        for n in range(days):
            day = dates.add_days(start, n)
            con.execute(f"SET VARIABLE salt = {n}")
            table = con.sql(
                f"SELECT '{day}-' || i AS id, {value} AS label, '{day}' AS partition_date FROM range({rows}) r(i)"
            ).to_arrow_table()
            delta_tables.replace(delta_tables.table_uri("labels", self.spec.name), table, day)

    def predict(
        self, start: str, days: int, version: str = "1", value: str = "0.2 + 0.6 * (i % 2)", more: str = ""
    ) -> None:
        con = duckdb_session.connect()
        for n in range(days):
            day = dates.add_days(start, n)
            table = con.sql(
                f"SELECT '{day}-' || i AS id, ({value})::FLOAT AS prediction{more}, '{version}' AS model_version, "
                f"'{day}' AS partition_date FROM range({ROWS}) r(i)"
            ).to_arrow_table()
            delta_tables.replace(delta_tables.table_uri("predictions", self.spec.name), table, day)

    def train(self, version: str = "1", days: int = 21, metrics: dict[str, float] | None = None) -> None:
        """Make a champion whose reference and baseline are the rows published so far."""
        con = duckdb_session.connect()
        assert duckdb_session.create_view(
            con,
            "rows",
            delta_tables.table_uri("published", self.spec.name),
            None,
            FIRST,
            dates.add_days(FIRST, days - 1),
        )
        con.execute(
            "CREATE TABLE training AS SELECT partition_date, x, k, who, 0.2 + 0.6 * x AS prediction FROM rows"
        )
        reference = histograms.make_reference(
            con, "training", ["x", "prediction"], ["k", "who"], window=self.spec.monitoring.window.partitions(DAILY),
            min_rows=self.spec.monitoring.min_rows, personal=self.spec.data.personal,
        )  # fmt: skip
        self.model = fit()
        last, first = dates.add_days(FIRST, days - 1), dates.add_days(FIRST, max(days - HOLDOUT_DAYS, 0))
        holdout = sample_partitions(
            self.spec, self.model, FeatureQuery(self.spec), first, last, labels_until=last,
            columns=[*self.spec.monitoring.slices, *self.spec.monitoring.fairness],
        )  # fmt: skip
        content, _ = baseline.build_baseline(
            self.spec, self.model, holdout, lambda: histograms.read_reference(reference)[1]
        )
        artifacts = self.folder / "artifacts" / f"run-{version}"
        artifacts.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            histograms.sample_rows(con, "training", n=500, personal=self.spec.data.personal),
            artifacts / "reference.parquet",
        )
        for name, artifact in (
            ("reference", reference),
            ("importance", {"x": 0.7, "k": 0.3, "who": 0.0}),
            ("evaluation", {"metrics": metrics or {"log_loss": 0.25}}),
            ("monitoring_baseline", content),
        ):
            (artifacts / f"{name}.json").write_text(json.dumps(artifact))
        self.champion = registry.ModelVersion(
            "toy",
            version,
            f"run-{version}",
            f"m-{version}",
            {
                "digest": f"d{version}",
                "as_of": last,
                "trained_range": f"{FIRST}..{last}",
                "holdout_range": f"{first}..{last}",
            },
        )


@functools.cache
def fit() -> TrainedModel:
    """A booster fitted to labels that follow `TRUTH`."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.random(8000), rng.integers(0, 3, 8000), rng.integers(0, ROWS, 8000)], 1).astype(
        np.float32
    )
    y = rng.random(8000) < np.clip((x[:, 0] - 0.2) / 0.6, 0, 1)
    names = ["x", "k", "who"]
    categories = {"k": ["a0", "a1", "a2"], "who": sorted(f"person {i}" for i in range(ROWS))}
    matrix = xgboost.QuantileDMatrix(x, y, feature_names=names)
    parameters = {
        "objective": "binary:logistic",
        "max_depth": 3,
        "learning_rate": 0.2,
        "min_child_weight": 20,
        "nthread": 1,
    }
    return TrainedModel(xgboost.train(parameters, matrix, 40), Encoding(tuple(names), categories), "binary")


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "PERENNIAL_MODELS"):
        monkeypatch.delenv(name, raising=False)

    def make(**changes: Any) -> World:
        world = World(tmp_path, make_spec(**changes))

        def artifact(version: registry.ModelVersion, name: str) -> Path:
            path = tmp_path / "artifacts" / version.run_id / name
            if not path.is_file():
                from perennial.core.errors import ArtifactError

                raise ArtifactError(f"MLflow has no artifact {name}", "restore it")
            return path

        monkeypatch.setattr(registry, "get_champion", lambda spec: world.champion)
        monkeypatch.setattr(
            champion, "get_champion", lambda spec, **_: champion.Champion(registry.get_champion(spec))
        )
        monkeypatch.setattr(
            registry,
            "has_artifact",
            lambda version, name: (tmp_path / "artifacts" / version.run_id / name).is_file(),
        )
        monkeypatch.setattr(registry, "download_artifact", artifact)
        monkeypatch.setattr(registry, "load_spec", lambda version: world.spec)
        monkeypatch.setattr(registry, "load_model", lambda version, **_: world.model)
        return world

    return make


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three weeks without a change and a champion trained on them, made once."""
    world = World(tmp_path_factory.mktemp("calm"), make_spec())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PERENNIAL_HOME", str(world.folder / "home"))
        for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "PERENNIAL_MODELS"):
            patched.delenv(name, raising=False)
        world.publish(FIRST, 21)
        world.label(FIRST, 21, TRUTH)
        world.train()
    return world


@pytest.fixture
def monitored(make_world: Callable[..., World], calm: World) -> World:
    """A copy of `calm`."""
    copy = make_world()
    shutil.copytree(calm.folder, copy.folder, dirs_exist_ok=True)
    copy.champion, copy.model = calm.champion, calm.model
    return copy
