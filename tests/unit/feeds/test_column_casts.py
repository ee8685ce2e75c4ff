"""Parquet columns as declared types: each value is read exactly, is missing, or is named as unreadable."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from perennial.core.errors import DataError
from perennial.core.sql import SQL_TYPES
from perennial.feeds import column_casts
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import typed_rows
from perennial.storage import landing

#: Stands for a cell that cannot be read.
BAD = "(not readable)"
UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1)
DAY = dt.date(2024, 2, 29)
NOON = dt.datetime(2024, 2, 29, 12, 30, 15, 123456)
NS = int((NOON - EPOCH) / dt.timedelta(microseconds=1)) * 1000 + 999


def read(folder: Path, array: pa.Array, declared: str, **writer: Any) -> list[Any]:
    """The cells of a Parquet file's column as the view of landed files has them; `BAD` if it names them."""
    path = folder / "c.parquet"
    pq.write_table(pa.table({"c": array}), path, **writer)
    with duckdb.connect() as con:
        con.execute(f"SET TimeZone='UTC'; SET temp_directory='{folder}'")
        feed = FeedSchema("m", "rows", {"c": declared})
        file = landing.fetch_file(feed, "2024-02-29", str(path), folder, con)
        failures = typed_rows.create_landed_view(con, feed, [file], typed=folder / "typed.parquet")
        failed = failures.get("c", "FALSE")
        value = "epoch_us(c)" if declared == "timestamp" else "c"
        rows = con.execute(f"SELECT typeof(c), {value}, {failed} FROM __rows ORDER BY __row").fetchall()
    assert {kind for kind, *_ in rows} <= {SQL_TYPES[declared]}
    assert all(value is None for _, value, bad in rows if bad)
    moments = declared == "timestamp"
    return [
        BAD if bad else EPOCH + dt.timedelta(microseconds=v) if moments and v is not None else v
        for _, v, bad in rows
    ]


def integers(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64()).cast(kind)


