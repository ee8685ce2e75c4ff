from __future__ import annotations

import json
import math
import string
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from perennial.core.errors import ArtifactError
from perennial.monitoring import histograms
from sql_names import sql_names


def table(con: duckdb.DuckDBPyConnection, **columns: Any) -> None:
    rows = len(next(iter(columns.values())))
    columns.setdefault("partition_date", ["2024-01-01"] * rows)
    con.register("t", pa.table(columns))
    con.execute("CREATE OR REPLACE TABLE rows AS SELECT * FROM t")
    con.unregister("t")


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


def reference(
    con: duckdb.DuckDBPyConnection, numeric: list[str], categorical: list[str], **more: Any
) -> dict[str, histograms.ReferenceColumn]:
    made = histograms.make_reference(con, "rows", numeric, categorical, **more)
    return histograms.read_reference(json.loads(json.dumps(made)))[1]


def test_psi_follows_the_formula() -> None:
    value = histograms.psi(np.array([50, 50]), np.array([25, 75]))
    assert value == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5))
    assert histograms.psi(np.array([3, 4, 5]), np.array([30, 40, 50])) == pytest.approx(0)


def test_psi_of_categories_equals_evidentlys() -> None:
    import pandas as pd
    from evidently.legacy.calculations.stattests import psi_stat_test
    from evidently.legacy.core import ColumnType

    before, after = [10, 30, 60], [25, 25, 50]
    series = [pd.Series(list("abc")).repeat(n).reset_index(drop=True) for n in (before, after)]
    expected = psi_stat_test.func(series[0], series[1], ColumnType.Categorical, 0.2)[0]
    assert histograms.psi(np.array(before), np.array(after)) == pytest.approx(expected)


def test_empty_bins_give_a_finite_index() -> None:
    assert np.isfinite(histograms.psi(np.array([100, 0]), np.array([0, 100])))
    assert np.isfinite(histograms.psi(np.array([100, 0]), np.array([0, 0])))


def test_nan_counts_as_null_and_infinities_as_extremes(
    con: duckdb.DuckDBPyConnection,
) -> None:
    table(con, x=[float(i) for i in range(100)])
    columns = reference(con, ["x"], [])
    table(con, x=[math.nan, None, math.inf, -math.inf, 0.0, 99.0])
    counts = histograms.count_bins(con, "rows", columns).columns["x"]
    assert counts is not None and sum(counts) == 6
    assert (counts[0], counts[-2], counts[-1]) == (2, 2, 2)


def test_infinities_and_nan_do_not_become_edges(con: duckdb.DuckDBPyConnection) -> None:
    table(con, x=[math.inf, -math.inf, math.nan, None] * 30 + [1.0, 2.0])
    assert reference(con, ["x"], [])["x"].edges == [1.0, 2.0]


def test_counts_add_up_for_every_kind_of_column(con: duckdb.DuckDBPyConnection) -> None:
    table(
        con,
        i=[1, 2, None, 4],
        b=[True, False, None, True],
        t=["a", "", None, "b"],
        n=pa.array([None] * 4, pa.float64()),
    )
    columns = reference(con, ["i", "b", "n"], ["t"])
    counts = histograms.count_bins(con, "rows", columns)
    assert all(c is not None and sum(c) == 4 for c in counts.columns.values())
    assert all(counts.columns[c] == columns[c].counts for c in columns)
    assert columns["n"].null_share == 1 and columns["n"].is_constant


def test_the_empty_text_is_a_category(con: duckdb.DuckDBPyConnection) -> None:
    table(con, t=["", "", "a"])
    columns = reference(con, [], ["t"])
    table(con, t=["", "new", "new", None])
    assert dict(
        zip(
            columns["t"].categories,
            histograms.count_bins(con, "rows", columns).columns["t"] or [],
            strict=False,
        )
    ) == {"": 1, "a": 0}
    assert histograms.count_bins(con, "rows", columns).columns["t"] == [1, 0, 2, 1]


