"""`perennial new`: from a file to a folder that is checked, publishes its sample, and can be trained."""

from __future__ import annotations

import csv
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from perennial.cli.app import app
from perennial.cli.check import preflight
from perennial.cli.new import partitioning, templates, wizard
from perennial.cli.new.wizard import GivenAnswers
from perennial.core.durations import Duration
from perennial.core.errors import PerennialError
from perennial.spec import catalog
from perennial.steps import dispatch
from support import scaffolds, toys
from support.scaffolds import make, publishes

DAYS = 12


def new(name: str, *arguments: str | Path, answers: str | None = None) -> Result:
    return CliRunner().invoke(app, ["new", name, *map(str, arguments)], input=answers)


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    """scikit-learn's wine data as a person would have it: one CSV with an id, a date, and a column too many."""
    from sklearn.datasets import load_wine

    wines = load_wine(as_frame=True)
    path = tmp_path / "wine.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["sample_id", "tasted_on", *wines.feature_names, "grower_name", "cultivar"])
        for i, (row, target) in enumerate(zip(wines.data.itertuples(index=False), wines.target, strict=True)):
            day = dt.date(2024, 3, 1) + dt.timedelta(days=i % DAYS)
            out.writerow([i, day, *row, f"Grower {i}, “Müller”", "abc"[target]])
    return path


@pytest.mark.slow
def test_a_csv_becomes_a_model_that_runs(mlflow_home: Path, wine: Path) -> None:
    """new, check, data, train, promote, score: without a line written by hand."""
    done = new("wine", "--sample", wine, "--label", "cultivar", "--yes", "--owner", "cellar")
    assert done.exit_code == 0, done.output
    spec = catalog.load_model_by_name("wine")
    assert (spec.task, spec.data.key, spec.data.event_time) == ("multiclass", ["sample_id"], "tasted_on")
    assert spec.data.personal == ["grower_name"]
    assert spec.data.columns["alcohol"] == "number"
    assert spec.data.columns["tasted_on"] == "date"
    assert spec.schedule.start == dt.date(2024, 3, 1)
    checked = CliRunner().invoke(app, ["check", "wine"])
    assert checked.exit_code == 0, checked.output
    assert "landed rows" in checked.output
    publishes(spec, "2024-03-01", "2024-03-12", 178)
    trained = dispatch.run("train", spec, as_of="2024-03-12", reason="first")
    assert trained["status"] == "trained"
    dispatch.run("promote", spec, as_of="2024-03-12", actor="test")
    scored = dispatch.run("score", spec, start="2024-03-12")
    assert scored["status"] in ("scored", "no champion")


def test_personal_data_reaches_no_file_and_no_output(empty_home: Path, wine: Path, tmp_path: Path) -> None:
    done = new("wine", "-s", wine, "--yes")
    texts = [p.read_text("utf-8") for p in (tmp_path / "models" / "wine").iterdir()]
    assert len(texts) == 4
    assert not any("Grower 1" in text for text in (*texts, done.output))
    assert '"grower_name": personal data' in catalog.load_model_by_name("wine").sql


def test_a_person_is_asked(empty_home: Path, wine: Path, tmp_path: Path) -> None:
    answers = [
        str(wine), "nonsense", "CULTIVAR", "", "", "n", "nonsense", "1", "cellar", "Which cultivar is it?", "go on",
        "y",
    ]  # fmt: skip
    done = new("wine", answers="\n".join([*answers, ""]))
    assert done.exit_code == 0, done.output
    for question in ("Sample file", "Event time", "Key", "Label", "'nonsense' is not valid", "Task", "Owner",
                     "Is grower_name personal data?", "Enter to go on, or what to change",
                     "Copy the sample"):  # fmt: skip
        assert question in done.output
    assert "Grower 1" not in done.output
    spec = catalog.load_model_by_name("wine")
    assert (spec.owner, spec.description, spec.data.personal) == ("cellar", "Which cultivar is it?", [])
    assert (spec.label.expression, spec.data.key) == ("cultivar", ["sample_id"])
    assert (empty_home / "landing" / "wine" / "2024-03-01.csv").is_file()


