"""What features and feature tables are worth: the planted useful ones help, the planted useless ones do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import xgboost

from perennial.cli import features as features_commands
from perennial.core import dates
from perennial.features.engine import FeatureQuery
from perennial.ingestion import table_definitions
from perennial.modeling import metrics, registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import summaries
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import delta_tables
from perennial.training.studies import usefulness
from perennial.training.studies.usefulness import UnitUsefulness, Usefulness, verdict
from support import toys
from support.feeds import history_table

PLACES, ROWS = 30, 300
DAYS = dates.dates(toys.FIRST, toys.LAST)
#: The labels of the last day have not arrived; the five before it are held out.
HELD_OUT, LEARNED = DAYS[-6:-1], DAYS[:-6]
FIRST_TRAINING = DAYS[-2]
SQL = "SELECT id, x, z, k, seen_24h, share_y * 2 AS share FROM rows"


def rows(day: str) -> pa.Table:
    table = toys.rows("binary", day, ROWS)
    rng = np.random.default_rng(int(re.sub(r"\D", "", day)) + 1)
    places = pa.array([f"place {i}" for i in rng.integers(0, PLACES, len(table))])
    return table.set_column(table.column_names.index("place"), "place", places)


def labels(table: pa.Table, day: str, *, by_place: bool) -> np.ndarray:
    """Labels that ``x`` decides, and the place if ``by_place``, with some noise."""
    rng = np.random.default_rng(int(re.sub(r"\D", "", day)) + 2)
    place = np.array([int(p.split()[1]) for p in table["place"].to_pylist()])
    score = np.sign(table["x"].to_numpy()) + (2 * np.where(place % 2, 1, -1) if by_place else 0)
    return (score + rng.normal(size=len(table)) > 0).astype(np.int64)


def publish(spec: ModelSpec, *, by_place: bool) -> None:
    days = [(day, rows(day)) for day in DAYS]
    parts = [t.append_column(delta_tables.PARTITION, pa.array([d] * len(t))) for d, t in days]
    known = [
        pa.table({"id": t["id"], "label": labels(t, d, by_place=by_place),
                  delta_tables.PARTITION: pa.array([d] * len(t))})
        for d, t in days
    ]  # fmt: skip
    for kind, content in (("published", parts), ("labels", known)):
        table_definitions.writer_of(spec, kind).replace(pa.concat_tables(content), DAYS[0], DAYS[-1])


def retrained(spec: ModelSpec, *, by_place: bool) -> dict[str, Any]:
    """The result of the second training: the first model is not studied."""
    publish(spec, by_place=by_place)
    first = cast("dict[str, Any]", train(spec, as_of=FIRST_TRAINING))
    assert first["gate"]["passed"], first["gate"]["reasons"]
    assert "usefulness" not in first
    promote(spec, as_of=FIRST_TRAINING, actor="test")
    return cast("dict[str, Any]", train(spec, as_of=toys.LAST))


@pytest.fixture
def models(
    mlflow_url: str, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[ModelSpec]:
    """Two models that use one feature table: the labels of the first depend on places, those of the second do not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    root = tmp_path / "models"
    monkeypatch.setenv("PERENNIAL_MODELS", str(root))
    names = toys.unique("first"), toys.unique("second")
    toys.model(root, names[0])
    history_table.write(root, source=names[0])
    return [
        toys.model(
            root, name, sql=SQL, gate={"beat_baseline": False}, retraining={"min_gain": 0.05},
            training={"study_minutes": 5},
            features={"tables": ["place_history"], "references": []},
        )
        for name in names
    ]  # fmt: skip


def by_name(known: Usefulness) -> dict[str, UnitUsefulness]:
    return {unit["name"]: unit for unit in known["units"]}