def test_a_missing_column_is_none_and_text_in_a_numeric_column_is_null(
    con: duckdb.DuckDBPyConnection,
) -> None:
    table(con, x=[1.0, 2.0, 3.0], y=[1.0, 2.0, 3.0])
    columns = reference(con, ["x", "y"], [])
    table(con, x=["one", "2", "three"])
    counts = histograms.count_bins(con, "rows", columns)
    assert counts.columns["y"] is None
    assert counts.columns["x"] is not None and counts.columns["x"][-1] == 2


@pytest.mark.parametrize(
    "value", ["'; DROP TABLE rows; --", "<script>", '"', "=1+1", "a\0b", "x" * 10_000_000, "日本", "\\"]
)
def test_any_text_can_be_a_category(con: duckdb.DuckDBPyConnection, value: str) -> None:
    table(con, t=[value] * 5 + ["b"] * 4)
    columns = reference(con, [], ["t"])
    assert sum(map(len, columns["t"].categories)) < 200
    assert histograms.count_bins(con, "rows", columns).columns["t"] == columns["t"].counts == [5, 4, 0, 0]


#: The names of our SQL as a column may have them, without their prefix, and others that our SQL could mistake.
NAMES = sorted(
    {*(name.lstrip("_").lower() for name in sql_names()), *string.ascii_lowercase}
    - {"", "partition_date", "seg"}
)
HOSTILE = 'a"; DROP TABLE rows; --<script>'


@pytest.mark.parametrize("name", [*NAMES, HOSTILE])
def test_any_text_can_be_a_name(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """A column's name changes nothing of its own bins, nor of those of the column beside it."""

    def content(name: str) -> list[Any]:
        # No row of the most frequent category, and not every row of the others, has a value.
        seg = ["a"] * 5 + ["b"] * 4 + ["c"] * 3
        values = [None] * 5 + [1.0, None, 3.0, 4.0] + [5.0, None, 7.0]
        rows = pa.table({name: values, "seg": seg, "partition_date": ["2024-01-01", "2024-01-02"] * 6})
        con.register("t", rows)
        con.execute("CREATE OR REPLACE TABLE rows AS SELECT * FROM t")
        made = [
            histograms.make_reference(con, "rows", [name], ["seg"], window=1, min_rows=1),
            histograms.make_reference(con, "rows", [], [name, "seg"], window=1, min_rows=1),
        ]
        counted = [histograms.count_bins(con, "rows", histograms.read_reference(m)[1]).columns for m in made]
        sample = histograms.sample_rows(con, "rows", n=5)
        columns = [
            *(m["columns"] for m in made),
            *counted,
            dict(zip(("x", "seg"), sample.columns, strict=True)),
        ]
        return [list(by_name.values()) for by_name in columns]

    expected = content("plain")
    assert expected[0][1]["categories"] == ["a", "b", "c"] and expected[0][1]["counts"] == [5, 4, 3, 0, 0]
    assert expected[0][0]["edges"] == [1.0, 3.0, 4.0, 5.0, 7.0] and expected[0][0]["counts"][-1] == 7
    assert content(name) == expected


def test_a_reference_does_not_depend_on_the_order_of_rows(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histograms, "MAX_QUANTILE_CELLS", 500)  # so that quantiles come from a sample
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=3000), rng.choice(list("abc"), 3000)
    order = rng.permutation(3000)
    table(con, x=x, t=t)
    one = histograms.make_reference(con, "rows", ["x"], ["t"]), histograms.sample_rows(con, "rows", n=50)
    table(con, x=x[order], t=t[order])
    two = histograms.make_reference(con, "rows", ["x"], ["t"]), histograms.sample_rows(con, "rows", n=50)
    assert one[0] == two[0] and one[1].equals(two[1])
    assert len(one[0]["columns"]["x"]["edges"]) == 9


