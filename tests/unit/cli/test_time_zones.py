"""The zone that a sample's times are written in becomes the zone of its days, and of the hours in its features."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from perennial.cli.new.samples import sample_reader, time_zones
from perennial.cli.new.wizard import CreatedModel, GivenAnswers, create_model_folder

BERLIN = "Europe/Berlin"
#: Hours over the change of clocks on 2024-03-31.
HOURS = [dt.datetime(2024, 3, 20, tzinfo=ZoneInfo("UTC")) + dt.timedelta(hours=i) for i in range(24 * 24)]


def write_texts(folder: Path, texts: list[str]) -> Path:
    path = folder / "flow.csv"
    path.write_text(
        "measured,flow\n" + "".join(f"{text},{i % 24 + i / 1000}\n" for i, text in enumerate(texts))
    )
    return path


def create(folder: Path, path: Path, timezone: str | None = None) -> CreatedModel:
    answers = GivenAnswers(label="flow", every="day", timezone=timezone)
    return create_model_folder("flow", [path], answers, folder / "models", ask=False, dry_run=True)


@pytest.mark.parametrize("kind", ["texts", "parquet"])
def test_days_and_hours_are_those_of_the_zone_that_times_are_written_in(
    empty_home: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "texts":
        path = write_texts(tmp_path, [moment.astimezone(ZoneInfo(BERLIN)).isoformat() for moment in HOURS])
    else:
        path = tmp_path / "flow.parquet"
        flow = [i % 24 + i / 1000 for i in range(len(HOURS))]
        pq.write_table(
            pa.table({"measured": pa.array(HOURS, pa.timestamp("us", BERLIN)), "flow": flow}), path
        )
    created = create(tmp_path, path)
    spec = yaml.safe_load(created.texts["model.yaml"])
    assert (spec["data"]["timezone"], spec["data"]["event_time"]) == (BERLIN, "measured")
    assert (created.first, created.last) == ("2024-03-20", "2024-04-13")  # in UTC the last day is one earlier
    assert (
        f"hour(measured AT TIME ZONE 'UTC' AT TIME ZONE '{BERLIN}') AS measured_hour"
        in created.texts["features.sql"]
    )
    assert any("--timezone" in remark for remark in created.remarks)


def test_another_zone_may_be_given(empty_home: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path, [moment.astimezone(ZoneInfo(BERLIN)).isoformat() for moment in HOURS])
    created = create(tmp_path, path, "UTC")
    assert "timezone" not in yaml.safe_load(created.texts["model.yaml"])["data"]
    assert created.last == "2024-04-12"


@pytest.mark.parametrize(
    ("texts", "zone"),
    [
        (["2024-01-05T10:00:00-05:00", "2024-07-05T10:00:00-04:00"], "America/New_York"),
        (["2024-01-05T10:00:00+05:30", "2024-07-05T10:00:00+05:30"], "Asia/Kolkata"),
        (["2024-01-05 10:00:00+01", "2024-07-05 10:00:00+01"], "Africa/Lagos"),
        (["05.01.2024 10:00 +0100", "05.07.2024 10:00 +0200"], BERLIN),
        (["2024-01-05 10:00", "2024-07-05 10:00"], "UTC"),
        (["2024-01-05 10:00Z", "2024-07-05 10:00+02:00"], "UTC"),
        (["2024-01-05 10:00+00:00", "2024-07-05 10:00+00:00"], "UTC"),
        (["2024-01-05", "2024-07-05"], "UTC"),
    ],
)
def test_the_offsets_of_texts_tell_the_zone(
    empty_home: Path, tmp_path: Path, texts: list[str], zone: str
) -> None:
    with sample_reader.open_sample([write_texts(tmp_path, texts)], str(tmp_path / "landing")) as sample:
        assert time_zones.written_zone(sample, "measured") == zone
