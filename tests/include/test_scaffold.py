"""`perennial new`: from a file to a folder that is checked, publishes its sample, and can be trained."""

from __future__ import annotations

import csv
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from perennial import catalog, interview, preflight, samples, scaffold, steps
from perennial.cli import app
from perennial.errors import PerennialError
from perennial.interview import Asked
from perennial.spec import ModelSpec

DAYS = 12


def new(name: str, *arguments: str | Path, answers: str | None = None) -> Result:
    return CliRunner().invoke(app, ["new", name, *map(str, arguments)], input=answers)


def make(name: str, paths: list[Path], **asked: Any) -> ModelSpec:
    """Make a model without asking, and check it."""
    interview.make(name, paths, Asked(**asked), ask=False)
    (report,) = preflight.check([name])
    assert report.problems == []
    assert report.features
    return catalog.load(name)


def publishes(spec: ModelSpec, first: str, last: str, rows: int) -> dict[str, Any]:
    result = steps.run("data", spec, start=first, end=last)
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (rows, rows, 0)
    assert result["labels"] == rows
    return result


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    """scikit-learn's wine data as a person would have it: one CSV with an id, a date, and a column too many."""
    from sklearn.datasets import load_wine

    found = load_wine(as_frame=True)
    path = tmp_path / "wine.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["sample_id", "tasted_on", *found.feature_names, "grower_name", "cultivar"])
        for i, (row, target) in enumerate(zip(found.data.itertuples(index=False), found.target, strict=True)):
            day = dt.date(2024, 3, 1) + dt.timedelta(days=i % DAYS)
            out.writerow([i, day, *row, f"Grower {i}, “Müller”", "abc"[target]])
    return path


@pytest.mark.slow
def test_a_csv_becomes_a_model_that_runs(registry_house: Path, wine: Path) -> None:
    """new, check, data, train, promote, score: without a line written by hand."""
    done = new("wine", "--sample", wine, "--label", "cultivar", "--yes", "--owner", "cellar")
    assert done.exit_code == 0, done.output
    spec = catalog.load("wine")
    assert (spec.task, spec.data.key, spec.data.event_time) == ("multiclass", ["sample_id"], "tasted_on")
    assert spec.data.personal == ["grower_name"]
    assert spec.data.columns["alcohol"] == "number"
    assert spec.data.columns["tasted_on"] == "date"
    assert spec.schedule.start == dt.date(2024, 3, 1)
    checked = CliRunner().invoke(app, ["check", "wine"])
    assert checked.exit_code == 0, checked.output
    assert "landed rows" in checked.output
    publishes(spec, "2024-03-01", "2024-03-12", 178)
    trained = steps.run("train", spec, as_of="2024-03-12", reason="first")
    assert trained["status"] == "trained"
    steps.run("promote", spec, as_of="2024-03-12", actor="test")
    scored = steps.run("score", spec, start="2024-03-12")
    assert scored["status"] in ("scored", "no champion")


def test_personal_data_reaches_no_file_and_no_output(house: Path, wine: Path, tmp_path: Path) -> None:
    done = new("wine", "-s", wine, "--yes")
    texts = [p.read_text("utf-8") for p in (tmp_path / "models" / "wine").iterdir()]
    assert len(texts) == 4
    assert not any("Grower 1" in text for text in (*texts, done.output))
    assert '"grower_name": personal data' in catalog.load("wine").sql


def test_a_person_is_asked(house: Path, wine: Path, tmp_path: Path) -> None:
    answers = (
        "\n".join(
            [str(wine), "", "", "nonsense", "cultivar", "", "n", "cellar", "Which cultivar is it?", "y"]
        )
        + "\n"
    )
    done = new("wine", answers=answers)
    assert done.exit_code == 0, done.output
    for question in ("Sample file", "Event time", "Key", "Label", "'nonsense' does not fit", "Task", "Owner",
                     "Is grower_name personal data?", "Copy the sample"):  # fmt: skip
        assert question in done.output
    spec = catalog.load("wine")
    assert (spec.owner, spec.description, spec.data.personal) == ("cellar", "Which cultivar is it?", [])
    assert (house / "landing" / "wine" / "2024-03-01.csv").is_file()


def test_the_suite_is_great_expectations_own(house: Path, wine: Path) -> None:
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


