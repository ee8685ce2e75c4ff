"""Hourly, weekly and monthly feeds, from landed files to a decision on retraining, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from perennial.cli import app as app_module
from perennial.core.errors import PerennialError
from perennial.ingestion import model_tables
from perennial.lifecycle import backlog
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import delta_tables, landing
from support import lake, toys

pytestmark = pytest.mark.usefixtures("without_data_docs", "without_data_profile", "without_drift_report")

#: By cadence: file name, schedules, first partition, length of the windows, time until labels arrive.
FEEDS: dict[str, tuple[str, dict[str, str], str, str, str]] = {
    "hour": (
        "{date}/{hour}",
        {"data": "10 * * * *", "monitor": "15 * * * *"},
        "2024-02-28T20",
        "24 partitions",
        "0 hours",
    ),
    "week": ("{date}", {"data": "0 2 * * 3", "monitor": "0 6 * * 3"}, "2023-12-27", "60 days", "1 week"),
    "month": (
        "{year}/{month}",
        {"data": "0 2 1 * *", "monitor": "0 6 1 * *"},
        "2022-11",
        "9 months",
        "1 partition",
    ),
}
MADE = {"hour": 40, "week": 24, "month": 24}


def feed(make_model: Callable[..., ModelSpec], every: str, **changes: Any) -> ModelSpec:
    name, schedule, first, window, delay = FEEDS[every]
    starts = {"week_starts": "wednesday"} if every == "week" else {}
    source = f"{{landing}}/{every}/{name}.parquet"
    return make_model(
        data={"every": every, "source": source, **starts},
        label={"source": source.replace(every, f"{every}_labels", 1), "arrives_after": delay},
        training={"holdout": window},
        monitoring={"window": window},
        schedule={**schedule, "start": f"{first}-01"[:10]},
        **changes,
    )


def perennial(*arguments: str) -> Any:
    result = CliRunner().invoke(app_module.app, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if result.stdout.startswith("{") else result.stdout


@pytest.mark.parametrize("every", FEEDS)
def test_a_feed_becomes_predictions_a_verdict_and_a_decision(
    make_model: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    spec, first, count = feed(make_model, every), FEEDS[every][2], MADE[every]
    cadence = spec.cadence
    monkeypatch.setenv("PERENNIAL_MODELS", str(spec.folder.parent))
    toys.land(spec, first, count)
    last = cadence.shift(first, count - 1)
    trained = cadence.shift(last, -4)
    model = ("--model", spec.name)
    result = perennial("run", "data", *model, "--start", first, "--end", trained)
    keys = cadence.keys(first, trained)
    assert result["partitions"] == keys and result["rows_out"] == toys.ROWS * len(keys)
    assert result["quarantined"] == 0
    delay = {"hour": 0, "week": 1, "month": 1}[every]
    arrived = lake.read_table(delta_tables.table_uri("labels", spec.name)).select(
        ["partition_date", "arrived"]
    )
    assert {(r["partition_date"], r["arrived"]) for r in arrived.to_pylist()} == {
        (key, cadence.shift(key, delay)) for key in keys[: len(keys) - delay]
    }
    held_out = spec.training.holdout.partitions(cadence)
    result = perennial("run", "train", *model, "--as-of", trained)
    assert result["gate"]["passed"] and result["rows"]["holdout"] == held_out * toys.ROWS
    assert perennial("run", "promote", *model, "--as-of", trained)["promoted"]
    # a partition after the training, then the rest by catching up
    following = cadence.shift(trained, 1)
    perennial("run", "data", *model, "--start", following)
    assert perennial("run", "score", *model, "--start", following)["partitions"] == [following]
    result = perennial("run", "data", *model, "--start", last, "--catch-up")
    assert result["late"] == cadence.keys(cadence.shift(trained, 2), cadence.shift(last, -1))
    overdue = backlog.of_all_stages(spec, last)
    assert {stage: b.overdue for stage, b in overdue.items()} == {
        "published": [], "labelled": [],
        "scored": cadence.keys(cadence.shift(trained, 2), last), "monitored": [following],
    }  # fmt: skip
    monkeypatch.setattr(backlog, "PENDING_SECONDS", 0.0)
    result = perennial("run", "score", *model, "--start", last, "--catch-up")
    assert result["late"] == cadence.keys(cadence.shift(trained, 2), cadence.shift(last, -1))
    scored = toys.content_of("predictions", spec.name)
    assert sorted({r["partition_date"] for r in scored}) == cadence.keys(following, last)
    assert len(scored) == 4 * toys.ROWS
    result = perennial("run", "monitor", *model, "--as-of", last, "--catch-up")
    assert (result["start"], result["as_of"]) == (cadence.shift(last, 1 - held_out), last)
    assert result["signals"]["freshness"]["state"] == "ok", result["signals"]["freshness"]
    assert result["signals"]["backlog"]["state"] != "bad", result["signals"]["backlog"]
    assert result["signals"]["volume"]["state"] == "ok", result["signals"]["volume"]
    assert result["performance"]["metrics"], result["performance"]
    decision = perennial("run", "decide", *model, "--as-of", last)
    assert decision["as_of"] == last and not decision["retrain"]
    assert last in perennial("why", spec.name, last)
    assert perennial("predictions", spec.name, "--date", last)


@pytest.mark.parametrize("every", FEEDS)
def test_events_after_the_partition_are_refused(make_model: Callable[..., ModelSpec], every: str) -> None:
    spec, first = feed(make_model, every), FEEDS[every][2]
    toys.write(landing.source_uri(spec.references[0].source), toys.places())
    limit = spec.cadence.event_limit(first)
    table = toys.rows("binary", first)
    times = table["seen_at"].to_pylist()
    times[0], times[1] = limit, limit - timedelta(microseconds=1)
    table = table.set_column(1, "seen_at", pa.array(times, pa.timestamp("us")))
    toys.write(landing.source_uri(spec.data.source, first), table)
    result = dispatch.run("data", spec, start=first)
    assert result["quarantined"] == 1 and result["rows_out"] == toys.ROWS - 1


def test_files_are_listed_by_their_partition(make_model: Callable[..., ModelSpec], empty_home: Path) -> None:
    spec = feed(make_model, "hour")
    names = ["2024-02-28/20", "2024-02-28/24", "2024-02-28/7", "2024-02-30/01", "2024-02-29/00"]
    for name in names:
        path = Path(landing.source_uri("{landing}"), "hour", f"{name}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(landing.list_landed(spec.data.source, spec.cadence)) == ["2024-02-28T20", "2024-02-29T00"]
    weekly = feed(make_model, "week")
    for day in ("2023-12-27", "2023-12-28", "2024-01-03"):
        path = Path(landing.source_uri(weekly.data.source, day))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(landing.list_landed(weekly.data.source, weekly.cadence)) == ["2023-12-27", "2024-01-03"]


@pytest.mark.parametrize(
    ("every", "key"),
    [("hour", "2024-02-28"), ("week", "2024-01-01"), ("month", "2024-01-01"), ("month", "2024-13")],
)
def test_keys_of_another_cadence_are_refused(
    make_model: Callable[..., ModelSpec], every: str, key: str
) -> None:
    spec = feed(make_model, every)
    for step, argument in (("data", "start"), ("score", "start"), ("train", "as_of"), ("monitor", "as_of"),
                           ("decide", "as_of"), ("promote", "as_of")):  # fmt: skip
        more = {"decide": {"actor": "me", "backfill": False}, "promote": {"actor": "me"}}.get(step, {})
        with pytest.raises(PerennialError, match=f"{argument} is ?.{key}"):
            dispatch.run(step, spec, **{argument: key}, **more)


def test_a_model_keeps_the_length_of_its_partitions(make_model: Callable[..., ModelSpec]) -> None:
    monthly = feed(make_model, "month")
    toys.land(monthly, "2022-11", 1)
    dispatch.run("data", monthly, start="2022-11")
    weekly = monthly.model_copy(update={"data": monthly.data.model_copy(update={"every": "week"})})
    with pytest.raises(PerennialError, match=r"partition 2022-11, which is no week"):
        model_tables.reconcile(weekly, model_tables.DATA_TABLES)
    with pytest.raises(PerennialError, match=r"a new generation cannot change .*another name"):
        model_tables.plan_generation(weekly, force=True)
