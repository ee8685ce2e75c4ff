"""The DAGs of feeds whose partitions are hours, weeks or months."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from perennial.core.errors import PerennialError
from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.dag_factory.stages import data, monitor, score, train
from support import toys

FEEDS: dict[str, tuple[str, str, str, str]] = {
    "hour": ("{date}/{hour}", "10 * * * *", "2024-05-01T05", "2024-05-01"),
    "week": ("{date}", "0 2 * * 1", "2024-04-29", "2024-05-01"),
    "month": ("{year}-{month}", "0 2 1 * *", "2024-05", "2024-05-01"),
}


def feed(folder: Path, every: str) -> ModelSpec:
    name, cron, _, _ = FEEDS[every]
    source = f"{{landing}}/x/{name}.parquet"
    return toys.model(
        folder,
        "toy",
        data={"every": every, "source": source},
        label={"source": source.replace("/x/", "/y/")},
        schedule={"data": cron, "monitor": cron, "start": "2024-03-01", "end": "2024-06-30"},
    )


@pytest.mark.parametrize(
    ("every", "start", "end"),
    [
        ("hour", datetime(2024, 3, 1, 1), datetime(2024, 7, 1, 0, 59, 59, 999999)),
        ("week", datetime(2024, 3, 11), datetime(2024, 7, 7, 23, 59, 59, 999999)),
        ("month", datetime(2024, 4, 1), datetime(2024, 7, 31, 23, 59, 59, 999999)),
    ],
)
def test_the_dags_begin_and_end_with_the_partitions(
    tmp_path: Path, every: str, start: datetime, end: datetime
) -> None:
    spec = feed(tmp_path, every)
    for dag in (data.data_dag(spec), score.score_dag(spec), monitor.monitor_dag(spec), train.train_dag(spec)):
        assert (dag.start_date, dag.end_date) == (start.replace(tzinfo=UTC), end.replace(tzinfo=UTC))
        stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        key = FEEDS[every][2]
        expected = {"hour": (2024, 5, 1, 5), "week": (2024, 4, 29), "month": (2024, 5, 1)}[every]
        assert stored.timetable.resolve_partition_date(key) == datetime(*expected, tzinfo=UTC)
        page = dag.doc_md or ""
        assert "day before" not in page and "YYYY-MM-DD`" not in page if every == "month" else page


@pytest.mark.parametrize("every", FEEDS)
def test_the_forms_take_keys_of_the_cadence(tmp_path: Path, every: str) -> None:
    spec, key = feed(tmp_path, every), FEEDS[every][2]
    form: Any = data.data_dag(spec).params
    accepted = ParamsDict(form.dump() | {})
    for name in ("start", "end"):
        form.get_param(name).resolve(key)
        form.get_param(name).resolve(None)
        with pytest.raises(ParamValidationError):
            form.get_param(name).resolve("2024-05-01T05:00:00")
    assert accepted


@pytest.mark.parametrize("every", FEEDS)
def test_tasks_read_keys_of_the_cadence(tmp_path: Path, every: str) -> None:
    spec, (_, _, key, wrong) = feed(tmp_path, every), FEEDS[every]

    def context(key: str | None, **params: Any) -> Any:
        run = SimpleNamespace(partition_key=key, run_type="manual", triggering_user_name=None)
        return {"dag_run": run, "params": params, "task": SimpleNamespace(spec=spec, part=None)}

    assert run_request.partitions(context(key)).start == key
    assert run_request.as_of(context(None, as_of=key)).start == key
    later = spec.cadence.shift(key, 3)
    assert run_request.partitions(context(None, start=key, end=later)).last == later
    parts = score.split_range(spec, context(None, start=key, end=later, tasks=2))
    second = spec.cadence.shift(key, 2)
    assert parts == [
        {"start": key, "end": spec.cadence.shift(key, 1)}, {"start": second, "end": later},
    ]  # fmt: skip
    for refused in (wrong, spec.cadence.shift(spec.cadence.latest(), 1)):
        with pytest.raises(PerennialError, match="the partition key"):
            run_request.partitions(context(refused))
