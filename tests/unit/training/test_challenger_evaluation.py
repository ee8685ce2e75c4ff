"""What the gate makes of comparisons and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xgboost

from perennial.core import dates
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.modeling.comparison import Comparison
from perennial.modeling.encoding import Encoding
from perennial.modeling.metrics import metrics
from perennial.modeling.performance import SliceValues
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.constraints import HOLDOUT_METRICS, direction
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training.challenger_evaluation import (
    TrainingSource,
    evaluate_challenger,
    gate_decision,
    losses_on,
)
from perennial.training.gate.group_values import GroupValues
from perennial.training.windows import Windows
from support import lake, toys


@pytest.fixture
def spec_of(tmp_path: Path) -> Any:
    def make(**gate: Any) -> ModelSpec:
        return toys.model(tmp_path, "toy", gate=gate)

    return make


def better(low: float, improvement: float = 0.05) -> Comparison:
    return Comparison(0.95, 1.0, improvement, low, 0.1, 100)


def judge(spec: ModelSpec, champion: Comparison | None, values: dict[str, float] | None = None) -> Any:
    simple = {"constant": better(0.01), "linear model": better(0.01)}
    return gate_decision(spec, values or {}, simple, champion)


def test_the_interval_must_lie_above_the_margin(spec_of: Any) -> None:
    assert judge(spec_of(margin=0.0), better(0.001))[0] is True
    assert judge(spec_of(margin=0.0), better(0.0))[0] is False
    assert judge(spec_of(margin=0.02), better(0.019))[0] is False
    assert judge(spec_of(margin=0.02), better(0.021))[0] is True
    passed, reasons = judge(spec_of(margin=0.02), None)
    assert passed
    assert any("there is no champion to compare with" in r for r in reasons)


def test_simple_models(spec_of: Any) -> None:
    """The constant must surely be beaten; the linear model must not surely be better."""
    spec, worse = spec_of(), Comparison(1.1, 1.0, -0.1, -0.2, -0.05, 100)
    unsure = Comparison(1.0, 1.0, 0.0, -0.1, 0.1, 100)

    def passes(constant: Comparison, linear: Comparison, spec: ModelSpec = spec) -> bool:
        return gate_decision(spec, {}, {"constant": constant, "linear model": linear}, None)[0]

    assert passes(better(0.01), better(0.01))
    assert passes(better(0.01), unsure)
    assert not passes(better(0.01), worse)
    assert not passes(unsure, better(0.01))
    assert passes(worse, worse, spec_of(beat_baseline=False))


def test_bounds_are_looked_at_and_an_unknown_metric_does_not_pass(spec_of: Any) -> None:
    spec = spec_of(bounds={"brier": {"max": 0.2}})
    assert judge(spec, None, {"brier": 0.2})[0] is True
    assert judge(spec, None, {"brier": 0.21})[0] is False
    passed, reasons = judge(spec, None, {})
    assert not passed
    assert any("brier is not known" in r for r in reasons)


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        ({"min": 0.7}, 0.55, False),
        ({"min": 0.7}, 0.7, True),
        ({"min": 0.7}, 0.85, True),
        ({"max": 0.9}, 0.95, False),
        ({"min": 0.7, "max": 0.9}, 0.8, True),
        ({"min": 0.7, "max": 0.9}, 0.6, False),
        ({"min": 0.7, "max": 0.9}, 0.95, False),
    ],
)
def test_a_bound_is_a_lowest_or_a_highest_value(
    spec_of: Any, bound: dict[str, float], value: float, expected: bool
) -> None:
    assert judge(spec_of(bounds={"auc": bound}), None, {"auc": value})[0] is expected


@pytest.mark.parametrize(
    ("task", "metric"), [(t, m) for t, of_task in HOLDOUT_METRICS.items() for m in of_task]
)
def test_a_bound_of_any_metric_refuses_the_worse_side_of_it(tmp_path: Path, task: str, metric: str) -> None:
    """The metrics of a good and of a bad model, and a bound between them on the side that the metric asks for."""
    good, bad = (metrics(task, *predictions(task, noise))[metric] for noise in (0.0, 1.0))
    assert (good > bad) is (direction(metric) == "higher"), (good, bad)
    between = (good + bad) / 2
    better_side, worse_side = ("min", "max") if direction(metric) == "higher" else ("max", "min")
    spec = toys.model(tmp_path, "toy", task, gate={"bounds": {metric: {better_side: between}}})
    assert [judge(spec, None, {metric: value})[0] for value in (good, between, bad)] == [True, True, False]
    assert any(metric in reason and "FAILED" in reason for reason in judge(spec, None, {metric: bad})[1])
    spec = toys.model(tmp_path, "toy", task, gate={"bounds": {metric: {worse_side: between}}})
    assert [judge(spec, None, {metric: value})[0] for value in (good, between, bad)] == [False, True, True]


def predictions(task: str, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels, predictions (the worse the more noise), and lists of a ranking."""
    random, n = np.random.default_rng(0), 300
    group = np.repeat(np.arange(n // 10), 10) if task == "ranking" else None
    if task == "multiclass":
        y = random.integers(0, 3, n)
        p = np.eye(3)[y] * 0.8 * (1 - noise) + random.dirichlet([1, 1, 1], n) * (0.2 + 0.8 * noise)
        return y.astype(float), p / p.sum(axis=1, keepdims=True), None
    y = random.integers(0, 4 if task == "ranking" else 2, n).astype(float)
    p = y * 0.8 * (1 - noise) + random.random(n) * (0.2 + 0.8 * noise)
    return y, p, group


def test_every_reason_is_given_where_one_would_do(spec_of: Any) -> None:
    passed, reasons = judge(spec_of(bounds={"brier": {"max": 0.1}}), better(-0.1), {"brier": 0.5})
    assert not passed
    assert [r.split(":")[0] for r in reasons] == ["ok", "ok", "FAILED", "FAILED"]


def of_classes(spec: ModelSpec, classes: tuple[str, ...], table: pa.Table) -> TrainedModel:
    """A model fitted to the rows of a toy whose label is one of some classes."""
    rows = FeatureQuery(spec).compute(table)
    columns = tuple(c for c in rows.column_names if c != "id")
    categories = {c: sorted(set(rows[c].to_pylist())) for c in spec.features.categorical}
    encoding = Encoding(columns, categories)
    labels = toys.labels("multiclass", table)["y"].to_pylist()
    known = [label in classes for label in labels]
    y = [classes.index(label) for label in labels if label in classes]
    matrix = xgboost.DMatrix(encoding.encode(rows)[known], y)
    parameters = {"objective": "multi:softprob", "num_class": len(classes), "nthread": 1}
    return TrainedModel(xgboost.train(parameters, matrix, 5), encoding, "multiclass", classes)


@pytest.mark.parametrize("unseen", ["red", "blue"])
@pytest.mark.parametrize("unseen_by", ["challenger", "champion", "both"])
def test_a_class_that_a_model_does_not_know_counts_as_wrong_for_that_model(
    make: Any, monkeypatch: pytest.MonkeyPatch, unseen: str, unseen_by: str
) -> None:
    spec = make("multiclass", gate={"metric": "error_rate", "beat_baseline": False})
    days = tuple(dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 4)))
    table = pa.concat_tables([toys.rows("multiclass", day) for day in days])
    every = ("blue", "green", "red")
    fewer = tuple(c for c in every if c != unseen)
    models = {
        name: of_classes(spec, fewer if unseen_by in (name, "both") else every, table)
        for name in ("challenger", "champion")
    }
    monkeypatch.setattr(registry, "load_comparable_model", lambda *_: models["champion"])
    monkeypatch.setattr(registry, "load_spec", lambda version: spec)
    source = TrainingSource(spec, FeatureQuery(spec), None, None)
    champion: Any = object()
    windows = Windows((), (), days)
    result = evaluate_challenger(source, windows, models["challenger"], {}, champion)

    labels = np.asarray(toys.labels("multiclass", table)["y"].to_pylist())
    rows = FeatureQuery(spec).compute(table)
    wrong = {
        name: float(np.mean(np.asarray(m.classes)[m.predict(rows).argmax(axis=1)] != labels))
        for name, m in models.items()
    }
    assert result.against_champion is not None
    assert result.against_champion.loss == pytest.approx(wrong["challenger"])
    assert result.against_champion.other == pytest.approx(wrong["champion"])
    assert result.metrics["accuracy"] == pytest.approx(1 - wrong["challenger"])
    assert result.rows == result.coverage.evaluated == result.coverage.rows == 5 * toys.ROWS
    count = int((labels == unseen).sum()) if unseen_by == "both" else 0
    assert result.coverage.counted_wrong == {"of a class unseen at training": count}
    assert wrong["challenger"] != wrong["champion"] or unseen_by == "both"
    for values in (SliceValues, GroupValues):  # losses alone need none
        monkeypatch.setattr(values, "add", None)
    assert losses_on(source, windows, days, models["challenger"]).mean() == pytest.approx(wrong["challenger"])


