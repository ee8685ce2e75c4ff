"""Features: one SQL, the same result for a table, a slice of it or one row; SQL that cannot promise that is refused."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from perennial.core import dates
from perennial.core.errors import DataError, SpecError
from perennial.features import scan_units
from perennial.features.engine import FeatureQuery
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, file_digests, landing
from support import toys

DAY = toys.FIRST


def features(spec: ModelSpec, rows: pa.Table) -> list[dict[str, Any]]:
    return FeatureQuery(spec).compute(rows).to_pylist()  # type: ignore[no-any-return]


def one_unit(spec: ModelSpec) -> scan_units.ScanUnit:
    """All that is published, as one unit."""
    (unit,) = scan_units.plan_units(
        delta_tables.files_by_partition(delta_tables.table_uri("published", spec.name)), 100_000, 100_000
    )
    return unit


def test_whole_slice_and_single_row_agree(make: Any) -> None:
    spec, rows = make(), toys.rows("binary", DAY)
    whole = features(spec, rows)
    assert len(whole) == len(rows)
    assert list(whole[0]) == ["x", "z", "k", "hour", "size"]
    query = FeatureQuery(spec)
    assert query.compute(rows.slice(7, 20)).to_pylist() == whole[7:27]
    assert [query.compute(rows.slice(i, 1)).to_pylist()[0] for i in range(len(rows))] == whole
    assert query.compute(rows.slice(0, 0)).to_pylist() == []


def test_order_is_kept_through_joins(make: Any) -> None:
    spec, rows = make(), toys.rows("binary", DAY, 5000)
    shuffled = rows.take(np.random.default_rng(3).permutation(len(rows)))
    assert FeatureQuery(spec).compute(shuffled)["x"].to_pylist() == shuffled["x"].to_pylist()


def test_a_join_takes_what_was_known_and_nothing_later(make: Any) -> None:
    spec = make()
    known = dt.datetime.fromisoformat(dates.add_days(DAY, 9))
    at = [known - dt.timedelta(microseconds=1), known, known + dt.timedelta(days=1), dt.datetime(2023, 1, 1)]
    rows = pa.table(
        {"id": ["before", "at", "after", "too early"], "seen_at": at, "x": [0.0] * 4, "z": [0.0] * 4, "k": ["a"] * 4,
         "place": ["north"] * 4}
    )  # fmt: skip
    assert [r["size"] for r in features(spec, rows)] == [1.0, 2.0, 2.0, None]


def test_a_feature_set_adds_columns_to_the_rows(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "shared"
    folder.mkdir(parents=True)
    (folder / "feature_set.yaml").write_text("name: shared\nowner: tests\ndescription: A set.\n")
    (folder / "features.sql").write_text("SELECT *, x * 2 AS twice FROM rows; -- in pairs\n")
    spec = make(
        "SELECT id, twice, k FROM rows ; /* that's all; */",
        features={"sets": ["shared"], "references": [], "categorical": ["k"]},
    )
    rows = toys.rows("binary", DAY, 3)
    assert FeatureQuery(spec).compute(rows)["twice"].to_pylist() == [2 * x for x in rows["x"].to_pylist()]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT id, x FROM rows WHERE x > 0", " rows for 60 rows"),
        ("SELECT rows.id, x FROM rows JOIN places USING (place)", "it returned 120 rows for 60 rows"),
        ("SELECT 'same' AS id, x FROM rows", "keys that it returned"),
        ("SELECT id || '!' AS id, x FROM rows", "keys that it returned"),
        (
            "SELECT id, x FROM rows WHERE id NOT LIKE '%-00007' UNION ALL "
            "SELECT id, x FROM rows WHERE id LIKE '%-00008'",
            "keys that it returned",
        ),
        ("SELECT id, CAST(k AS DOUBLE) AS x FROM rows", "features.sql failed: .*Conversion Error"),
    ],
    ids=[
        "loses rows",
        "doubles rows",
        "one key",
        "renames keys",
        "loses one and doubles one",
        "fails on values",
    ],
)
def test_sql_that_does_not_keep_its_rows_is_refused(make: Any, sql: str, message: str) -> None:
    spec = make(sql, features={"categorical": []})
    toys.publish(spec, days=1)
    unit = one_unit(spec)
    query = FeatureQuery(spec, None, delta_tables.table_uri("published", "toy"))
    for run in (
        lambda: query.compute(toys.rows("binary", DAY)),
        lambda: list(query.stream(unit.source(list(spec.data.columns)), unit.read(["id"]))),
        lambda: list(query.stream(toys.rows("binary", DAY), unit.read(["id"]))),
    ):
        with pytest.raises(DataError, match=message) as error:
            run()
        assert error.value.model == "toy"
        assert error.value.remedy


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT id, random() AS x FROM rows", "random is not deterministic"),
        ("SELECT id, date_diff('day', seen_at, now()) AS x FROM rows", "now is not deterministic"),
        (
            "SELECT id, date_diff('day', seen_at::DATE, current_date) AS x FROM rows",
            "is not deterministic",
        ),
        (
            "SELECT id, date_diff('day', seen_at::DATE, today()) AS x FROM rows",
            "is not deterministic",
        ),
        ("SELECT id, epoch(current_timestamp) AS x FROM rows", "is not deterministic"),
        ("SELECT id, hour(localtime) AS x FROM rows", "is not deterministic"),
        ("SELECT id, year(age(seen_at)) AS x FROM rows", "age with one argument is not deterministic"),
        ("SELECT id, hash(uuidv7()) AS x FROM rows", "uuidv7 is not deterministic"),
        ("SELECT id, x FROM rows USING SAMPLE 100 PERCENT (bernoulli)", "a sample"),
        (
            "SELECT id, size AS x FROM rows LEFT JOIN (FROM places TABLESAMPLE 1 ROWS) USING (place)",
            "a sample",
        ),
        ("SELECT id, x FROM rows; SELECT id, z FROM rows", "2 statements"),
        ("DROP TABLE places", "SELECT"),
        ("COPY rows TO '/tmp/rows.csv'", "SELECT"),
        ("SELECT x FROM rows", "does not return the key column 'id'"),
        ("SELECT id FROM rows", "returns no feature"),
        ("SELECT id, k FROM rows", "feature 'k' is a VARCHAR"),
        ("SELECT id, seen_at FROM rows", "feature 'seen_at' is a TIMESTAMP"),
        ("SELECT id, nope FROM rows", "nope"),
        ("SELECT id, x FROM", "syntax error"),
        ("", "one SELECT|0 statements|syntax"),
    ],
)
def test_sql_that_cannot_give_the_same_again_is_refused(make: Any, sql: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        FeatureQuery(make(sql, features={"categorical": []}))
    assert error.value.model == "toy"


@pytest.mark.parametrize(
    "read", ["read_text('{}')", "read_csv('{}')", "'{}'", "read_parquet('{}')", "glob('{}')"]
)
@pytest.mark.parametrize("folder", [None, "published"])
def test_sql_reads_no_file(make: Any, read: str, folder: str | None, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nhush\n")
    sql = f"SELECT id, (SELECT count(*) FROM {read.format(secret)}) AS x FROM rows"
    with pytest.raises(SpecError, match=r"features.sql") as error:
        FeatureQuery(
            make(sql, features={"categorical": []}),
            None,
            delta_tables.table_uri(folder, "toy") if folder else None,
        )
    assert "hush" not in str(error.value)


def test_the_engine_cannot_be_reconfigured(make: Any) -> None:
    with pytest.raises(SpecError):
        FeatureQuery(make("SET enable_external_access=true", features={"categorical": []}))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id, x - avg(x) OVER () AS x FROM rows",
        "SELECT id, row_number() OVER (ORDER BY x) AS x FROM rows",
        "SELECT id, x, (SELECT count(*) FROM rows) AS n FROM rows",
        "SELECT id, lag(x) OVER (ORDER BY id DESC) AS x FROM rows",
    ],
)
def test_sql_that_looks_at_other_rows_is_refused(make: Any, sql: str) -> None:
    query = FeatureQuery(make(sql, features={"categorical": []}))
    with pytest.raises(SpecError, match="depends on the other rows"):
        query.check_rowwise(toys.rows("binary", DAY))


def test_sql_that_minds_its_row_passes(make: Any) -> None:
    rows = toys.rows("binary", DAY)
    nulls = rows.set_column(2, "x", pa.array([None, float("nan")] * 30, pa.float64()))
    FeatureQuery(make()).check_rowwise(rows)
    FeatureQuery(make()).check_rowwise(nulls)


def test_a_label_that_is_a_column_is_hidden(make: Any) -> None:
    own = {"source": None, "columns": {}, "expression": "z", "arrives_after": "0 days"}
    with pytest.raises(SpecError, match="z"):
        FeatureQuery(make("SELECT id, z FROM rows", label=own, features={"categorical": []}))
    query = FeatureQuery(make("SELECT id, x FROM rows", label=own, features={"categorical": []}))
    assert query.compute(toys.rows("binary", DAY)).num_rows == toys.ROWS


def test_keys_of_several_columns_and_types(make: Any) -> None:
    spec = make(
        "SELECT id, seen_at, x FROM rows ORDER BY x",
        data={"key": ["id", "seen_at"]},
        label={"columns": {"id": "string", "seen_at": "timestamp", "y": "integer"}},
        features={"categorical": []},
    )
    rows = toys.rows("binary", DAY)
    rows = rows.set_column(0, "id", pa.array(["one", "two"] * 30))
    assert FeatureQuery(spec).compute(rows)["x"].to_pylist() == rows["x"].to_pylist()


@pytest.mark.parametrize(
    "sql", [toys.SQL, "SELECT id, x, k FROM rows"], ids=["another order", "the same order"]
)
def test_files_give_what_their_rows_give(make: Any, sql: str) -> None:
    spec = make(sql)
    toys.publish(spec, days=3, n=5000)
    query = FeatureQuery(spec, None, delta_tables.table_uri("published", "toy"))
    unit = one_unit(spec)
    assert unit.partitions == [(dates.add_days(DAY, i), 5000) for i in range(3)]
    rows = pa.concat_tables([toys.rows("binary", day, 5000) for day, _ in unit.partitions])
    keys = unit.read(["id"])
    parts = query.stream(unit.source(list(spec.data.columns)), keys)
    assert keys["id"].to_pylist() == rows["id"].to_pylist()
    table = pa.concat_tables(parts)
    assert table["id"].to_pylist() == rows["id"].to_pylist()
    assert table.select(query.columns).to_pylist() == query.compute(rows).to_pylist()


def test_a_column_that_the_files_do_not_have_yet_is_null(make: Any) -> None:
    spec = make()
    toys.publish(spec, days=1)
    more = make(
        "SELECT id, x, hour(later) AS hour FROM rows",
        data={"columns": {**spec.data.columns, "later": "timestamp"}},
        features={"categorical": []},
    )
    query = FeatureQuery(more, None, delta_tables.table_uri("published", "toy"))
    unit = one_unit(more)
    for source in (unit.source(list(more.data.columns)), toys.rows("binary", DAY)):
        table = pa.concat_tables(query.stream(source, unit.read(["id"])))
        assert table["hour"].null_count == len(table) == toys.ROWS
        assert table["x"].to_pylist() == toys.rows("binary", DAY)["x"].to_pylist()


def test_files_of_other_columns_and_types_follow_one_another(make: Any, tmp_path: Path) -> None:
    """The statement is planned once; what the files hold is asked for each time."""
    spec = make("SELECT id, x + 1 AS more FROM rows", features={"categorical": []})
    query = FeatureQuery(spec, None, str(tmp_path))
    for number, x in enumerate(([1.5, None], [1, 2], None, [2.5, 3.5])):
        path, ids = tmp_path / f"{number}.parquet", [f"{number}a", f"{number}b"]
        pyarrow.parquet.write_table(pa.table({"id": ids} | ({"x": x} if x else {})), path)
        file_digests.record(str(tmp_path.parent), [f"{tmp_path.name}/{path.name}"])
        (unit,) = scan_units.plan_units({DAY: [delta_tables.File(str(path), 2)]}, 2, 2)
        table = pa.concat_tables(query.stream(unit.source(["id", "x"]), unit.read(["id"])))
        assert table["id"].to_pylist() == ids
        assert table["more"].to_pylist() == [None if v is None else v + 1 for v in x or [None, None]]


def test_sql_that_fails_on_a_late_row_is_told_and_the_next_rows_go_on(make: Any) -> None:
    spec = make("SELECT id, CAST(k AS DOUBLE) AS x FROM rows", features={"categorical": []})
    rows = toys.rows("binary", DAY, 400_000)
    rows = rows.set_column(rows.column_names.index("k"), "k", pa.array(["1"] * (len(rows) - 1) + ["one"]))
    query = FeatureQuery(spec)
    with pytest.raises(DataError, match=r"features.sql failed: .*Conversion Error"):
        list(query.stream(rows, rows.select(["id"])))
    good = rows.slice(0, 10)
    assert sum(map(len, query.stream(good, good.select(["id"])))) == 10


def test_personal_values_stay_out_of_the_message(make: Any) -> None:
    rows = toys.rows("binary", DAY)
    for personal in ([], ["k"]):
        spec = make(
            "SELECT id, CAST(k AS DOUBLE) AS x FROM rows",
            features={"categorical": [], "personal": {"x": "a test needs it"} if personal else {}},
            data={"personal": personal},
        )
        with pytest.raises(DataError, match=r"features.sql failed") as error:
            list(FeatureQuery(spec).stream(rows, rows.select(["id"])))
        quoted = [f"'{value}'" in str(error.value) for value in "abc"]
        assert any(quoted) is not bool(personal)


@pytest.mark.parametrize(
    ("sql", "features", "message"),
    [
        ("SELECT id, x, k FROM rows", {}, r"feature 'k' depends on personal data \(k\)"),
        ("SELECT id, x, length(k) AS n FROM rows", {}, r"feature 'n' depends on personal data \(k\)"),
        ("SELECT id, x, k FROM rows", {"personal": {"y": "a test needs it"}}, "features.personal names 'y'"),
        ("SELECT id, x, k FROM rows", {"personal": {"k": "a test needs it"}}, None),
        ("SELECT id, x FROM rows", {"categorical": []}, None),
    ],
)
def test_features_of_personal_data_need_a_reason(
    make: Any, sql: str, features: Any, message: str | None
) -> None:
    categorical = ["k"] if sql.endswith("k FROM rows") else []
    spec = make(sql, features={"categorical": categorical} | features, data={"personal": ["k"]})
    if message is None:
        FeatureQuery(spec)
        return
    with pytest.raises(SpecError, match=message):
        FeatureQuery(spec)


def test_rows_are_put_back_in_order(make: Any) -> None:
    spec = make(
        "SELECT id, seen_at, x FROM rows",
        data={"key": ["id", "seen_at"]},
        label={"columns": {"id": "string", "seen_at": "timestamp", "y": "integer"}},
        features={"categorical": []},
    )
    keys = pa.table({"id": [f"k{i}" for i in range(5000)], "seen_at": list(range(5000))})
    order = np.random.default_rng(1).permutation(len(keys))
    rows = keys.append_column("x", keys["seen_at"]).take(pa.array(order))
    assert FeatureQuery(spec)._sort(rows, keys)["x"].to_pylist() == list(range(len(keys)))


@pytest.mark.parametrize("separator", ["\x1f", ":", "1:", "\x1e1", "|", "\0"])
def test_keys_that_hold_separators_are_different_keys(make: Any, separator: str) -> None:
    spec = make("SELECT id, k, x FROM rows", data={"key": ["id", "k"]}, features={"categorical": []},
                label={"columns": {"id": "string", "k": "string", "y": "integer"}})  # fmt: skip
    keys = pa.table({"id": ["a", f"a{separator}b", "a"], "k": [f"b{separator}c", "c", "b"]})
    rows = keys.append_column("x", pa.array([0, 1, 2])).take(pa.array([2, 0, 1]))
    assert FeatureQuery(spec)._sort(rows, keys)["x"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("alone", [True, False], ids=["alone only", "among others only"])
def test_sql_that_gives_a_single_row_something_else_is_refused(make: Any, alone: bool) -> None:
    """Halves agree with the whole, which is enough for a training; a null for a zero is a difference, too."""
    count = "(SELECT count(*) FROM rows)"
    query = FeatureQuery(
        make(
            f"SELECT id, CASE WHEN {count} {'= 1' if alone else '> 1'} THEN 0.0 END AS x FROM rows",
            features={"categorical": []},
        )
    )
    rows = toys.rows("binary", DAY)
    query.check_rowwise(rows)
    with pytest.raises(SpecError, match="depends on the other rows"):
        query.check_rowwise(rows, single_row=True)


def test_a_sum_that_is_rounded_in_another_order_does_not_stop_a_training(make: Any) -> None:
    """Of one row DuckDB joins a small reference table the other way round, and adds its values in another order."""
    total = "SELECT sum(size) FROM places p WHERE p.place = rows.place AND p.known_at <= seen_at"
    spec = make(f"SELECT id, ({total}) AS x FROM rows", features={"categorical": []})
    rng = np.random.default_rng(0)
    size = rng.normal(size=100) * 10.0 ** rng.integers(-6, 6, 100)
    known_at = np.datetime64("2023-01-01", "us") + rng.integers(0, 10**13, 100)
    place = [f"place {i}" for i in rng.integers(0, 5, 100)]
    places = pa.table({"place": place, "known_at": known_at, "size": size})
    toys.write(landing.source_uri("{landing}/toy_places.parquet"), places)
    rows = toys.rows("binary", DAY, 2000)
    index = rows.column_names.index("place")
    rows = rows.set_column(index, "place", pa.array([f"place {i % 5}" for i in range(2000)]))
    query = FeatureQuery(spec)
    for count in range(1990, 2001):
        query.check_rowwise(rows.slice(0, count))


def test_a_version_reads_the_types_that_it_was_trained_with(make: Any) -> None:
    """`number` stands for `integer` in the tables by now: 7 is not 7.0 as a category."""
    columns = {"id": "string", "seen_at": "timestamp", "n": "integer", "late": "integer"}
    sql = "SELECT id, n::VARCHAR AS code, n % 2 AS odd, late FROM rows"
    spec = make(sql, data={"columns": columns}, features={"categorical": ["code"], "references": []})
    rows = toys.rows("binary", DAY, 3).select(["id", "seen_at"])
    wider = rows.append_column("n", pa.array([7.0, None, 2.0**53]))
    expected = [
        {"code": "7", "odd": 1, "late": None},
        {"code": None, "odd": None, "late": None},
        {"code": str(2**53), "odd": 0, "late": None},
    ]
    assert features(spec, wider) == expected
    day = pa.array([DAY] * 3)
    delta_tables.replace(
        delta_tables.table_uri("published", "toy"), wider.append_column("partition_date", day), DAY
    )
    unit, keys = one_unit(spec), wider.select(["id"])
    streamed = pa.concat_tables(FeatureQuery(spec).stream(unit.read(list(columns)), keys))
    assert streamed.drop(["id"]).to_pylist() == expected
    with pytest.raises(DataError, match="column n has a value that is no integer"):
        features(spec, rows.append_column("n", pa.array([7.0, 0.75, 1.0])))
    with pytest.raises(DataError, match="column 'n' is declared integer, and is VARCHAR"):
        features(spec, rows.append_column("n", pa.array(["007", "1", "2"])))


def test_a_column_of_another_type_that_no_feature_needs_is_not_read(make: Any) -> None:
    columns = {"id": "string", "seen_at": "timestamp", "n": "integer", "late": "integer"}
    features_section = {"categorical": [], "references": []}
    spec = make("SELECT id, late FROM rows", data={"columns": columns}, features=features_section)
    rows = toys.rows("binary", DAY, 3).select(["id", "seen_at"])
    changed = rows.append_column("n", pa.array(["007", "1", "2"])).append_column("late", pa.array([1, 2, 3]))
    assert features(spec, changed) == [{"late": 1}, {"late": 2}, {"late": 3}]