CASES: list[tuple[str, pa.Array, list[Any]]] = [
    ("integer", pa.array([1, -128, None], pa.int8()), [1, -128, None]),
    ("integer", pa.array([255], pa.uint8()), [255]),
    ("integer", pa.array([2**32 - 1], pa.uint32()), [2**32 - 1]),
    ("integer", pa.array([2**63 - 1, 2**63, 2**64 - 1, None], pa.uint64()), [2**63 - 1, BAD, BAD, None]),
    ("integer", pa.array([1.0, None, -0.0, 2.0**53]), [1, None, 0, 2**53]),
    ("integer", pa.array([1.5, math.nan, math.inf, 2.0**54, 1e300]), [BAD, None, BAD, BAD, BAD]),
    ("integer", pa.array([3.0, 0.5, 2.0**25], pa.float32()), [3, BAD, BAD]),
    ("integer", pa.array([3.0, 0.5, None], pa.float16()), [3, BAD, None]),
    ("integer", pa.array([Decimal(10**17), None], pa.decimal128(18, 0)), [10**17, None]),
    ("integer", pa.array([Decimal(2**53 + 1), Decimal(10**30)], pa.decimal128(38, 0)), [2**53 + 1, BAD]),
    ("integer", pa.array([Decimal("7.00"), Decimal("7.25")], pa.decimal128(9, 2)), [7, BAD]),
    ("integer", pa.array([True, False, None]), [1, 0, None]),
    ("integer", pa.array(["7", " -8 ", "x", "", "NA", None]), [7, -8, BAD, None, None, None]),
    ("integer", pa.array(["7", "x", None]).dictionary_encode(), [7, BAD, None]),
    ("integer", pa.array([5, None]).dictionary_encode(), [5, None]),
    ("integer", pa.nulls(2), [None, None]),
    ("number", pa.array([1.5, None, math.nan], pa.float16()), [1.5, None, None]),
    ("number", pa.array([Decimal("1.25"), None], pa.decimal128(9, 2)), [1.25, None]),
    ("number", pa.array([Decimal("1.25")], pa.decimal256(50, 2)), [1.25]),
    ("number", pa.array([2**64 - 1], pa.uint64()), [2.0**64]),
    ("number", pa.array([True, None]), [1.0, None]),
    ("number", pa.array(["1.5", "-2e3", "1,5", "nan"], pa.large_string()), [1.5, -2000.0, BAD, None]),
    ("boolean", pa.array([0, 1, 2, None], pa.int8()), [False, True, BAD, None]),
    ("boolean", pa.array([0.0, 1.0, 0.5, None, math.nan]), [False, True, BAD, None, None]),
    ("boolean", pa.array([Decimal(1), Decimal(3)], pa.decimal128(1, 0)), [True, BAD]),
    ("boolean", pa.array(["true", "No", "maybe"]), [True, False, BAD]),
    ("date", pa.array([DAY, None], pa.date64()), [DAY, None]),
    ("date", pa.array([EPOCH, NOON, None], pa.timestamp("us")), [EPOCH.date(), BAD, None]),
    ("date", integers([0, 1], pa.timestamp("ns", "Asia/Tokyo")), [EPOCH.date(), BAD]),
    ("date", integers([0, 3_600_000], pa.timestamp("ms", "Europe/Berlin")), [EPOCH.date(), BAD]),
    ("date", pa.array(["2024-02-29", "29.02.2024"]), [DAY, BAD]),
    ("date", pa.array([2**31 - 1, -(2**31) + 1, 0], pa.int32()).cast(pa.date32()), [BAD, BAD, EPOCH.date()]),
    ("timestamp", pa.array([DAY, None]), [dt.datetime(2024, 2, 29), None]),
    ("timestamp", pa.array([2**31 - 1, 10**9], pa.int32()).cast(pa.date32()), [BAD, BAD]),
    ("timestamp", integers([1, None], pa.timestamp("s")), [EPOCH + dt.timedelta(seconds=1), None]),
    ("timestamp", integers([1, None], pa.timestamp("ms", "UTC")), [EPOCH + dt.timedelta(milliseconds=1), None]),
    ("timestamp", pa.array([NOON, None], pa.timestamp("us", "America/New_York")), [NOON, None]),
    ("timestamp", integers([NS, -1, None], pa.timestamp("ns")), [NOON, EPOCH - dt.timedelta(microseconds=1), None]),
    ("timestamp", integers([NS, -1999, None], pa.timestamp("ns", "UTC")),
     [NOON, EPOCH - dt.timedelta(microseconds=2), None]),
    ("timestamp", integers([2**63 - 1, -(2**63) + 1, 1500], pa.timestamp("ns", "+02:00")),
     [BAD, BAD, EPOCH + dt.timedelta(microseconds=1)]),
    ("timestamp", integers([2**63 - 1, -(2**63) + 1], pa.timestamp("us")), [BAD, BAD]),
    ("timestamp", integers([2**63 - 1], pa.timestamp("us", "UTC")), [BAD]),
    ("timestamp", pa.array(["2024-02-29T14:30:15.123456+02:00", "noon"]), [NOON, BAD]),
    ("string", pa.array(["a", "", None], pa.string_view()), ["a", "", None]),
    ("string", pa.array(["ä", None], pa.large_string()), ["ä", None]),
    ("string", pa.array(["ä".encode(), b"\xff", None]), ["ä", BAD, None]),
    ("string", pa.array([b"x", None], pa.large_binary()), ["x", None]),
    ("string", pa.array([dt.time(9, 30), None], pa.time32("ms")), ["09:30:00", None]),
    ("string", pa.array([dt.time(9, 30, 1, 5)], pa.time64("ns")), ["09:30:01.000005"]),
    ("string", pa.array([Decimal(10**30 + 1), None], pa.decimal128(38, 0)), [str(10**30 + 1), None]),
    ("string", pa.array([b"0123456789abcdef", None], pa.uuid()), ["30313233-3435-3637-3839-616263646566", None]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "array", "expected"), CASES, ids=lambda v: str(getattr(v, "type", v))[:40]
)
def test_each_cell_is_its_value_or_missing_or_named(
    tmp_path: Path, declared: str, array: pa.Array, expected: list[Any]
) -> None:
    assert read(tmp_path, array, declared) == expected


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_times_of_96_bits(tmp_path: Path, zone: str | None) -> None:
    """The type that Spark writes by default; Arrow reads its footer as nanoseconds."""
    array = pa.array([NOON, None, EPOCH - dt.timedelta(days=80_000)], pa.timestamp("us", zone))
    expected = [NOON, None, EPOCH - dt.timedelta(days=80_000)]
    assert read(tmp_path, array, "timestamp", use_deprecated_int96_timestamps=True) == expected


