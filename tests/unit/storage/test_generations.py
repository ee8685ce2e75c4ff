"""Types of a table that become wider: no value changes, or nothing does."""

from __future__ import annotations

import datetime as dt
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import StorageError
from perennial.storage import delta_tables, duckdb_session, generations

DAYS = ("2024-01-01", "2024-01-02")
integers = st.one_of(st.integers(-(2**53), 2**53), st.integers(-(2**63), 2**63 - 1))
KINDS: dict[str, tuple[st.SearchStrategy[Any], pa.DataType, pa.DataType]] = {
    "integer": (integers, pa.int64(), pa.float64()),
    "date": (st.dates(), pa.date32(), pa.timestamp("us")),
}


def rows(day: str, values: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table({"v": pa.array(values, kind), "partition_date": [day] * len(values)})


def stored(uri: str, version: int | None = None) -> list[list[Any]]:
    """The values of each partition, in the order of the file."""
    result = []
    for day in DAYS:
        with duckdb_session.connect(threads=1) as con:
            assert duckdb_session.create_view(con, "__t", uri, version, day, day)
            result.append([row[0] for row in con.execute("SELECT v FROM __t").fetchall()])
    return result


def digests(uri: str) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in Path(uri).rglob("*") if f.is_file()}


@settings(max_examples=12)
@given(st.data())
def test_a_conversion_changes_no_value_or_nothing(draw: st.DataObject) -> None:
    strategy, before, after = KINDS[draw.draw(st.sampled_from(sorted(KINDS)))]
    parts = [draw.draw(st.lists(st.none() | strategy, min_size=1, max_size=5)) for _ in DAYS]
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/published/toy"
        writer = delta_tables.Writer(uri, properties=generations.properties({"task": "binary"}, 3))
        for day, values in zip(DAYS, parts, strict=True):
            version = writer.replace(rows(day, values, before), day)
        files, schema = digests(uri), pa.schema([("v", after)])
        fits = generations.exact(uri, schema, ["v"])
        try:
            generations.widen(uri, schema, ["v"], "wider")
        except generations.InexactError as error:
            assert (str(error), fits) == ("v", False)
            assert digests(uri) == files
            assert any(v is not None and abs(v) > 2**53 for values in parts for v in values)
            return
        assert fits
        expected = parts
        if before == pa.date32():
            expected = [[v and dt.datetime.combine(v, dt.time()) for v in values] for values in parts]
        assert stored(uri) == expected
        assert stored(uri, version) == parts  # a training that pinned it reads what it read before
        table = delta_tables.open_table(uri)
        assert table is not None
        assert generations.definition(table) == {"task": "binary"}
        assert (generations.number(table), table.history(1)[0]["perennial.reason"]) == (3, "wider")
        assert list(delta_tables.rows_by_partition(uri).values()) == [len(values) for values in parts]
        delta_tables.replace(uri, rows(DAYS[0], [expected[0][0]], after), DAYS[0])
        assert stored(uri) == [[expected[0][0]], expected[1]]


@pytest.mark.parametrize(
    "after", [pa.string(), pa.float64(), pa.bool_(), pa.date32(), pa.list_(pa.int64())], ids=str
)
def test_a_writer_casts_nothing(tmp_path: Path, after: pa.DataType) -> None:
    uri = str(tmp_path / "t")
    delta_tables.replace(uri, rows(DAYS[0], [1, 2], pa.int64()), DAYS[0])
    files = digests(uri)
    with pytest.raises(StorageError, match=r"column 'v' is integer in the table, and .* nothing was written"):
        delta_tables.replace(uri, rows(DAYS[1], [None], after), DAYS[1])
    assert digests(uri) == files


def test_a_new_generation_is_one_commit(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    before = delta_tables.replace(uri, rows(DAYS[0], [1], pa.int64()), DAYS[0])
    delta_tables.replace(uri, rows(DAYS[1], [2], pa.int64()), DAYS[1])
    schema = pa.schema([("v", pa.timestamp("us")), ("partition_date", pa.string())])
    assert generations.start(uri, schema, {"task": "regression"}, "why") == 2
    assert delta_tables.version(uri) == before + 2
    assert delta_tables.partitions(uri) == []
    assert delta_tables.partitions(uri, before + 1) == list(DAYS)
    moment = dt.datetime(2024, 1, 1, 5)
    delta_tables.replace(uri, rows(DAYS[0], [moment], pa.timestamp("us")), DAYS[0])
    with duckdb_session.connect(threads=1) as con:
        duckdb_session.create_view(con, "__t", uri)
        assert con.execute("SELECT v FROM __t").fetchall() == [(moment,)]
    assert generations.start(uri, schema, {}, "again") == 3


def test_a_conversion_that_was_interrupted_after_its_commit_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalake import DeltaTable

    uri = f"{tmp_path}/published/toy"
    delta_tables.replace(uri, rows(DAYS[0], [1, 2], pa.int64()), DAYS[0])
    commit = DeltaTable.create_write_transaction

    def interrupted(*arguments: Any, **options: Any) -> None:
        commit(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(DeltaTable, "create_write_transaction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generations.widen(uri, pa.schema([("v", pa.float64())]), ["v"], "wider")
    with duckdb_session.connect(threads=1) as con:
        assert duckdb_session.create_view(con, "__t", uri)
        assert con.execute("SELECT v, typeof(v) FROM __t").fetchall() == [(1.0, "DOUBLE"), (2.0, "DOUBLE")]


def test_a_table_is_converted_once(tmp_path: Path) -> None:
    uri = f"{tmp_path}/published/toy"
    delta_tables.replace(uri, rows(DAYS[0], [1], pa.int64()), DAYS[0])
    schema = pa.schema([("v", pa.float64())])
    first, second = (generations.widen(uri, schema, ["v"], "wider") for _ in range(2))
    assert first == second == delta_tables.version(uri)


def test_names_that_differ_only_in_the_case_of_any_letter_are_a_change(tmp_path: Path) -> None:
    uri = f"{tmp_path}/published/toy"
    writer = delta_tables.Writer(uri)
    writer.replace(pa.table({"Ä": [1], "partition_date": [DAYS[0]]}), DAYS[0])
    with pytest.raises(StorageError, match="'ä' differs only in case"):
        writer.replace(pa.table({"ä": [1], "partition_date": [DAYS[0]]}), DAYS[0])
