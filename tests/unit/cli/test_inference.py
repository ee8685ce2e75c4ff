"""What a sample suggests: key, label, task, personal data; and models of samples of many kinds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from perennial.cli.new import inference, partitioning, wizard
from perennial.cli.new.samples import event_times, sample_reader
from perennial.cli.new.samples.sample_reader import Sample
from perennial.cli.new.wizard import CreatedModel, GivenAnswers
from perennial.core.errors import DataError, SpecError
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from support.scaffolds import write

pytestmark = pytest.mark.usefixtures("without_data_profile")

N = 60


@contextmanager
def divided(
    folder: Path, columns: dict[str, Any]
) -> Iterator[tuple[Sample, partitioning.Partitions, list[str]]]:
    """A sample that is divided as the wizard does, and its times."""
    path = write(folder / "a.parquet", pa.table(columns))
    with sample_reader.open_sample([path], str(folder / "landing")) as sample:
        sources = event_times.time_sources(sample)
        partitions = partitioning.divide(sample, source=sources[0] if sources else None)
        yield sample, partitions, [s.column for s in sources if s.column]


def new(folder: Path, columns: dict[str, Any], **answers: Any) -> CreatedModel:
    path = write(folder / "a.parquet", pa.table(columns))
    return wizard.create_model_folder("m", [path], GivenAnswers(land=True, **answers), ask=False)


def published(created: CreatedModel) -> tuple[ModelSpec, dict[str, Any]]:
    spec = catalog.load_model_by_name("m")
    return spec, dispatch.run("data", spec, start=created.first, end=created.last)


def dates(n: int = N, each: int = 1) -> list[dt.date]:
    return [dt.date(2024, 1, 1) + dt.timedelta(days=i // each) for i in range(n)]


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"id": range(N)}, ["id"]),
        ({"customer": [f"c{i}" for i in range(N)]}, ["customer"]),
        ({"Order No": [f"{i}" for i in range(N)], "name": ["x", "y"] * 30}, ["Order No"]),
        ({"index": range(1, N + 1)}, ["index"]),
        # measurements are no key, even if no two are equal
        ({"population": [7 * i * i for i in range(N)], "height": [i / 7 for i in range(N)]}, []),
        ({"sex": ["m", "f"] * 30, "age": [20 + i % 30 for i in range(N)]}, []),
        # an id that comes back every day
        ({"on": dates(each=20), "symbol_id": [f"s{i % 20}" for i in range(N)]}, ["symbol_id"]),
        ({"on": dates(each=20), "sensor": [f"s{i % 20}" for i in range(N)], "line": [1] * N}, []),
        ({"on": dates(each=6), "sensor": [i % 6 for i in range(N)]}, ["sensor"]),
        ({"on": dates(each=6), "sensor": [f"s{i % 6}" for i in range(N)]}, ["sensor"]),
        # one row a day
        ({"on": dates(), "x": range(N)}, ["on"]),
        ({"at": [dt.datetime(2024, 1, 1) + dt.timedelta(hours=i) for i in range(N)]}, ["at"]),
        ({"state": [f"s{i % 6}" for i in range(N)], "year": [2000 + i // 6 for i in range(N)]}, ["state", "year"]),
        ({"firm": [f"f{i % 6}" for i in range(N)], "year": [2000 + i // 6 for i in range(N)], "x": [1.5] * N},
         ["firm", "year"]),
        ({"store": ["a", "b", "c"] * 20, "dept": [f"d{i // 3 % 4}" for i in range(N)],
          "week": [i // 12 for i in range(N)]}, ["store", "dept", "week"]),
    ],
)  # fmt: skip
def test_the_key(empty_home: Path, tmp_path: Path, columns: dict[str, Any], key: list[str]) -> None:
    with divided(tmp_path, {"y": [0, 1] * 30, **{k: list(v) for k, v in columns.items()}}) as (
        sample,
        by,
        times,
    ):
        assert sorted(inference.suggest_key(sample, by, ["y"], times)) == sorted(key)


def test_the_label_is_never_in_the_key(empty_home: Path, tmp_path: Path) -> None:
    with divided(tmp_path, {"id": list(range(N)), "x": [0, 1] * 30}) as (sample, by, times):
        assert inference.suggest_key(sample, by, ["id"], times) == []


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"a": [0, 1] * 30, "b": [0.5, 1] * 30}, "b"),
        ({"Churned?": [0, 1] * 30, "b": [0.5, 1] * 30}, "Churned?"),
        ({"isFraud": [0, 1] * 30, "b": [0.5, 1] * 30}, "isFraud"),
        ({"default": [0, 1] * 30, "b": [0.5, 1] * 30}, "default"),
        ({"a": [0, 1] * 30, "constant": [1] * N, "on": dates(), "id": list(range(N))}, "a"),
    ],
)
def test_the_label(empty_home: Path, tmp_path: Path, columns: dict[str, Any], label: str) -> None:
    with divided(tmp_path, columns) as (sample, _, times):
        assert inference.suggest_label(sample, [], times) == label


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Water flow", "Water flow"), ("water FLOW", "Water flow"), (" größe ", "Größe"), ("a", "a"), ("B", None),
        ("c", None),
    ],
)  # fmt: skip
def test_a_column_is_named_in_any_case(given: str, found: str | None) -> None:
    columns = ["Water flow", "Größe", "a", "A", "b ", "B "]
    if found:
        assert inference.find_column(given, columns, "--label") == found
    else:
        with pytest.raises(SpecError, match=f"--label is '{given}'"):
            inference.find_column(given, columns, "--label")


@pytest.mark.parametrize(
    ("name", "values", "task"),
    [
        ("y", [0, 1], "binary"), ("y", ["yes", "no"], "binary"), ("y", [1, 2], "binary"),
        ("y", [0.0, 1.0, None], "binary"), ("y", ["a", "b", "c"], "multiclass"), ("y", [0, 1, 2], "multiclass"),
        ("species_code", [3, 7, 12], "multiclass"), ("y", [0.0, 1.0, 2.0, None], "multiclass"),
        ("quality", [3, 4, 5, 6], "regression"), ("n_visits", [0, 1, 2], "regression"),
        ("y", [4, 6, 8], "regression"), ("y", list(range(30)), "regression"), ("y", [0.5, 1.5, 2.5], "regression"),
    ],
)  # fmt: skip
def test_the_task(empty_home: Path, tmp_path: Path, name: str, values: list[Any], task: str) -> None:
    with divided(tmp_path, {name: (values * N)[: N * 2], "x": list(range(N * 2))}) as (sample, _, _times):
        suggested, remark = inference.suggest_task(sample.columns[name], sample.row_count)
        assert suggested == task
        whole = all(not isinstance(v, str) and v == int(v) for v in values if v is not None)
        assert bool(remark) == (whole and 2 < len({*values} - {None}) < 20)


@pytest.mark.parametrize(
    ("name", "values", "evident", "likely"),
    [
        ("contact", [f"m{i}@example.org" for i in range(N)], "e-mail addresses", True),
        ("contact", ["a@example.org", "b@example.org"] * 30, "e-mail addresses", True),
        ("x", [f"+49 170 12345{i:02}" for i in range(N)], "telephone numbers", True),
        ("x", [f"(030) 12345{i:02}" for i in range(N)], "telephone numbers", True),
        ("x", [f"DE89 3704 0044 0532 0130 {i:02}" for i in range(N)], "account numbers", True),
        ("x", [f"192.168.0.{i}" for i in range(N)], "IP addresses", True),
        ("x", [f"078-05-11{i:02}" for i in range(N)], "social security numbers", True),
        ("surname", [f"Müller {i}" for i in range(N)], "", True),
        ("customerName", [f"Müller {i}" for i in range(N)], "", True),
        # by their names only
        ("sent_email", [0, 1] * 30, "", False),
        ("gender", ["m", "f"] * 30, "", False),
        ("latitude", [i / 7 for i in range(N)], "", False),
        ("zip", list(range(10_000, 10_000 + N)), "", False),
        # neither
        ("code", [f"{i:04}-{i}" for i in range(N)], "", False),
        ("date_text", [f"2024-01-{i % 28 + 1:02}" for i in range(N)], "", False),
        ("version", [f"1.2.{i}" for i in range(N)], "", False),
        ("product", ["AB12 Widget", "CD34 Gadget"] * 30, "", False),
    ],
)  # fmt: skip
def test_personal_data(
    empty_home: Path, tmp_path: Path, name: str, values: list[Any], evident: str, likely: bool
) -> None:
    with divided(tmp_path, {name: values, "y": [0, 1] * 30}) as (sample, _, _times):
        assert sample.columns[name].personal == evident
        assert inference.looks_personal(sample.columns[name], sample.row_count) == likely


def test_no_column_is_dropped_because_of_its_name(empty_home: Path, tmp_path: Path) -> None:
    columns = {
        "sent_email": [0, 1, 1] * 20, "gender": ["m", "f"] * 30, "y": [0, 1] * 30,
        "contact": [f"m{i}@example.org" for i in range(N)],
    }  # fmt: skip
    created = new(tmp_path, columns)
    spec = catalog.load_model_by_name("m")
    assert spec.data.personal == ["contact"]
    assert "sent_email" in spec.sql and spec.features.categorical == ["gender"]
    text = "\n".join(created.remarks)
    assert "contact is declared as personal data (looks like e-mail addresses), and is no feature" in text
    for name in ("sent_email", "gender"):
        assert f"{name} may be personal data by its name, and is used" in text


def test_a_table_without_key_and_time(empty_home: Path, tmp_path: Path) -> None:
    columns = {"x": [i % 7 / 7 for i in range(N)], "row": ["a", "b", "c"] * 20, "y": [0, 1] * 30}
    created = new(tmp_path, columns)
    spec, result = published(created)
    assert (spec.data.key, spec.data.row_number, spec.data.event_time) == (["row_"], "row_", None)
    assert (result["rows_out"], result["labels"], result["quarantined"]) == (N, N, 0)
    text = "\n".join(created.remarks)
    assert "rows without dates were divided at random into 20 partitions" in text
    assert "deliver one file a day with the rows of that day" in text
    assert "no column identifies a row: the key is row_" in text
    assert "18 rows repeat another one in all columns: all are kept" in text


@pytest.mark.parametrize(
    ("step", "remark"),
    [
        (
            2,
            "a range has at most 3,660 days, and the sample's dates span more: a partition is one week that begins on",
        ),
        (7, "by its dates, the feed is one of weeks: a partition is one week that begins on"),
    ],
)
def test_why_a_partition_is_a_week_is_told(empty_home: Path, tmp_path: Path, step: int, remark: str) -> None:
    n = 3661 // step + 1
    days = [dt.date(2010, 1, 4) + dt.timedelta(days=i * step) for i in range(n)]
    path = write(
        tmp_path / "a.parquet", pa.table({"day": days, "x": range(n), "y": [0, 1] * (n // 2) + [0] * (n % 2)})
    )
    answers = GivenAnswers(land=False, label="y")
    created = wizard.create_model_folder("m", [path], answers, ask=False, dry_run=True)
    assert remark in "\n".join(created.remarks)


@pytest.mark.parametrize("width", [2, 250])
def test_rows_that_repeat_another_one_are_counted_in_all_columns(tmp_path: Path, width: int) -> None:
    first: dict[str, Any] = {f"c{i}": [1, None] * 30 for i in range(width)}
    undated = first | {"last": [i % 40 // 2 for i in range(N)]}
    with divided(tmp_path, undated) as (sample, _, _times):
        # 40 rows differ in pairs, and the last 20 repeat rows of them
        assert inference.duplicate_rows(sample, dated=False) == 20
    with divided(tmp_path, undated | {"day": dates(each=30)}) as (sample, _, _times):
        assert inference.duplicate_rows(sample, dated=True) == 0
    with divided(tmp_path, undated | {"id": range(N)}) as (sample, _, _times):
        assert inference.duplicate_rows(sample, dated=False) == 0


@pytest.mark.parametrize(
    ("texts", "amount"),
    [
        ([f"${i},{i + 100}.50" for i in range(1, N + 1)], 1101.5),
        ([f"{i}.5 km" for i in range(1, N)] + ["60 km"], 1.5),
        ([f"{i} %" for i in range(1, N + 1)], 1.0),
        ([f"No {i}" for i in range(1, N + 1)], None),
        ([f"{i:04}" for i in range(1, N + 1)], None),
        ([f"${i}.00" for i in range(1, N)] + ["€9.00"], None),
        (["$1.50", "$2.50", "$3.50"] * 20, None),
    ],
)
def test_amounts_in_texts_are_features_and_no_key(
    empty_home: Path, tmp_path: Path, texts: list[str], amount: float | None
) -> None:
    created = new(tmp_path, {"x": [i % 7 / 7 for i in range(N)], "Price": texts, "y": [0, 1] * 30})
    spec, result = published(created)
    assert result["rows_out"] == N
    assert ("Price_amount" in spec.sql) == (amount is not None)
    if amount is not None:
        assert spec.data.key == ["row"] and "Price" not in spec.features.categorical
        (sql,) = [line for line in spec.sql.splitlines() if "Price_amount" in line]
        con = duckdb.connect()
        con.register("rows", pa.table({"Price": texts}))
        values = con.sql(f"SELECT {sql.strip().rstrip(',')} FROM rows").fetchall()
        assert values[0] == (amount,) and all(value is not None for (value,) in values)
    elif len({*texts}) == N and "€9.00" not in texts:
        assert spec.data.key == ["Price"]


def test_columns_of_a_key_are_features(empty_home: Path, tmp_path: Path) -> None:
    columns = {
        "firm": [f"f{i % 6}" for i in range(N)], "year": [2000 + i // 6 for i in range(N)],
        "value": [i % 6 + i / 99 for i in range(N)],
    }  # fmt: skip
    spec, result = published(new(tmp_path, columns, label="VALUE"))
    assert result["rows_out"] == N
    assert sorted(spec.data.key) == ["firm", "year"]
    assert "firm AS firm_feature" in spec.sql and "year AS year_feature" in spec.sql
    assert spec.features.categorical == ["firm_feature"]
    assert spec.label.expression == "value"


LABELS: dict[str, Any] = {
    "default": ["yes", "no"], "Water flow": [0.5, 1.25, 3.0], "price (EUR)": [1.5, 2.5, 4.5, None],
    "Churned?": ["Y", "N"],
    "[x]": ["a", "b", "c"], "größe": [1, 2], "ORDER": [">50K", "<=50K"], "it's": [True, False, None],
    'say "hi"': ["$1,200", "$800.50", "$3", "$4,000,000"] + [f"${i}" for i in range(30)],
    "group": [0.0, 1.0, 2.0, None],
}  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_any_column_can_be_the_label(empty_home: Path, tmp_path: Path, label: str) -> None:
    n = 180
    columns = {name: (values * n)[:n] for name, values in LABELS.items()} | {
        "select": [i % 9 for i in range(n)]
    }
    task = "multiclass" if label == "group" else None
    spec, result = published(new(tmp_path, columns, label=label.upper(), task=task))
    missing = columns[label].count(None)
    assert (result["rows_out"], result["labels"], result["labels_quarantined"]) == (n, n, 0)
    stored = dispatch.run("data", spec, start=spec.schedule.start.isoformat())
    assert stored["status"] == "unchanged"
    expected = {
        "default": "binary", "Water flow": "regression", "price (EUR)": "regression", "Churned?": "binary",
        "[x]": "multiclass", "größe": "binary", "ORDER": "binary", "it's": "binary", 'say "hi"': "regression",
        "group": "multiclass",
    }[label]  # fmt: skip
    assert spec.task == expected
    assert f'"{label}"' not in spec.sql.split("FROM rows")[0].replace('""', '"')
    assert missing in (0, 60, 45)


def test_a_label_that_cannot_be_learnt_is_refused(empty_home: Path, tmp_path: Path) -> None:
    columns = {
        "one": ["a"] * 1200, "or_none": ["a", None] * 600, "all": [f"t{i}" for i in range(1200)],
        "on": [dt.date(2024, 1, 1), dt.date(2024, 1, 2)] * 600, "x": list(range(600)) * 2,
    }  # fmt: skip
    for label, message in (
        ("one", "the label 'one' has the same value in each row: there is nothing to predict"),
        ("or_none", "the label 'or_none' has one value, and rows without a value"),
        ("all", "has 1,200 different values; at most 1,000 classes are supported"),
        ("on", "the label 'on' is a date"),
    ):
        with pytest.raises((DataError, SpecError), match=message):
            new(tmp_path, columns, label=label)


def test_remarks_about_a_label(empty_home: Path, tmp_path: Path) -> None:
    columns = {"x": [i % 7 for i in range(N)], "y": ["a"] * 30 + ["b"] * 20 + ["rare"] * 3 + [None] * 7}
    text = "\n".join(new(tmp_path, columns).remarks)
    assert "7 of 60 rows have no y: training leaves them out" in text
    assert "1 of the 3 values of y occur in less than 10 rows each" in text


def test_infinite_numbers_do_not_stop_small_partitions(empty_home: Path, tmp_path: Path) -> None:
    columns = {"x": [float("inf") if i == 7 else i / 7 for i in range(N)], "y": [0, 1] * 30}
    created = new(tmp_path, columns)
    spec, result = published(created)
    assert (result["rows_out"], result["quarantined"], spec.data.quarantine_limit) == (N - 1, 1, 0.4)
    assert (
        "1 rows have an infinite number: they go to quarantine, so quarantine_limit is 0.4" in created.remarks
    )


@pytest.mark.parametrize(("name", "values"), [(" y ", ["a", "b", "c"]), ("y", [0.0, 1.0, None])])
def test_labels_that_yaml_or_the_data_step_would_change(
    empty_home: Path, tmp_path: Path, name: str, values: list[Any]
) -> None:
    spec, result = published(new(tmp_path, {"x": [i % 7 for i in range(N)], name: values * 20}, label="y"))
    assert (result["labels"], result["labels_quarantined"]) == (N, 0)
    assert spec.label.source == spec.data.source


def test_dates_in_the_future_are_no_partitions(empty_home: Path, tmp_path: Path) -> None:
    year = dt.datetime.now(dt.UTC).year + 1
    times = [dt.date(year, 1, 1) + dt.timedelta(days=i) for i in range(N)]
    columns = {"on": times, "x": [i % 7 for i in range(N)], "y": [0, 1] * 30}
    created = new(tmp_path, columns)
    spec, result = published(created)
    assert (spec.data.event_time, result["rows_out"], result["quarantined"]) == (None, N, 0)
    assert any("divided in their order" in remark for remark in created.remarks)


def test_a_sample_of_one_row_is_refused(empty_home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the sample has 1 row"):
        new(tmp_path, {"x": [1], "y": [2]})
