from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perennial.monitoring import performance
from perennial.monitoring.results import PerformanceMetrics
from perennial.storage import delta_tables
from support.monitored import FIRST, World

Make = Callable[..., World]


def measure(world: World, as_of: str = "2024-01-07", **more: Any) -> PerformanceMetrics:
    arguments: dict[str, Any] = {
        "start": FIRST,
        "as_of": as_of,
        "model_version": "1",
        "metrics_at_training": {"log_loss": 0.25},
        "classes": (),
    }
    return performance.measure(world.spec, **arguments | more)


def test_labels_are_due_a_day_later(make_world: Make) -> None:
    world = make_world()
    world.predict(FIRST, 7)
    world.label(FIRST, 7)  # the last day has labels already, but they are not due
    result = measure(world)
    assert (result["scored_rows"], result["labelled_rows"]) == (1400, 1200)
    assert result["labelled_share"] == pytest.approx(6 / 7, abs=1e-5)
    assert result["metrics"]["log_loss"] == pytest.approx(0.223144, abs=1e-5)
    assert result["metrics"]["auc"] == 1.0
    assert result["relative_change"] < 0


def test_labels_without_a_prediction_are_counted_and_left_out(make_world: Make) -> None:
    world = make_world()
    world.predict(FIRST, 7)
    world.label(FIRST, 7, rows=250)
    world.label("2023-12-31", 1)  # before anything was scored: not counted
    result = measure(world, start="2023-12-31")
    assert result["unscored_labels"] == 6 * 50 and result["labelled_rows"] == 1200


def test_other_versions_predictions_are_left_out(make_world: Make) -> None:
    world = make_world()
    world.predict(FIRST, 3, version="0", value="1 - i % 2")
    world.predict("2024-01-04", 4)
    world.label(FIRST, 7)
    result = measure(world)
    assert result["scored_rows"] == 800 and result["metrics"]["auc"] == 1.0


def test_too_few_labels_are_undetermined(make_world: Make) -> None:
    world = make_world()
    assert measure(world)["metrics"] == {}
    world.predict(FIRST, 7)
    assert "no label arrived" in measure(world)["reason"]
    world.label(FIRST, 1, rows=99)
    result = measure(world)
    assert not result["metrics"] and "99 scored rows" in result["reason"]


def test_null_labels_and_a_metric_that_was_not_recorded(make_world: Make) -> None:
    world = make_world()
    world.predict(FIRST, 7)
    world.label(FIRST, 7, value="CASE WHEN i < 100 THEN i % 2 END")
    result = measure(world, metrics_at_training={})
    assert (
        result["labelled_rows"] == 600
        and result["relative_change"] is None
        and "not recorded" in result["reason"]
    )


def test_labels_that_are_a_column_of_the_data(make_world: Make) -> None:
    world = make_world(
        label={"source": None, "columns": {}, "expression": "x", "arrives_after": "0 days"}, task="regression"
    )  # fmt: skip
    world.publish(FIRST, 7)
    world.predict(FIRST, 7, value="0.5")
    result = measure(world, metrics_at_training={"squared_error": 1.0})
    assert result["labelled_rows"] == 1400 and result["metrics"]["squared_error"] == pytest.approx(
        1 / 12, rel=0.1
    )


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("regression", "CASE WHEN i = 0 THEN 'inf'::DOUBLE WHEN i = 1 THEN 'nan'::DOUBLE ELSE 2.0 END"),
        ("binary", "CASE WHEN i < 2 THEN 2 ELSE i % 2 END"),
        ("ranking", "CASE WHEN i = 0 THEN -1.0 WHEN i = 1 THEN 0.5 ELSE i % 3 END"),
        ("multiclass", "CASE WHEN i < 2 THEN '' ELSE 'a' END"),
    ],
)
def test_a_label_that_the_task_cannot_have_is_counted_and_nothing_is_called_fine(
    make_world: Make, task: str, value: str
) -> None:
    group = {"group": "k"} if task == "ranking" else {}
    world = make_world(task=task, **group)
    world.publish(FIRST, 7)
    more = ", [1.0]::FLOAT[] AS probabilities" if task == "multiclass" else ""
    world.predict(FIRST, 7, value="1.0", more=more)
    world.label(FIRST, 7, value=value)
    result = measure(world, classes=("a",) if task == "multiclass" else ())
    assert result["metrics"] == {}
    assert result["reason"].startswith("12 of 1,200 labels are not ")
    assert result["coverage"]["evaluated"] == 0 and result["coverage"]["rows"] == 1400


