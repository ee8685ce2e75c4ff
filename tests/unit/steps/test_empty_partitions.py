"""Partitions without rows: published, scored and monitored as empty, not failed; and days without a file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.ingestion.run import LABELS_STEP, STEP
from perennial.lifecycle import backlog
from perennial.spec.model_spec import ModelSpec
from perennial.steps.data import data
from perennial.steps.monitor import monitor
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, landing, manifests
from support import toys
from support.small_model import DAY, SmallModel, rows

DAYS = dates.dates(DAY, dates.add_days(DAY, 6))
HEADER = "id,at,amount,count,kind,ok,on,phone\n"


def optional(model: SmallModel) -> None:
    model.changes = {"arrival": "optional"}


@pytest.mark.data_profile
def test_a_day_without_a_file_is_published_without_rows(small_model: SmallModel) -> None:
    optional(small_model)
    small_model.land(rows(DAYS[1]), DAYS[1])
    result = small_model.run(DAYS[0], DAYS[2])
    assert (result["partitions"], result["rows_in"], result["rows_out"]) == (DAYS[:3], 40, 40)
    for day, count in zip(DAYS, (0, 40, 0), strict=False):
        record = manifests.read("small", STEP, day)
        assert record and (record.rows_in, record.rows_out, record.quarantined) == (count, count, 0)
    assert "0 of 0 rows published" in small_model.report(DAYS[0])
    assert small_model.run(DAYS[0], DAYS[2])["status"] == "unchanged"
    assert {r["partition_date"] for r in small_model.table()} == {DAYS[1]}


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_without_rows(small_model: SmallModel, ending: str) -> None:
    """Only expectations on the number of rows stop it; none does where that is normal."""
    source = {"source": f"{{landing}}/rows/{{date}}.{ending}"}
    small_model.changes = dict(source)
    count, mean = small_model.suite[0], {
        "type": "expect_column_mean_to_be_between", "kwargs": {"column": "amount", "min_value": 0}, "meta": {},
    }  # fmt: skip
    small_model.suite = [count, mean]
    small_model.land(rows(n=0) if ending == "parquet" else HEADER, ending=ending)
    with pytest.raises(
        DataError, match=r"observed 0.*it has no rows; if that is normal, declare data.arrival: optional"
    ):
        small_model.run()
    assert manifests.read("small", STEP, DAY) is None
    small_model.suite = [mean]
    assert small_model.run()["rows_out"] == 0
    small_model.suite = [count, mean]
    small_model.changes = source | {"arrival": "optional"}
    assert small_model.run()["rows_out"] == 0
    (small_model.landing / "rows" / f"{DAY}.{ending}").unlink()
    small_model.changes = source
    with pytest.raises(DataError, match="has not landed"):
        small_model.run()


def test_rows_are_replaced_by_none_and_none_by_rows(small_model: SmallModel) -> None:
    small_model.label = {"expression": "count"}
    small_model.task = "regression"
    optional(small_model)
    path = small_model.land(rows(amount=[-1.0] + [1.0] * 39))
    assert small_model.run()["quarantined"] == 1
    path.unlink()
    assert small_model.run()["rows_out"] == 0
    assert not (small_model.table() or small_model.table("labels") or small_model.table("quarantine"))
    small_model.land(rows())
    assert small_model.run()["rows_out"] == len(small_model.table("labels")) == 40


def test_a_folder_that_is_being_written_is_not_missing(small_model: SmallModel) -> None:
    optional(small_model)
    (small_model.landing / "rows" / f"{DAY}.parquet" / "_temporary").mkdir(parents=True)
    with pytest.raises(DataError, match="has not landed: the folder"):
        small_model.run()


def test_catching_up_publishes_days_without_a_file_and_files_that_came_late(small_model: SmallModel) -> None:
    optional(small_model)
    small_model.land(rows(DAYS[0]), DAYS[0])
    small_model.land(pa.table({"id": [f"{DAYS[1]}-1"], "value": [2.0]}), DAYS[1], "labels")
    for day in DAYS[:2]:
        small_model.run(day)
    assert backlog.unpublished(small_model.spec, DAYS[1]).overdue == []
    # Airflow was down for three days; then the file of an earlier day lands
    small_model.land(rows(DAYS[3]), DAYS[3])
    small_model.land(rows(DAYS[1]), DAYS[1])
    assert backlog.unpublished(small_model.spec, DAYS[4]).overdue == DAYS[1:5]
    result = small_model.run(DAYS[5], catch_up=True)
    assert result["late"] == DAYS[1:5] and result["late_labels"] == [DAYS[1]]
    assert backlog.unpublished(small_model.spec, DAYS[5]).overdue == []
    assert {r["partition_date"] for r in small_model.table()} == {DAYS[0], DAYS[1], DAYS[3]}
    assert manifests.read("small", LABELS_STEP, DAYS[1])


def test_nothing_is_overdue_before_the_first_partition(small_model: SmallModel) -> None:
    optional(small_model)
    assert backlog.unpublished(small_model.spec, DAYS[-1]).overdue == []


@pytest.fixture
def weekday(make_model: Any) -> ModelSpec:
    """A model whose feed has nothing on every third day, published and trained."""
    spec: ModelSpec = make_model(
        data={"arrival": "optional"}, monitoring={"window": "3 days", "min_rows": 10}
    )
    toys.land(spec)
    for i in range(0, toys.DAYS, 3):
        day = dates.add_days(toys.FIRST, i)
        landing_path(spec, day).unlink()
    return spec


def landing_path(spec: ModelSpec, day: str) -> Any:
    from pathlib import Path

    return Path(landing.source_uri(spec.data.source, day))


@pytest.mark.usefixtures("without_data_profile", "without_drift_report")
def test_training_scoring_and_monitoring_pass_over_days_without_rows(
    weekday: ModelSpec,
) -> None:
    from perennial.steps.promote import promote

    empty, last = dates.add_days(toys.FIRST, 15), toys.LAST
    data(weekday, start=toys.FIRST, end=last)
    result = train(weekday, as_of=dates.add_days(toys.FIRST, 13), reason="first", run_id="r")
    promote(weekday, as_of=dates.add_days(toys.FIRST, 13), actor="test")
    scored = score(weekday, start=empty)
    assert (scored["partitions"], scored["rows_out"], scored["status"]) == ([empty], 0, "scored")
    assert score(weekday, start=empty)["status"] == "unchanged"
    following = dates.add_days(empty, 1)
    assert score(weekday, start=dates.add_days(empty, -1), end=following)["rows_out"] == 2 * toys.ROWS
    assert backlog.unscored(weekday, following).overdue == []
    monitor(weekday, as_of=dates.add_days(empty, -1))
    verdict = monitor(weekday, as_of=empty)
    assert verdict["model_version"] == result["version"] and not verdict["signals"]["backlog"]["value"]
    assert verdict["signals"]["freshness"]["state"] == "ok"
    # rows that are withdrawn take their predictions with them
    landing_path(weekday, following).unlink()
    data(weekday, start=following)
    assert score(weekday, start=following)["rows_out"] == 0
    predictions = delta_tables.rows_by_partition(delta_tables.table_uri("predictions", weekday.name))
    assert following not in predictions