def test_no_window_of_the_reference_exceeds_its_noise_floor(con: duckdb.DuckDBPyConnection) -> None:
    days = [f"2024-01-{d:02d}" for d in range(1, 29) for _ in range(50)]
    rng = np.random.default_rng(2)
    x = rng.normal(np.repeat(np.arange(28) / 5, 50))  # a reference that drifts by itself
    table(con, x=x, partition_date=days)
    columns = reference(con, ["x"], [], window=7, min_rows=100)["x"]
    assert columns.noise_floor(7) > 0.2 and set(columns.noise_floors) == {2, 4, 7}
    for start in range(22):
        window = x[start * 50 : (start + 7) * 50]
        table(con, x=window)
        counts = np.array(histograms.count_bins(con, "rows", {"x": columns}).columns["x"])
        assert histograms.psi(np.array(columns.counts), counts) <= columns.noise_floor(7) + 1e-12


def test_a_reference_shorter_than_two_windows_has_no_noise_floor_for_them(
    con: duckdb.DuckDBPyConnection,
) -> None:
    table(con, x=[1.0, 2.0] * 7, partition_date=[f"2024-01-{d:02d}" for d in range(1, 15)])
    assert reference(con, ["x"], [], window=8, min_rows=1)["x"].noise_floors.keys() == {1, 2, 4, 7}
    assert reference(con, ["x"], [], window=7, min_rows=1)["x"].noise_floors.keys() == {1, 2, 4, 7}


def test_personal_values_are_neither_stored_nor_sampled(con: duckdb.DuckDBPyConnection) -> None:
    ages = [None, *(float(7391 + i) for i in range(99))]
    table(con, who=[f"person {i % 7}" for i in range(100)], x=[1.0] * 100, age=ages)
    personal = ["who", "age"]
    made = histograms.make_reference(con, "rows", ["x", "age"], ["who"], personal=personal)
    assert "person " not in json.dumps(made) and "74" not in json.dumps(made["columns"]["age"])
    assert histograms.sample_rows(con, "rows", n=5, personal=personal).column_names == ["x"]
    columns = histograms.read_reference(made)[1]
    assert sum(columns["who"].counts) == 100
    assert columns["age"].counts == [99, 1], "of a number, only missing values are counted"
    assert histograms.count_bins(con, "rows", columns).columns["age"] == [99, 1]


def test_a_stream_is_counted_in_one_pass(con: duckdb.DuckDBPyConnection) -> None:
    table(con, x=[float(i) for i in range(100)], t=["a", "b"] * 50)
    columns = reference(con, ["x"], ["t"])
    batches = pa.table({"x": [float(i) for i in range(100)], "t": ["a", "b"] * 50}).to_batches(
        max_chunksize=7
    )
    con.register("stream", pa.RecordBatchReader.from_batches(batches[0].schema, iter(batches)))
    counts = histograms.count_bins(con, "stream", columns)
    assert counts.rows == 100 and counts.columns == {c: s.counts for c, s in columns.items()}


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("format"),
        lambda r: r.update(format=99),
        lambda r: r["columns"]["x"].pop("counts"),
        lambda r: r["columns"]["x"]["counts"].append(1),
        lambda r: r["columns"]["x"].update(edges=["1); DROP TABLE rows; --"]),
        lambda r: r["columns"]["x"].update(edges=[math.nan] * len(r["columns"]["x"]["edges"])),
        lambda r: r.update(columns=[]),
    ],
)
def test_a_damaged_reference_is_an_error(con: duckdb.DuckDBPyConnection, damage: Any) -> None:
    table(con, x=[1.0, 2.0, 3.0])
    made = histograms.make_reference(con, "rows", ["x"], [])
    damage(made)
    with pytest.raises(ArtifactError, match="reference"):
        histograms.read_reference(made)


