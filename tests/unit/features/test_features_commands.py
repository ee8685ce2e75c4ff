"""The commands ``perennial features``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core import dates
from perennial.features import feature_tables
from perennial.spec import catalog
from support import toys
from support.feeds import history_table as toy_tables

TEST: dict[str, Any] = {
    "name": "Two rows of a place.",
    "history": [
        {"place": "north", "seen_at": "2024-01-01 10:00:00", "x": 1.0},
        {"place": "north", "seen_at": "2024-01-01 11:00:00", "x": 2.0},
        {"place": "south", "seen_at": "2024-01-01 10:30:00", "x": 9.0},
    ],
    "features": [
        {"place": "north", "valid_from": "2024-01-01 11:00:00", "seen_24h": 2, "mean_x": 1.5, "share_y": None}
    ],
}


@pytest.fixture
def models(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    toys.model(tmp_path / "models", "toy")
    toy_tables.write(tmp_path / "models", tests=[TEST])
    features = {"tables": ["place_history"], "references": []}
    toys.model(tmp_path / "models", "toy", sql=toy_tables.MODEL_SQL, features=features)
    return tmp_path / "models"


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["features", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_build_then_list_and_show(models: Path) -> None:
    toys.publish(catalog.load_model_by_name("toy"), days=6)
    last = dates.add_days(toys.FIRST, 5)
    assert "6 partitions computed, 0 were up to date" in run(
        "build", "place_history", "--start", toys.FIRST, "--end", last
    )
    assert "0 partitions computed, 1 were up to date" in run("build", "place_history", "--start", last)
    assert f"{last}: {toys.ROWS} rows" in run("build", "place_history", "--start", last, "--force")
    listed = {table["name"]: table for table in json.loads(run("list", "--json"))}["place_history"]
    assert (listed["used_by"], listed["partitions"], listed["newest"]) == (["toy"], 6, last)
    assert listed["rows"] == 6 * toys.ROWS
    shown = json.loads(run("show", "place_history", "--json"))
    assert [c["rows"] for c in shown["newest_partitions"]] == [toys.ROWS] * 5
    costs = ("seconds", "cpu_seconds", "memory_mb")
    assert all(c[name] > 0 for c in shown["newest_partitions"] for name in costs)
    assert shown["usefulness"] == {"toy": []}  # no training has measured it
    table = catalog.load_feature_table("place_history")
    files = Path(feature_tables.uri(table)).glob(f"partition_date={last}/*.parquet")
    assert shown["newest_partitions"][-1]["bytes"] == max(files, key=os.path.getmtime).stat().st_size
    assert "seen_24h (integer)" in run("show", "place_history") and "place_history" in run("list")
    assert f"published rows up to {last}" in run("check", "place_history")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": [TEST["features"][0] | {"seen_24h": 3}]}, "seen_24h of place north"),
        ({"features": [TEST["features"][0] | {"place": "west"}]}, "there is no row of place west"),
        ({"history": [{"plaice": "north"}]}, "has 'plaice', which is not one of its columns"),
        ({"features": [{"place": "north", "valid_from": "noon"}]}, "noon"),
        ({"sources": {"other": []}}, "sources names 'other'"),
    ],
)
def test_a_test_that_fails_is_reported(models: Path, changes: dict[str, Any], message: str) -> None:
    assert "good" in run("check", "place_history")
    toy_tables.write(models, tests=[TEST | changes])
    output = run("check", "place_history", status=1)
    assert "test 'Two rows of a place.'" in output and message in output
    checked = CliRunner().invoke(app, ["check"])
    assert checked.exit_code == 1 and message in checked.output


def test_what_is_not_there_is_named(models: Path) -> None:
    assert "no rows of 2024-01-01" in str(
        CliRunner().invoke(app, ["features", "build", "place_history", "--start", toys.FIRST]).exception
    )
    unknown = CliRunner().invoke(app, ["features", "show", "nothing"]).exception
    assert "there is no feature table called 'nothing'; there are: flight_history, place_history" in str(
        unknown
    )