def test_a_person_can_change_what_is_shown(empty_home: Path, wine: Path) -> None:
    answers = [
        "",
        "",
        "",
        "y",
        "",
        "cellar",
        "",
        "label",
        "hue",
        "",
        "",
        "time",
        "none",
        "",
        "",
        "go on",
        "n",
    ]
    done = new("wine", "--sample", wine, answers="\n".join([*answers, ""]))
    assert done.exit_code == 0, done.output
    spec = catalog.load_model_by_name("wine")
    assert (spec.task, spec.label.expression, spec.data.event_time) == ("regression", "hue", None)
    assert spec.data.personal == ["grower_name"]
    assert not (empty_home / "landing").exists()


def test_a_dry_run_prints_the_files_and_writes_nothing(empty_home: Path, wine: Path, tmp_path: Path) -> None:
    done = new("wine", "--sample", wine, "--yes", "--dry-run")
    assert done.exit_code == 0, done.output
    for text in (
        "model.yaml",
        "task: multiclass",
        "features.sql",
        "FROM rows",
        "expectations.json",
        "README.md",
    ):
        assert text in done.output
    assert not (empty_home / "landing").exists()
    assert "wine" not in catalog.find_folders()
    assert not list((tmp_path / "models").glob("*"))


def test_a_file_without_names_and_with_open_dates_becomes_a_model(empty_home: Path, tmp_path: Path) -> None:
    lines = [f"0{i % 6 + 1}/0{i % 8 + 1}/2024  {i / 7:.2f}  {'xyz'[i % 3]}" for i in range(240)]
    (tmp_path / "rows.dat").write_text("# by hand\n" + "\n".join(lines) + "\ntotal 240\n")
    done = new("rows", "-s", tmp_path / "rows.dat", "-y", "--label", "column_3", "--date-order", "month")
    assert done.exit_code == 0, done.output
    assert "the first line has no names" in done.output and "schedule.end is" in done.output
    spec = catalog.load_model_by_name("rows")
    declared = spec.data.format.model_dump(exclude_defaults=True)
    assert declared == {
        "delimiter": "whitespace", "header": False, "comment": "#", "footer_lines": 1, "date_format": ["%m/%d/%Y"],
    }  # fmt: skip
    assert spec.schedule.end and spec.data.columns["column_1"] == "date"
    publishes(spec, spec.first_partition, str(spec.last_partition), 240)


def test_a_person_chooses_between_readings(empty_home: Path, tmp_path: Path) -> None:
    lines = [f"{i % 8 + 1:02d}/{i % 6 + 1:02d}/2024,{i},{'xy'[i % 2]}" for i in range(96)]
    (tmp_path / "rows.csv").write_text("at,n,label\n" + "\n".join(lines) + "\n")
    answers = ["sometimes", "day", "", "", "", "", "label", "row", "", "go on", "n"]
    done = new("rows", "-s", tmp_path / "rows.csv", "--owner", "me", answers="\n".join([*answers, ""]))
    assert done.exit_code == 0, done.output
    assert (
        "Dates of at do not tell the day from the month" in done.output
        and "'sometimes' is not valid" in done.output
    )
    assert catalog.load_model_by_name("rows").data.format.date_format == ["%d/%m/%Y"]


def test_the_suite_is_great_expectations_own(empty_home: Path, wine: Path) -> None:
    from great_expectations import ExpectationSuite

    spec = make("wine", [wine], label="cultivar")
    content = json.loads(spec.suite)
    suite = ExpectationSuite(**content)
    assert len(suite.expectations) == len(content["expectations"]) > 20
    kinds = {e["type"] for e in content["expectations"]}
    assert {
        "expect_table_row_count_to_be_between", "expect_column_values_to_not_be_null",
        "expect_column_values_to_be_unique", "expect_column_values_to_be_between", "expect_column_values_to_be_in_set",
    } <= kinds  # fmt: skip
    assert not any(e["kwargs"].get("column") == "grower_name" for e in content["expectations"])


def test_no_land_leaves_the_landing_area_alone(empty_home: Path, wine: Path) -> None:
    done = new("wine", "-s", wine, "--yes", "--no-land")
    assert "the sample was not copied" in done.output
    assert not (empty_home / "landing").exists()


def test_nothing_is_overwritten(empty_home: Path, wine: Path, tmp_path: Path) -> None:
    make("wine", [wine], label="cultivar")
    before = {p.name: p.read_bytes() for p in (tmp_path / "models" / "wine").iterdir()}
    for name in ("wine", "flight_late", "flight_context"):
        done = new(name, "-s", wine, "--yes")
        assert done.exit_code == 1
        assert "exists already" in str(done.exception)
    assert {p.name: p.read_bytes() for p in (tmp_path / "models" / "wine").iterdir()} == before