def test_rows_without_a_label_and_lists_of_one_grade_are_counted(make: Any) -> None:
    spec = make("ranking", gate={"beat_baseline": False})
    days = tuple(dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 2)))
    uri = delta_tables.table_uri("labels", spec.name)
    for day, kept, grade in ((days[0], slice(0, 50), None), (days[1], slice(None), 2)):
        table = lake.read_table(uri, start=day, end=day).sort_by("id")[kept]
        if grade is not None:
            table = table.set_column(
                table.column_names.index("label"), "label", pa.array([grade] * len(table))
            )
        delta_tables.replace(uri, table, day)
    table = toys.rows("ranking", days[0])
    features = FeatureQuery(spec)
    encoding = Encoding(tuple(c for c in features.columns), {"k": ["a", "b", "c"]})
    matrix = xgboost.DMatrix(encoding.encode(features.compute(table)), np.arange(len(table)) % 2)
    model = TrainedModel(xgboost.train({"nthread": 1}, matrix, 2), encoding, "ranking")
    result = evaluate_challenger(
        TrainingSource(spec, features, None, None), Windows((), (), days), model, {}, None
    )
    third = toys.labels("ranking", toys.rows("ranking", days[2]))["y"].to_numpy().reshape(-1, 10)
    first = toys.labels("ranking", table)["y"].to_numpy()[:50].reshape(-1, 10)
    equal = sum(10 for grades in (*first, *third) if len(set(grades)) == 1)
    assert result.coverage.rows == 3 * toys.ROWS
    assert result.coverage.omitted == {
        "without a label": toys.ROWS - 50,
        "in a list whose rows all have the same grade": toys.ROWS + equal,
    }
    assert result.reasons[0].startswith(
        f"ok: evaluated on {50 + toys.ROWS - equal} of {3 * toys.ROWS} rows ("
    )