def test_a_wide_table_is_counted_in_batches_within_little_memory(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("SET memory_limit='300MB'; SET threads=2")
    names = [f"c{i}" for i in range(300)]
    listed = ", ".join(f"random() AS {c}" for c in names)
    con.execute(
        f"CREATE TABLE rows AS SELECT '2024-01-0' || (i % 3 + 1) AS partition_date, {listed} FROM range(600) r(i)"
    )
    columns = reference(con, names, [])
    assert list(columns) == names and all(len(s.edges) == 9 for s in columns.values())
    counts = histograms.count_bins(con, "rows", columns)
    assert counts.rows == 600 and all(counts.columns[c] == columns[c].counts for c in names)


def test_edges_from_a_sample_of_the_rows_do_not_depend_on_the_batches(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{i}" for i in range(6)]
    table(con, **{c: np.random.default_rng(i).random(4000) for i, c in enumerate(names)})
    exact = reference(con, names, [])
    monkeypatch.setattr(histograms, "MAX_QUANTILE_CELLS", 12_000)
    sampled = reference(con, names, [])
    monkeypatch.setattr(histograms, "COLUMNS_PER_QUERY", 1)
    assert reference(con, names, []) == sampled
    for name in names:
        assert sampled[name].edges != exact[name].edges
        assert sampled[name].edges == pytest.approx(exact[name].edges, abs=0.05)
    monkeypatch.setattr(histograms, "MAX_HASHED_COLUMNS", 2)  # another sample
    for name, column in reference(con, names, []).items():
        assert column.edges != sampled[name].edges
        assert column.edges == pytest.approx(exact[name].edges, abs=0.05)


def test_a_sample_of_a_very_wide_table_has_fewer_rows(con: duckdb.DuckDBPyConnection) -> None:
    listed = ", ".join(f"i + {c} AS c{c}" for c in range(2100))
    con.execute(f"CREATE VIEW wide AS SELECT {listed} FROM range(4200) r(i)")
    sample = histograms.sample_rows(con, "wide", n=5000, columns=["c0", "c1"])
    assert sample.num_rows == 4200  # two columns only
    whole = histograms.sample_rows(con, "wide", n=5000)
    assert whole.num_rows == 8_000_000 // 2100
    assert whole.column_names == [f"c{c}" for c in range(2100)]
    first, last = (whole[c].to_numpy() for c in ("c0", "c2099"))
    assert len(set(first.tolist())) == whole.num_rows and (last - first == 2099).all()


def test_a_very_wide_table_is_sampled_within_little_memory(tmp_path: Path) -> None:
    con = duckdb.connect(config={"threads": 1})
    listed = ", ".join(f"hash(i, {c}) / 1e18 AS c{c}" for c in range(1500))
    con.execute(
        f"COPY (SELECT {listed} FROM range(8192) r(i)) TO '{tmp_path}/rows.parquet' (ROW_GROUP_SIZE 2048)"
    )
    con.execute(f"CREATE VIEW wide AS FROM read_parquet('{tmp_path}/rows.parquet')")
    con.execute("SET memory_limit='120MB'")
    with pytest.raises(duckdb.OutOfMemoryException):
        con.sql("SELECT * FROM wide ORDER BY hash(c0) LIMIT 2048").to_arrow_table()
    assert histograms.sample_rows(con, "wide", n=5000).num_rows == 5000
    names = [f"c{c}" for c in range(1500)]
    cut = histograms._cut_edges(con, "wide", names[:64], dict.fromkeys(names, "DOUBLE"))
    assert all(len(column.edges) == 9 for column in cut.values())


def test_without_columns_rows_are_counted(con: duckdb.DuckDBPyConnection) -> None:
    table(con, x=[1.0, 2.0])
    assert histograms.make_reference(con, "rows", [], [])["rows"] == 2
    assert histograms.count_bins(con, "rows", {}).rows == 2


def test_a_length_without_a_noise_floor_gets_that_of_the_next_shorter() -> None:
    columns = histograms.ReferenceColumn("numeric", [1, 1, 0], edges=[0.5], noise_floors={2: 0.9, 7: 0.4})
    assert [columns.noise_floor(n) for n in (1, 2, 6, 7, 28)] == [0.9, 0.9, 0.9, 0.4, 0.4]
    assert histograms.ReferenceColumn("numeric", []).noise_floor(7) == 0.0