def test_multiclass_reads_the_probabilities_and_counts_unknown_classes_as_wrong(make_world: Make) -> None:
    world = make_world(
        task="multiclass", label={"expression": "y", "columns": {"id": "string", "y": "string"}}
    )
    world.predict(FIRST, 7, value="0", more=", [0.8, 0.2]::FLOAT[] AS probabilities")
    world.label(FIRST, 7, value="CASE WHEN i < 100 THEN 'a' ELSE 'unseen' END")
    result = measure(world, classes=("a", "b"), metrics_at_training={"log_loss": 0.2})
    assert result["metrics"]["accuracy"] == 0.5
    assert result["metrics"]["log_loss"] == pytest.approx((0.223144 + 16.118096) / 2, abs=1e-5)
    assert result["coverage"] == {
        "evaluated": 1200,
        "rows": 1400,
        "omitted": {"whose label is not due yet": 200},
        "counted_wrong": {"of a class unseen at training": 600},
    }
    assert (
        "on 1,200 of 1,400 rows (200 whose label is not due yet); 600 of a class unseen at training count as wrong"
        in result["reason"]
    )
    assert measure(world, classes=("a", "b", "c"))["metrics"] == {}


def test_ranking_is_evaluated_by_list(make_world: Make) -> None:
    world = make_world(task="ranking", group="k")
    world.publish(FIRST, 7, k="'q' || (i // 20)")
    world.predict(FIRST, 7, value="i % 20")
    world.label(FIRST, 7, value="CASE WHEN i % 20 = 19 THEN 3 ELSE 0 END")
    result = measure(world, metrics_at_training={"ndcg_loss": 0.1})
    assert result["metrics"]["ndcg"] == pytest.approx(1.0)
    assert result["coverage"]["evaluated"] == 1200


def test_lists_end_with_their_date_and_those_of_one_grade_are_left_out(make_world: Make) -> None:
    """One list a day, the same on all; every second day, no row is relevant."""
    world = make_world(task="ranking", group="k")
    world.publish(FIRST, 7, k="'always'")
    world.predict(FIRST, 7, value="-i")
    world.label(FIRST, 7, value="CASE WHEN i = 0 AND getvariable($$salt$$) % 2 = 0 THEN 3 ELSE 0 END")
    result = measure(world, metrics_at_training={"ndcg_loss": 0.1})
    assert result["metrics"]["ndcg"] == pytest.approx(1.0)
    assert result["coverage"]["omitted"] == {
        "whose label is not due yet": 200, "in a list whose rows all have the same grade": 600
    }  # fmt: skip


def test_many_rows_are_evaluated_on_a_sample(make_world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "MAX_ROWS", 300)
    world = make_world()
    world.predict(FIRST, 7)
    world.label(FIRST, 7)
    one, two = measure(world), measure(world)
    assert (
        one == two
        and one["labelled_rows"] == 1200
        and one["coverage"]["evaluated"] + one["coverage"]["omitted"]["not in the sample"] == 1200
        and 200 < one["coverage"]["evaluated"] < 400
        and one["metrics"]["log_loss"] == pytest.approx(0.223144, abs=1e-5)
    )


def test_a_version_that_looks_like_sql_is_a_value(make_world: Make) -> None:
    world = make_world()
    world.predict(FIRST, 7)
    world.label(FIRST, 7)
    assert measure(world, model_version="1' OR '1'='1")["scored_rows"] == 0
    assert delta_tables.partitions(delta_tables.table_uri("predictions", "toy"))
