"""A stored prediction is explained by the row, features, tables and version that it was made from."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.cli.governance import explain as explain_command
from perennial.core import dates
from perennial.core.errors import DataError, PerennialError
from perennial.core.sql import HIDDEN_VALUE
from perennial.features.engine import FeatureQuery
from perennial.governance.prediction_explanation import explain_prediction, parse_key
from perennial.modeling import registry
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, landing
from support import toys

Make = Callable[..., ModelSpec]
DAY = dates.add_days(toys.FIRST, 15)


def scored(make: Make, task: str = "binary", **changes: Any) -> tuple[ModelSpec, TrainedModel]:
    """A model that scored `DAY`, and its champion."""
    spec = make(task, **changes)
    toys.publish(spec)
    version = train(spec, as_of=toys.LAST)["version"]
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    score(spec, start=DAY, run_id="nightly")
    return spec, registry.load_model(registry.get_version(spec.name, version))


def scored_world(world: Any) -> tuple[ModelSpec, TrainedModel]:
    score(world.spec, start=DAY, run_id="nightly")
    return world.spec, registry.load_model(registry.get_version(world.spec.name, world.result["version"]))


def tree_value(tree: Any, node: str, row: dict[str, float], known: tuple[str, ...]) -> float:
    """The expected value of a tree if only some features are known (Lundberg et al. 2018, algorithm 1)."""
    at = tree.loc[node]
    if at.Feature == "Leaf":
        return float(at.Gain)
    if at.Feature in known:
        value = row[at.Feature]
        child = at.Missing if math.isnan(value) else at.Yes if value < np.float32(at.Split) else at.No
        return tree_value(tree, child, row, known)
    parts = [(tree.loc[c].Cover, tree_value(tree, c, row, known)) for c in (at.Yes, at.No)]
    return sum(cover * value for cover, value in parts) / sum(cover for cover, _ in parts)


def shapley_values(model: TrainedModel, matrix: np.ndarray) -> list[float]:
    """The Shapley values of one row by their definition, over all subsets of features."""
    trees = [t.set_index("ID") for _, t in model.booster.trees_to_dataframe().groupby("Tree")]
    names = list(model.encoding.columns)
    row = dict(zip(names, matrix[0].astype(float), strict=True))

    def expected(known: tuple[str, ...]) -> float:
        return sum(tree_value(t, t.index[0], row, known) for t in trees)

    values = {s: expected(s) for n in range(len(names) + 1) for s in itertools.combinations(names, n)}
    result = []
    for name in names:
        others = [n for n in names if n != name]
        result.append(
            sum(
                (values[tuple(n for n in names if n in (*s, name))] - values[s])
                / (len(names) * math.comb(len(names) - 1, len(s)))
                for n in range(len(names))
                for s in itertools.combinations(others, n)
            )
        )
    return result


def test_contributions_are_shapley_values_and_add_up_to_the_stored_prediction(world: Any) -> None:
    spec, model = scored_world(world)
    rows = toys.rows("binary", DAY)
    for i in (0, 7, 31):
        key = rows["id"][i].as_py()
        explained = explain_prediction(spec, DAY, {"id": key})
        matrix = model.encoding.encode(FeatureQuery(spec).compute(rows.slice(i, 1)))
        by_hand = dict(zip(model.encoding.columns, shapley_values(model, matrix), strict=True))
        assert {c.feature: c.contribution for c in explained.contributions} == pytest.approx(
            by_hand, abs=1e-4
        )
        total = explained.base + sum(c.contribution for c in explained.contributions)
        assert total == pytest.approx(explained.score, abs=1e-5)
        assert isinstance(explained.prediction, float) and explained.reproduced
        assert 1 / (1 + math.exp(-total)) == pytest.approx(explained.prediction, abs=1e-5)
        assert (explained.run_id, explained.row["k"]) == ("nightly", rows["k"][i].as_py())


@pytest.mark.parametrize(
    ("task", "kinds"),
    [
        ("multiclass", ["trees"]),
        ("regression", ["trees"]),
        ("regression", ["linear"]),
        ("ranking", ["trees"]),
    ],
)
def test_every_task_and_algorithm_is_explained(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, task: str, kinds: list[str]
) -> None:
    toys.let_all_pass(monkeypatch)
    spec, _ = scored(make_model, task, training={"candidates": kinds})
    key = toys.rows(task, DAY)["id"][3].as_py()
    explained = explain_prediction(spec, DAY, {"id": key})
    total = explained.base + sum(c.contribution for c in explained.contributions)
    assert total == pytest.approx(explained.score, abs=1e-4)
    if task == "multiclass":
        assert explained.predicted_class == explained.prediction and explained.decision
    else:
        assert explained.score == pytest.approx(explained.prediction, abs=1e-4)
        assert not explained.decision and not explained.change


def test_the_change_changes_the_decision_and_a_smaller_one_does_not(world: Any) -> None:
    spec, model = scored_world(world)
    rows = toys.rows("binary", DAY)
    query = FeatureQuery(spec)
    single = 0
    for i in range(10):
        row = rows.slice(i, 1)
        explained = explain_prediction(spec, DAY, {"id": row["id"][0].as_py()})
        matrix = model.encoding.encode(query.compute(row))
        before = model.predict_matrix(matrix)[0] >= 0.5
        changed = matrix.copy()
        for change in explained.change:
            j = model.encoding.columns.index(change.feature)
            codes = model.encoding.categories.get(change.feature)
            changed[0, j] = codes.index(change.value) if codes else float(change.value)
        assert explained.change and (model.predict_matrix(changed)[0] >= 0.5) != before
        if len(explained.change) == 1 and not model.encoding.categories.get(explained.change[0].feature):
            single += 1
            less = matrix + (changed - matrix) * np.float32(0.97)
            assert (model.predict_matrix(less)[0] >= 0.5) == before, "it is the border"
    assert single


def test_the_tables_that_scoring_read_are_used_and_not_the_newest(world: Any) -> None:
    spec, _ = scored_world(world)
    key = {"id": toys.rows("binary", DAY)["id"][0].as_py()}
    before = explain_prediction(spec, DAY, key)
    places = toys.places().set_column(2, "size", pa.array([7.0, 7.0, 7.0, 7.0]))
    toys.write(landing.source_uri(spec.references[0].source), places)
    FeatureQuery(spec)  # copies the file that changed to the lake
    assert explain_prediction(spec, DAY, key) == before
    assert float(next(c.value for c in before.contributions if c.feature == "size")) != 7.0


def test_what_cannot_be_explained_is_said(world: Any) -> None:
    spec, _ = scored_world(world)
    key = toys.rows("binary", DAY)["id"][0].as_py()
    with pytest.raises(DataError, match=r"no prediction with this key \(id\)") as unknown:
        explain_prediction(spec, DAY, {"id": "Ada Lovelace"})
    assert "Ada" not in str(unknown.value)
    with pytest.raises(DataError, match="has not been scored"):
        explain_prediction(spec, dates.add_days(DAY, 1), {"id": key})
    with pytest.raises(PerennialError, match="not a"):
        explain_prediction(spec, "someday", {"id": key})
    with pytest.raises(PerennialError, match="has the key id"):
        parse_key(spec, ["a=1", "b=2"])
    assert parse_key(spec, ["id=x=1"]) == parse_key(spec, ["x=1"]) == {"id": "x=1"}
    uri = delta_tables.table_uri("published", spec.name)
    rows = toys.rows("binary", DAY, 10)
    delta_tables.replace(uri, rows.append_column(delta_tables.PARTITION, pa.array([DAY] * 10)), DAY)
    with pytest.raises(DataError, match="published again since it was scored"):
        explain_prediction(spec, DAY, {"id": key})


def test_personal_values_are_hidden(make_model: Make, capsys: pytest.CaptureFixture[str]) -> None:
    personal: dict[str, Any] = {
        "data": {"personal": ["k"]},
        "features": {"personal": {"k": "the label depends on it"}},
    }
    spec, _ = scored(make_model, **personal)
    key = toys.rows("binary", DAY)["id"][0].as_py()
    explained = explain_prediction(spec, DAY, {"id": key})
    assert explained.row["k"] == HIDDEN_VALUE
    assert next(c.value for c in explained.contributions if c.feature == "k") == explained.row["k"]
    assert all(change.feature != "k" for change in explained.change)
    explain_command.show(spec.name, DAY, [key], threshold=0.5, top=2, as_json=False)
    printed = capsys.readouterr().out
    assert "(3 other features)" in printed and "adds to the log odds" in printed
    explain_command.show(spec.name, DAY, [key], threshold=0.5, top=2, as_json=True)
    assert json.loads(capsys.readouterr().out)["prediction"] == explained.prediction