def directly(spec: ModelSpec, result: dict[str, Any], column: str) -> tuple[float, float]:
    """The challenger's loss on the held-out rows, and that of a model fitted without a feature, by hand."""
    model = registry.load_model(registry.get_version(spec.name, result["version"]))

    def matrix(days: list[str]) -> tuple[np.ndarray, np.ndarray]:
        tables = [
            t.append_column(delta_tables.PARTITION, pa.array([d] * len(t))) for d in days for t in [rows(d)]
        ]
        y = np.concatenate([labels(rows(day), day, by_place=True) for day in days]).astype(np.float64)
        return model.encoding.encode(FeatureQuery(spec).compute(pa.concat_tables(tables))), y

    kept = [j for j, name in enumerate(model.encoding.columns) if name != column]
    (x, y), (held_out_x, held_out_y) = matrix(LEARNED), matrix(HELD_OUT)
    params = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 3, "learning_rate": 0.3}
    booster = xgboost.train(params, xgboost.QuantileDMatrix(x[:, kept], y), result["rounds"])
    without = booster.inplace_predict(held_out_x[:, kept])
    complete = model.predict_matrix(held_out_x)
    losses = [metrics.losses("binary", "log_loss", held_out_y, p).mean() for p in (complete, without)]
    return float(losses[0]), float(losses[1])


@pytest.mark.usefixtures("without_drift_report")
def test_useless_features_are_named_and_each_model_that_shares_a_table_has_its_own_figures(
    models: list[ModelSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = models
    result = retrained(first, by_place=True)
    of_first = by_name(result["usefulness"])
    useless = {"z", "k", "seen_24h", "place_history.seen_24h"}
    assert {n for n, unit in of_first.items() if usefulness.is_useless(unit)} == useless
    useful = {"x", "share", "place_history", "place_history.share_y"}
    assert {n for n, unit in of_first.items() if unit["verdict"] == "helps"} == useful
    assert of_first["place_history"]["columns"] == ["seen_24h", "share"]
    # By hand the same comes out.
    loss, without = directly(first, result, "share")
    assert of_first["share"]["loss"] == pytest.approx(loss, abs=1e-5)
    assert of_first["share"]["loss_without"] == pytest.approx(without, abs=1e-5)
    assert of_first["place_history.share_y"] == of_first["share"] | {
        "name": "place_history.share_y", "kind": "table column"
    }  # fmt: skip
    # It is said in the log, in the report, and stored with the version.
    sentence = result["usefulness"]["sentence"]
    assert sentence.startswith("these features do not help: ")
    assert {*re.split(r"[:;,] ", sentence)[1:4]} == {"z", "k", "seen_24h"}
    assert any(sentence in line for line in summaries.summarise("train", first, result).lines)
    assert sentence in Path(result["report"]).read_text()
    version = registry.get_version(first.name, result["version"])
    assert registry.load_json_artifact(version, usefulness.ARTIFACT) == result["usefulness"]

    other = retrained(second, by_place=False)
    of_second = by_name(other["usefulness"])
    assert usefulness.is_useless(of_second["place_history"]), of_second["place_history"]
    assert "feature table place_history does not help" in other["usefulness"]["sentence"]
    capsys.readouterr()
    features_commands.show("place_history", as_json=True)
    shown = json.loads(capsys.readouterr().out)["usefulness"]
    assert {model: usefulness.is_useless(units[0]) for model, units in shown.items()} == {
        first.name: False, second.name: True
    }  # fmt: skip
    features_commands.show("place_history", as_json=False)
    assert "does not help" in capsys.readouterr().out
    # Not again before it is due: what is known is kept.
    again = cast("dict[str, Any]", train(first, as_of=toys.LAST, force=True))
    assert again["usefulness"] == result["usefulness"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.02, "helps"),
        (-0.02, -0.001, "harms"),
        (-0.005, 0.009, "useless"),
        (-0.005, 0.011, "unclear"),
    ],
)
def test_only_a_narrow_interval_says_that_a_feature_is_useless(
    low: float, high: float, expected: str
) -> None:
    assert verdict(low, high, min_gain=0.01) == expected