def table(n: int = 60, days: int = 3, **more: Any) -> pa.Table:
    start = dt.datetime(2024, 1, 1, 12)
    columns: dict[str, Any] = {
        "order_id": [f"o-{i}" for i in range(n)],
        "ordered_at": [start + dt.timedelta(days=i % days, minutes=i) for i in range(n)],
        "amount": [i / 7 for i in range(n)],
        "shop": ["north", "south", "east"] * (n // 3),
    }
    return pa.table(columns | more)


def write(path: Path, rows: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)
    return path


@pytest.mark.parametrize(
    ("values", "task", "expression", "of_its_own"),
    [
        (["yes", "no"], "binary", "\"y\" = 'yes'", False),
        (["it's", "not"], "binary", "\"y\" = 'not'", False),
        ([1, 2], "binary", '"y" = 1', False),
        ([0, 1], "binary", "y", True),
        ([True, False], "binary", "y", True),
        (["a", "b", "c"], "multiclass", "y", True),
        ([3, 4, 5], "multiclass", "y", True),
        ([0.5, 1.5, 9.25, 7.125], "regression", "y", True),
    ],
)
def test_task_is_told_from_the_label(
    house: Path, tmp_path: Path, values: list[Any], task: str, expression: str, of_its_own: bool
) -> None:
    path = write(tmp_path / "orders.parquet", table(y=(values * 60)[:60]))
    spec = make("orders", [path], label="y")
    assert (spec.task, spec.label.expression) == (task, expression)
    assert (spec.label.source is None) is of_its_own
    assert ("y" in spec.data.columns) is of_its_own
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_ranking(house: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.parquet", table(query=[i // 6 for i in range(60)], grade=[i % 4 for i in range(60)])
    )
    with pytest.raises(PerennialError, match="--group"):
        make("search", [path], label="grade", task="ranking")
    spec = make("search", [path], label="grade", task="ranking", group="query")
    assert spec.group == "query"
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_dates_become_hour_and_weekday(house: Path, tmp_path: Path) -> None:
    spec = make("orders", [write(tmp_path / "o.parquet", table(y=[0, 1] * 30))], label="y")
    assert "hour(ordered_at) AS ordered_at_hour" in spec.sql
    assert "dayofweek(ordered_at) AS ordered_at_weekday" in spec.sql
    assert spec.features.categorical == ["shop"]


def test_what_is_no_feature_is_left_out_and_said(house: Path, tmp_path: Path) -> None:
    rows = table(
        600,
        y=[0, 1] * 300,
        note=[f"a long remark about order number {i}, as people write them" for i in range(600)],
        token=[f"t{i}" for i in range(600)],
        currency=["EUR"] * 600,
        row_number=list(range(600)),
        nothing=pa.nulls(600),
        items=[[1, 2]] * 600,
        email=[f"{i}@example.com" for i in range(600)],
    )
    spec = make("orders", [write(tmp_path / "o.parquet", rows)], label="y", key=["order_id"])
    for column, why in (
        ("note", "free text"), ("token", "600 different values"), ("currency", "the same in every row"),
        ("row_number", "numbers the rows"), ("nothing", "it has no value"), ("items", "columns of type list"),
        ("email", "personal data"), ("y", "the label"),
    ):  # fmt: skip
        assert f'--   "{column}": {why}' in spec.sql
    assert {"nothing", "items"} & set(spec.data.columns) == set()
    publishes(spec, "2024-01-01", "2024-01-03", 600)


def test_text_cells_get_types_that_the_data_step_can_read(house: Path, tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    lines = ["id,when,zip,count,share,flag,code,late"]
    lines += [f"k{i},2024-01-0{1 + i % 2} 08:{i:02}:00,0{i:04},{i},{'NA' if i == 3 else i / 3},"
              f"{'true' if i % 2 else 'false'},{'x' if i == 55 else i},{i % 2}" for i in range(60)]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    spec = make("orders", [path], label="late", personal=[])
    assert dict(spec.data.columns) == {
        "id": "string", "when": "timestamp", "zip": "string", "count": "integer", "share": "number", "flag": "boolean",
        "code": "string", "late": "integer",
    }  # fmt: skip
    publishes(spec, "2024-01-01", "2024-01-02", 60)


def test_gzip_and_infinities(house: Path, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "orders-2024-01-01.csv.gz"
    text = "id,at,x,late\n" + "".join(
        f"k{i},2024-01-01T08:00:00Z,{i if i else 'inf'},{i % 2}\n" for i in range(40)
    )
    path.write_bytes(gzip.compress(text.encode()))
    spec = make("orders", [path], label="late")
    assert spec.data.source == "{landing}/orders/orders-{date}.csv.gz"
    assert "Infinity" not in spec.suite


@pytest.mark.parametrize(
    ("names", "template"),
    [
        (["a-2024-01-01.parquet", "a-2024-01-02.parquet"], "a-{date}.parquet"),
        (["a_20240101.parquet", "a_20240102.parquet"], "a_{year}{month}{day}.parquet"),
        (["a_2024_01_01_x.parquet", "a_2024_01_02_x.parquet"], "a_{year}_{month}_{day}_x.parquet"),
    ],
)
def test_template_is_told_from_file_names(
    house: Path, tmp_path: Path, names: list[str], template: str
) -> None:
    day = table(y=[0, 1] * 30, days=1)
    paths = [write(tmp_path / name, day) for name in names]
    spec = make("orders", paths, label="y")
    assert spec.data.source == f"{{landing}}/orders/{template}"
    assert (house / "landing" / "orders" / names[1]).is_file()
    publishes(spec, "2024-01-01", "2024-01-01", 60)


def test_a_sample_that_has_landed_stays_where_it_is(house: Path) -> None:
    landing = house / "landing" / "feed"
    paths = [
        write(landing / f"year=2024/month=01/day=0{d}" / "part.parquet", table(y=[0, 1] * 30, days=1))
        for d in (1, 2)
    ]
    spec = make("orders", paths, label="y")
    assert spec.data.source == "{landing}/feed/year={year}/month={month}/day={day}/part.parquet"
    assert sorted(p for p in (house / "landing").rglob("*.parquet")) == sorted(paths)


def test_no_land_leaves_the_landing_area_alone(house: Path, wine: Path) -> None:
    done = new("wine", "-s", wine, "--yes", "--no-land")
    assert "the sample was not copied" in done.output
    assert not (house / "landing").exists()


HOSTILE = [
    '"quoted"', "it's", "a; DROP TABLE rows --", "<script>alert(1)</script>", "=cmd()", "select", "at", "yes", "{date}",
    "ünï cödé", "a.b", "x:y # z", "tab or so",
]  # fmt: skip


def test_hostile_names_and_values(house: Path, tmp_path: Path) -> None:
    values = [
        "=cmd|' /C calc'!A0",
        "<script>alert(1)</script>",
        'it\'s "it"\n- no',
        "'; DROP TABLE rows; --",
    ] * 15
    more = dict.fromkeys(HOSTILE, values)
    path = write(tmp_path / "orders.parquet", table(y=[0, 1] * 30, **more))
    spec = make("orders", [path], label="y", personal=[])
    assert set(HOSTILE) <= set(spec.data.columns)
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_a_column_name_with_a_line_break_is_refused(house: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "orders.parquet", table(y=[0, 1] * 30, **{"x\nFROM secrets --": [1, 2] * 30}))
    with pytest.raises(PerennialError, match="should match pattern"):
        make("orders", [path], label="y")
    assert not (tmp_path / "models" / "orders").exists()


def test_two_columns_name_a_row(house: Path, tmp_path: Path) -> None:
    rows = table(y=[0, 1] * 30).drop_columns(["order_id", "shop"])
    rows = rows.append_column("line", pa.array([i % 20 for i in range(60)]))
    rows = rows.append_column("basket", pa.array([f"b{i // 20}" for i in range(60)]))
    rows = rows.drop_columns(["ordered_at"]).append_column(
        "on", pa.array([dt.date(2024, 1, 1 + i % 3) for i in range(60)])
    )
    spec = make("orders", [write(tmp_path / "orders.parquet", rows)], label="y")
    assert sorted(spec.data.key) == ["basket", "line"]
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_nothing_is_overwritten(house: Path, wine: Path, tmp_path: Path) -> None:
    make("wine", [wine], label="cultivar")
    before = {p.name: p.read_bytes() for p in (tmp_path / "models" / "wine").iterdir()}
    for name in ("wine", "flight_late", "flight_context"):
        done = new(name, "-s", wine, "--yes")
        assert done.exit_code == 1
        assert "is there already" in str(done.exception)
    assert {p.name: p.read_bytes() for p in (tmp_path / "models" / "wine").iterdir()} == before


def test_landed_files_are_not_overwritten(house: Path, wine: Path, tmp_path: Path) -> None:
    other = house / "landing" / "wine" / "2024-03-02.csv"
    other.parent.mkdir(parents=True)
    other.write_text("something else")
    with pytest.raises(PerennialError, match="is there already, with other content"):
        make("wine", [wine], label="cultivar")
    assert other.read_text() == "something else"
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("place", ["write", "check", "land", "rename"])
def test_nothing_half_written_is_left(
    house: Path, wine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"write": (scaffold, "readme_text"), "check": (preflight, "check_model"), "land": (samples, "copy"),
              "rename": (Path, "rename")}[place]  # fmt: skip
    monkeypatch.setattr(*target, fail)
    with pytest.raises((OSError, PerennialError)):
        interview.make("wine", [wine], Asked(label="cultivar"), ask=False)
    assert list((tmp_path / "models").iterdir()) == []
    assert "wine" not in catalog.find()


@pytest.mark.parametrize("name", ["", "Wine", "../wine", "wine/red", "1wine", "wine red", "w" * 64])
def test_names_that_are_none(house: Path, wine: Path, name: str) -> None:
    with pytest.raises(PerennialError, match="cannot be a model's name"):
        make(name, [wine])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": "nope"}, "--label is 'nope'"),
        ({"label": "sample_id", "key": ["sample_id"]}, "names the row or its time"),
        ({"label": "cultivar", "task": "regression"}, "is a string, not a number"),
        ({"label": "cultivar", "task": "ranking", "group": "ash"}, "is not a grade"),
        ({"label": "alcohol", "task": "multiclass"}, "is a number, not a class"),
        ({"label": "cultivar", "task": "binary"}, "has 3 values"),
        ({"label": "cultivar", "task": "binary", "positive": "z"}, "--positive is 'z'"),
        ({"label": "cultivar", "task": "guess"}, "--task is 'guess'"),
        ({"label": "cultivar", "key": ["ash"]}, "does not name a row"),
        ({"label": "cultivar", "key": ["nope"]}, "the sample has no column 'nope'"),
        ({"label": "cultivar", "event_time": "ash"}, "--event-time is 'ash'"),
        ({"label": "cultivar", "personal": ["nope"]}, "--personal names 'nope'"),
    ],
)
def test_answers_that_do_not_fit(house: Path, wine: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(PerennialError, match=message):
        make("wine", [wine], **asked)


def test_samples_that_cannot_be_used(house: Path, tmp_path: Path) -> None:
    def refused(content: bytes, name: str, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(PerennialError, match=message):
            make("wine", [path])

    refused(b"", "a.parquet", "zero bytes")
    refused(b"", "a.csv", "zero bytes")
    refused(b"PAR1 is not all", "b.parquet", "is not a parquet file")
    refused(b"id,at,y\n", "c.csv", "no rows")
    refused(b"id,at,id\n1,2024-01-01,2\n", "d.csv", "names a column twice")
    refused(b"id,y\n1,2\n2,3\n", "e.csv", "no column of the sample is a date")
    refused(b"id,at,y\n1,2024-01-01,0\n1,2024-01-01,0\n", "f.csv", "name a row")
    refused(b"x", "g.xlsx", "is not .parquet, .csv")
    with pytest.raises(PerennialError, match="is not there"):
        make("wine", [tmp_path / "missing.csv"])
    with pytest.raises(PerennialError, match="no sample file"):
        make("wine", [])
    good = table(y=[0, 1] * 30)
    with pytest.raises(PerennialError, match="not named alike"):
        make(
            "wine",
            [write(tmp_path / "a-2024-01-01.parquet", good), write(tmp_path / "b-2024-01-02.parquet", good)],
        )
    with pytest.raises(PerennialError, match="of the same date"):
        make(
            "wine",
            [
                write(tmp_path / "1" / "a-2024-01-01.parquet", good),
                write(tmp_path / "2" / "a-2024-01-01.parquet", good),
            ],
        )