REFUSED = {
    "list": pa.array([[1]]), "struct": pa.array([{"a": 1}]),
    "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
    "duration": pa.array([1], pa.duration("s")), "fixed bytes": pa.array([b"abc"], pa.binary(3)),
}  # fmt: skip


@pytest.mark.parametrize("declared", SQL_TYPES)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_without_such_values_is_refused_by_name(tmp_path: Path, kind: str, declared: str) -> None:
    with pytest.raises(DataError, match=f"column 'c' is declared {declared}; the file has "):
        read(tmp_path, REFUSED[kind], declared)


def test_a_nested_column_beside_the_declared_ones(tmp_path: Path) -> None:
    table = pa.table({"c": [1], **REFUSED})
    pq.write_table(table, tmp_path / "c.parquet")
    with duckdb.connect() as con:
        con.execute(f"SET temp_directory='{tmp_path}'")
        feed = FeedSchema("m", "rows", {"c": "integer"})
        file = landing.fetch_file(feed, "2024-02-29", str(tmp_path / "c.parquet"), tmp_path, con)
        typed_rows.create_landed_view(con, feed, [file])
        assert con.execute("SELECT c FROM __rows").fetchall() == [(1,)]


#: For each Arrow type: values of it.
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **{t: st.integers(-(2 ** (t.bit_width - 1)), 2 ** (t.bit_width - 1) - 1)
       for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{t: st.integers(0, 2**t.bit_width - 1) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    pa.float64(): st.floats() | st.integers(-(2**54), 2**54).map(float),
    pa.float32(): st.floats(width=32) | st.integers(-(2**24), 2**24).map(float),
    pa.bool_(): st.booleans(),
    pa.decimal128(38, 0): st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
    pa.decimal128(18, 3): st.integers(-(10**18) + 1, 10**18 - 1).map(lambda i: Decimal(i).scaleb(-3)),
    pa.date32(): st.dates(),
    pa.string(): st.text(st.characters(codec="utf-8")),
    pa.large_string(): st.integers().map(str) | st.text(st.characters(codec="utf-8"), max_size=3),
    pa.binary(): st.binary(max_size=6),
    **{pa.timestamp(unit, zone): st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2250, 1, 1)).map(
        lambda moment, unit=unit: moment.replace(microsecond=0) if unit == "s" else
        moment.replace(microsecond=moment.microsecond // 1000 * 1000) if unit == "ms" else moment)
       for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Kolkata")},
}  # fmt: skip


def expected_cell(value: Any, arrow_type: pa.DataType, declared: str) -> Any:
    """The value that a cell of a column without text has as its declared type, or `BAD`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    match declared:
        case "string":
            if isinstance(value, bytes):
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    return BAD
            return str(value)
        case "integer":
            exact = (
                math.inf if not isinstance(value, float) else 2**24 if arrow_type == pa.float32() else 2**53
            )
            finite = not isinstance(value, float) or math.isfinite(value)
            whole = finite and int(value) == value and abs(value) <= exact and -(2**63) <= value < 2**63
            return int(value) if whole else BAD
        case "number":
            return float(value)
        case "boolean":
            return bool(value) if value in (0, 1) else BAD
        case "date":
            if not isinstance(value, dt.datetime):
                return value
            return value.date() if value.time() == dt.time() else BAD
    return value if isinstance(value, dt.datetime) else dt.datetime.combine(value, dt.time())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_column_of_any_writer(tmp_path: Path, data: st.DataObject) -> None:
    """Dictionaries, small and empty row groups, both format versions, bytes without statistics, no rows at all."""
    arrow_type = data.draw(st.sampled_from(sorted(VALUES, key=str)))
    values = data.draw(st.lists(st.none() | VALUES[arrow_type], max_size=12))
    array = pa.array(values, arrow_type)
    readable = column_casts.readable_types(arrow_type)
    is_text = pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)
    declared = data.draw(st.sampled_from(("string",) if is_text else readable))
    writer = data.draw(st.fixed_dictionaries({
        "use_dictionary": st.booleans(),
        "row_group_size": st.integers(1, 5),
        "version": st.sampled_from(["1.0", "2.6"]),
        "write_statistics": st.booleans(),
        "store_schema": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
    }))  # fmt: skip
    assert read(tmp_path, array, declared, **writer) == [
        expected_cell(v, arrow_type, declared) for v in values
    ]