def test_landed_files_are_not_overwritten(empty_home: Path, wine: Path, tmp_path: Path) -> None:
    other = empty_home / "landing" / "wine" / "2024-03-02.csv"
    other.parent.mkdir(parents=True)
    other.write_text("something else")
    with pytest.raises(PerennialError, match="exists already, with other content"):
        make("wine", [wine], label="cultivar")
    assert other.read_text() == "something else"
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("step", ["write", "check", "land", "rename"])
def test_nothing_half_written_is_left(
    empty_home: Path, wine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"write": (templates, "readme_text"), "check": (preflight, "check_model"), "land": (partitioning, "land"),
              "rename": (Path, "rename")}[step]  # fmt: skip
    monkeypatch.setattr(*target, fail)
    with pytest.raises((OSError, PerennialError)):
        wizard.create_model_folder("wine", [wine], GivenAnswers(label="cultivar"), ask=False)
    assert not list((tmp_path / "models").glob("*"))
    assert "wine" not in catalog.find_folders()


@pytest.mark.parametrize("name", ["", "Wine", "../wine", "wine/red", "1wine", "wine red", "w" * 64])
def test_names_that_are_none(empty_home: Path, wine: Path, name: str) -> None:
    with pytest.raises(PerennialError, match="cannot be a model's name"):
        make(name, [wine])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": "nope"}, "--label is 'nope'"),
        ({"label": "sample_id", "key": ["sample_id"]}, "is in the key, and the label"),
        ({"label": "cultivar", "task": "regression"}, "is a string, not a number"),
        ({"label": "cultivar", "task": "ranking", "group": "ash"}, "is not a grade"),
        ({"label": "alcohol", "task": "multiclass"}, "is a number, not a class"),
        ({"label": "cultivar", "task": "binary"}, "has 3 values"),
        ({"label": "cultivar", "task": "binary", "positive": "z"}, "--positive is 'z'"),
        ({"label": "cultivar", "task": "guess"}, "--task is 'guess'"),
        ({"label": "cultivar", "key": ["ash"]}, "does not identify a row"),
        ({"label": "cultivar", "key": ["nope"]}, "the sample has no column 'nope'"),
        ({"label": "cultivar", "event_time": "ash"}, "--event-time is 'ash'"),
        ({"label": "cultivar", "personal": ["nope"]}, "--personal is 'nope'"),
    ],
)
def test_answers_that_do_not_fit(empty_home: Path, wine: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(PerennialError, match=message):
        make("wine", [wine], **asked)


@pytest.mark.parametrize(("days", "held_out"), [(1, 1), (9, 2), (10, 5), (80, 20)])
def test_a_hold_out_that_monitoring_cannot_follow_is_said(
    empty_home: Path, tmp_path: Path, days: int, held_out: int
) -> None:
    sample = scaffolds.write(tmp_path / "orders.parquet", scaffolds.table(240, days))
    done = new("orders", "--sample", sample, "--label", "amount", "--yes")
    checked = CliRunner().invoke(app, ["check", "orders"])
    assert (done.exit_code, checked.exit_code) == (0, 0), done.output + checked.output
    assert catalog.load_model_by_name("orders").training.holdout == Duration(held_out, "day")
    said = f"training.holdout is {Duration(held_out, 'day')}: monitoring cannot follow such a model"
    for result in (done, checked):
        words = " ".join(result.output.split())
        assert (said in words) == (held_out < 5), words
        assert ("set training.holdout to 5 partitions or more" in words) == (held_out < 5)


def test_a_bound_that_refuses_good_challengers_only_is_noted(empty_home: Path, tmp_path: Path) -> None:
    bounds = {"auc": {"max": 0.9}, "log_loss": {"max": 0.5}, "brier": {"min": 0.1}}
    spec = toys.model(tmp_path / "models", "bounded", gate={"bounds": bounds})
    notes = [n for n in preflight.check_model(spec).notes if "gate.bounds" in n]
    assert [n.split(",")[0] for n in notes] == [
        "gate.bounds.auc has only max",
        "gate.bounds.brier has only min",
    ]
