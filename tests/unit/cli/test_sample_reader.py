"""What `perennial new` tells from a sample file, and the samples that it refuses."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.cli.new.samples.sample_reader import open_sample
from perennial.core.errors import PerennialError, StorageError
from support import canary
from support.scaffolds import make, publishes, table, write


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
    empty_home: Path, tmp_path: Path, values: list[Any], task: str, expression: str, of_its_own: bool
) -> None:
    path = write(tmp_path / "orders.parquet", table(y=(values * 60)[:60]))
    spec = make("orders", [path], label="y")
    assert (spec.task, spec.label.expression) == (task, expression)
    assert spec.features.category_order == "search"
    assert (spec.label.source is None) is of_its_own
    assert ("y" in spec.data.columns) is of_its_own
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_ranking(empty_home: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.parquet", table(query=[i // 6 for i in range(60)], grade=[i % 4 for i in range(60)])
    )
    with pytest.raises(PerennialError, match="--group"):
        make("search", [path], label="grade", task="ranking")
    spec = make("search", [path], label="grade", task="ranking", group="query")
    assert spec.group == "query"
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_dates_become_hour_and_weekday(empty_home: Path, tmp_path: Path) -> None:
    moments = [dt.datetime(2024, 1, 1 + i % 3, i % 24) for i in range(60)]
    spec = make(
        "orders", [write(tmp_path / "o.parquet", table(y=[0, 1] * 30, ordered_at=moments))], label="y"
    )
    assert "hour(ordered_at) AS ordered_at_hour" in spec.sql
    assert "month" not in spec.sql
    assert "dayofweek(ordered_at) AS ordered_at_weekday" in spec.sql
    assert spec.features.categorical == ["shop"]


def test_what_is_no_feature_is_left_out_and_said(empty_home: Path, tmp_path: Path) -> None:
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
        ("note", "free text"), ("token", "another value in each row"), ("currency", "constant in the sample"),
        ("row_number", "another value in each row"), ("nothing", "it has no value"), ("items", "columns of type list"),
        ("email", "personal data"), ("y", "the label"),
    ):  # fmt: skip
        assert f'--   "{column}": {why}' in spec.sql
    assert {"nothing", "items"} & set(spec.data.columns) == set()
    publishes(spec, "2024-01-01", "2024-01-03", 600)


def test_text_cells_get_types_that_the_data_step_can_read(empty_home: Path, tmp_path: Path) -> None:
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


def test_gzip_and_infinities(empty_home: Path, tmp_path: Path) -> None:
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
    empty_home: Path, tmp_path: Path, names: list[str], template: str
) -> None:
    day = table(y=[0, 1] * 30, days=1)
    paths = [write(tmp_path / name, day) for name in names]
    spec = make("orders", paths, label="y")
    assert spec.data.source == f"{{landing}}/orders/{template}"
    assert (empty_home / "landing" / "orders" / names[1]).is_file()
    publishes(spec, "2024-01-01", "2024-01-01", 60)


def test_a_sample_that_has_landed_stays_where_it_is(empty_home: Path) -> None:
    landing = empty_home / "landing" / "feed"
    paths = [
        write(landing / f"year=2024/month=01/day=0{d}" / "part.parquet", table(y=[0, 1] * 30, days=1))
        for d in (1, 2)
    ]
    spec = make("orders", paths, label="y")
    assert spec.data.source == "{landing}/feed/year={year}/month={month}/day={day}/part.parquet"
    assert sorted(p for p in (empty_home / "landing").rglob("*.parquet")) == sorted(paths)


HOSTILE = [
    '"quoted"', "it's", "a; DROP TABLE rows --", "<script>alert(1)</script>", "=cmd()", "select", "at", "yes", "{date}",
    "ünï cödé", "a.b", "x:y # z", "tab or so", "label", "run_id", "filename", "file_index", "file_row_number",
    " ", "rows",
]  # fmt: skip


def test_hostile_names_and_values(empty_home: Path, tmp_path: Path) -> None:
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


def test_columns_that_no_model_can_have_are_left_out(empty_home: Path, tmp_path: Path) -> None:
    names = ["x\nFROM secrets --", "__day", "Partition_Date", "twice", "Twice", "n" * 129]
    rows = table(y=[0, 1] * 30, **{name: [1, 2] * 30 for name in names})
    spec = make("orders", [write(tmp_path / "orders.parquet", rows)], label="y")
    assert not set(names) & set(spec.data.columns)
    assert r'--   "x\nFROM secrets --": a column of a model cannot have this name' in spec.sql
    assert '--   "twice": another column\'s name differs from it only in case' in spec.sql
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_features_get_names_that_xgboost_accepts(empty_home: Path, tmp_path: Path) -> None:
    columns = {
        "temp [°C]": [1, 2] * 30,
        "x<5": ["a", "b"] * 30,
        "prediction": [2, 1] * 30,
        "temp (°C)": [3, 4] * 30,
    }
    rows = table(y=[0, 1] * 30, **columns)
    spec = make("orders", [write(tmp_path / "orders.parquet", rows)], label="y")
    assert set(columns) <= set(spec.data.columns)
    for line in (
        '"temp [°C]" AS "temp (°C)_"',
        '"x<5" AS x_5',
        "prediction AS prediction_column",
        '"temp (°C)"',
    ):
        assert f"    {line}" in spec.sql
    assert spec.features.categorical == ["shop", "x_5"]


def test_two_columns_name_a_row(empty_home: Path, tmp_path: Path) -> None:
    rows = table(y=[0, 1] * 30).drop_columns(["order_id", "shop"])
    rows = rows.append_column("line", pa.array([i % 20 for i in range(60)]))
    rows = rows.append_column("basket", pa.array([f"b{i // 20}" for i in range(60)]))
    rows = rows.drop_columns(["ordered_at"]).append_column(
        "on", pa.array([dt.date(2024, 1, 1 + i % 3) for i in range(60)])
    )
    spec = make("orders", [write(tmp_path / "orders.parquet", rows)], label="y")
    assert sorted(spec.data.key) == ["basket", "line"]
    publishes(spec, "2024-01-01", "2024-01-03", 60)


def test_samples_that_cannot_be_used(empty_home: Path, tmp_path: Path) -> None:
    def refused(content: bytes, name: str, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(PerennialError, match=message):
            make("wine", [path])

    refused(b"", "a.parquet", "zero bytes")
    refused(b"", "a.csv", "zero bytes")
    refused(b"PAR1 is not all", "b.parquet", "is not a parquet file")
    refused(b"id,at,y\n", "c.csv", "has no rows")
    refused(
        b"id,y\n1,2\n2,3\n", "e.csv", "no column of the sample can be a feature: 'id': identifies the row"
    )
    refused(b"x", "g.doc", "is not .parquet, .csv")
    refused(b"x", "g.xlsx", "is not an Excel workbook with rows")
    with pytest.raises(PerennialError, match="does not exist"):
        make("wine", [tmp_path / "missing.csv"])
    with pytest.raises(PerennialError, match="no sample file"):
        make("wine", [])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f'id,mail\n1,"{canary.TEXT}\n'.encode()),
        ("a.csv", f"id,mail\n1,{canary.TEXT},{canary.NUMBER}\n2,b\n".encode()),
        ("a.csv", b"id,mail\n1," + canary.TEXT.encode("latin-1") + b"\n"),
        ("a.parquet", canary.TEXT.encode() * 9),
    ],
)
def test_no_value_of_a_sample_is_quoted(empty_home: Path, tmp_path: Path, name: str, content: bytes) -> None:
    """Which columns are personal is not known yet."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PerennialError) as raised:
        make("wine", [tmp_path / name])
    assert not canary.find(str(raised.value).encode())


@pytest.mark.parametrize("landed", ["orders/{day}.parquet", "orders/dt={day}", ""])
def test_a_folder_of_part_files_is_a_sample(empty_home: Path, tmp_path: Path, landed: str) -> None:
    """In the landing area, where it stays as it is, and elsewhere, from where it is copied as a file."""
    home = empty_home / "landing" if landed else tmp_path
    folders = []
    for day in ("2024-01-01", "2024-01-02"):
        folder = home / (landed or "feed/dt={day}").format(day=day)
        folder.mkdir(parents=True)
        rows = table(60, y=[0, 1] * 30)
        for i in (1, 0):
            write(folder / f"part-0000{i}-x.snappy.parquet", rows.slice(30 * i, 30))
        (folder / "_SUCCESS").touch()
        folders.append(folder)
    spec = make("orders", folders, label="y", land=not landed)
    ending = {"orders/{day}.parquet": "orders/{date}.parquet", "orders/dt={day}": "orders/dt={date}/"}
    assert spec.data.source == "{landing}/" + ending.get(landed, "orders/dt={date}.parquet")
    publishes(spec, "2024-01-01", "2024-01-02", 120)


def test_a_folder_that_is_no_sample(empty_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "2024-01-01.parquet"
    folder.mkdir()
    with pytest.raises(PerennialError, match="is not complete: the folder holds no files"):
        make("orders", [folder], label="y")
    (folder / "part-0.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PerennialError, match="holds text files"):
        make("orders", [folder], label="y")
    write(folder / "part-1.parquet", table(y=[0, 1] * 30))
    with pytest.raises(PerennialError, match="files of different formats"):
        make("orders", [folder], label="y")


def test_a_question_about_a_sample_that_needs_too_much_memory(empty_home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", pa.table({"x": [f"{i}" * 200 for i in range(3000)]}))
    with pytest.raises(StorageError, match="not enough memory") as raised, open_sample([path], "") as sample:
        sample.con.execute("SET memory_limit='5MB'; SET temp_directory=''")
        sample.query("SELECT list(__a.x || __b.x) FROM __rows AS __a, __rows AS __b")
    assert str(path) in str(raised.value) and "PERENNIAL_MEMORY_MB" in str(raised.value)


def test_an_error_about_a_sample_names_no_partition(empty_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n1,2\n1,2,3\n")
    with pytest.raises(PerennialError) as raised, open_sample([path], ""):
        pass
    assert str(path) in str(raised.value)
    assert (raised.value.model, raised.value.partition) == (None, None)
