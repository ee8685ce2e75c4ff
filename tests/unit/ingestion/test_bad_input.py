"""Bad input: what is refused, what is put aside, and that it cannot hurt whoever reads about it."""

# ruff: noqa: E501 -- a case a line reads best
from __future__ import annotations

import datetime as dt
import html
import json
import logging
import math
from typing import Any

import pytest

from perennial.core.errors import DataError

DAY, NEXT = "2020-03-01", "2020-03-02"
SCRIPT = "<script>alert(1)</script>"


def refused(place: Any, match: str) -> str:
    """The step stops with an error that names model, partition, cause and remedy; nothing is published."""
    with pytest.raises(DataError, match=match) as caught:
        place.run()
    text = str(caught.value)
    assert text.startswith(f"model small, partition {DAY}: ")
    assert "What to do: " in text
    assert place.table() == []
    return text


def test_a_missing_partition(place: Any) -> None:
    refused(place, "has not landed")


def test_zero_bytes(place: Any) -> None:
    place.land(b"")
    refused(place, "is empty: zero bytes")


def test_not_parquet_at_all(place: Any) -> None:
    place.land(b"PAR1 this is no parquet file PAR1")
    refused(place, "is not a parquet file")


def test_a_truncated_file(place: Any, make_rows: Any) -> None:
    path = place.land(make_rows())
    path.write_bytes(path.read_bytes()[:-200])
    refused(place, "is not a parquet file")


@pytest.mark.parametrize("column", ["amount", "phone"])
def test_damaged_pages(place: Any, make_rows: Any, column: str) -> None:
    """The footer is whole, the pages are not: found while reading, also in a column that no expectation looks at."""
    import pyarrow.parquet as pq

    path = place.land(make_rows(n=5000))
    with pq.ParquetFile(path) as file:
        index = file.schema_arrow.names.index(column)
        chunk = file.metadata.row_group(0).column(index)
        start, size = chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(bytes(content))
    refused(place, "cannot be read to its end")


def test_one_damaged_night_of_a_range_stops_that_night_alone(place: Any, make_rows: Any) -> None:
    place.land(make_rows())
    path = place.land(make_rows(NEXT, n=5000), NEXT)
    content = bytearray(path.read_bytes())
    content[4:60_000] = b"\xff" * (60_000 - 4)
    path.write_bytes(bytes(content))
    place.land(make_rows("2020-03-03"), "2020-03-03")
    with pytest.raises(DataError, match=f"model small, partition {NEXT}: .*cannot be read to its end"):
        place.run(DAY, "2020-03-03")
    assert {r["partition_date"] for r in place.table()} == {DAY, "2020-03-03"}


def test_no_rows(place: Any, make_rows: Any) -> None:
    place.land(make_rows().slice(0, 0))
    refused(place, "holds no rows")


def test_a_missing_column_names_itself_its_type_and_what_is_like_it(place: Any, make_rows: Any) -> None:
    place.land(make_rows().rename_columns(["id", "at", "Amount", "count", "kind", "ok", "on", "phone"]))
    text = refused(place, "column 'amount' \\(number\\) is missing")
    assert "the file has 'Amount'" in text


def test_retyped_columns_are_all_named(place: Any, make_rows: Any) -> None:
    place.land(make_rows(amount=["1"] * 40, count=[1.5] * 40, ok=[1] * 40))
    text = refused(place, "column 'amount' is declared number; the file has string")
    assert "column 'count' is declared integer; the file has double" in text
    assert "column 'ok' is declared boolean; the file has int64" in text


def test_extra_columns_follow_the_spec(place: Any, make_rows: Any) -> None:
    place.land(make_rows(surprise=[1] * 40))
    assert place.run()["rows_out"] == 40
    assert "surprise" not in place.table()[0]
    place.changes = {"extra_columns": "stop"}
    with pytest.raises(DataError, match="column 'surprise' is not declared"):
        place.run()


@pytest.mark.summary
def test_types_that_hold_the_same_are_taken(place: Any, make_rows: Any) -> None:
    """Dictionaries, decimals, small integers, other units and zones of time, a column without a single value."""
    import decimal

    import pyarrow as pa

    zone = dt.timezone(dt.timedelta(hours=2))
    stamps = pa.array([dt.datetime(2020, 3, 1, 2, 0, tzinfo=zone)] * 40, pa.timestamp("ms", "+02:00"))
    place.land(make_rows(
        kind=pa.array(["a"] * 40).dictionary_encode(), amount=[decimal.Decimal("1.5")] * 40, at=stamps,
        count=pa.array([7] * 40, pa.int8()), ok=pa.nulls(40),
    ))  # fmt: skip
    assert place.run()["rows_out"] == 40
    row = place.table()[0]
    assert (row["amount"], row["count"], row["kind"], row["ok"]) == (1.5, 7, "a", None)
    assert row["at"] == dt.datetime(2020, 3, 1, 0, 0)


@pytest.mark.summary
def test_nulls_nan_and_infinities(place: Any, make_rows: Any) -> None:
    amounts = [float(i) for i in range(40)]
    amounts[0:4] = [math.nan, math.inf, -math.inf, None]  # type: ignore[list-item]
    place.suite = [{"type": "expect_column_mean_to_be_between", "kwargs": {"column": "amount", "max_value": 1000}},
                   {"type": "expect_column_proportion_of_non_null_values_to_be_between",
                    "kwargs": {"column": "amount", "min_value": 0.95, "max_value": 0.95}}]  # fmt: skip
    place.land(make_rows(amount=amounts))
    result = place.run()
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    assert place.reasons() == ["not a finite number: amount"]
    assert [json.loads(r["row_values"])["amount"] for r in place.table("quarantine")] == ["inf", "-inf"]
    published = {r["id"]: r["amount"] for r in place.table()}
    assert published[f"{DAY}-0"] is None and published[f"{DAY}-3"] is None, "NaN is a missing value"


def test_null_keys_and_null_times(place: Any, make_rows: Any) -> None:
    table = make_rows()
    ids, at = table.column("id").to_pylist(), table.column("at").to_pylist()
    ids[4], ids[5], at[6] = None, None, None
    place.land(make_rows(id=ids, at=at))
    result = place.run()
    assert (result["rows_out"], result["quarantined"]) == (37, 3)
    assert place.reasons() == [
        "expect_column_values_to_not_be_null(at)",
        "expect_column_values_to_not_be_null(id)",
    ]


def test_of_duplicate_keys_the_first_stays(place: Any, make_rows: Any) -> None:
    ids = [f"k{i}" for i in range(40)]
    ids[10] = ids[20] = ids[30] = "same"
    place.land(make_rows(id=ids))
    result = place.run()
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    assert [r["amount"] for r in place.table() if r["id"] == "same"] == [10.0]
    assert place.reasons() == ["expect_column_values_to_be_unique(id)"]
    judged = [r for r in json.loads(place.report(ending="json"))["results"]
              if r["expectation_config"]["type"] == "expect_column_values_to_be_unique"]  # fmt: skip
    assert judged[0]["result"]["unexpected_count"] == 3, "Great Expectations counts all that share the key"


def test_duplicates_of_a_compound_key(place: Any, make_rows: Any) -> None:
    place.changes, place.label = {"key": ["kind", "count"]}, {"expression": "ok"}
    counts = list(range(40))
    counts[2] = 0  # both of kind "b"
    place.land(make_rows(count=counts))
    result = place.run()
    assert result["quarantined"] == 1
    assert place.reasons() == ["expect_compound_columns_to_be_unique(kind, count)"]


@pytest.mark.summary
def test_a_text_of_ten_megabytes(place: Any, make_rows: Any) -> None:
    kinds = ["a"] * 40
    kinds[3] = "x" * 10_000_000
    place.suite = [
        {"type": "expect_column_value_lengths_to_be_between", "kwargs": {"column": "kind", "max_value": 100}}
    ]
    place.land(make_rows(kind=kinds))
    assert place.run()["quarantined"] == 1
    kept = json.loads(place.table("quarantine")[0]["row_values"])["kind"]
    assert len(kept) < 1100 and kept.endswith("… (10000000 characters)")
    assert len(place.report()) < 300_000 and len(place.report(ending="json")) < 300_000
    place.suite = []
    assert place.run()["rows_out"] == 40, "without an expectation against it, it is data"
    assert max(len(r["kind"]) for r in place.table()) == 10_000_000


@pytest.mark.summary
def test_dates_in_2999(place: Any, make_rows: Any) -> None:
    table = make_rows()
    at, on = table.column("at").to_pylist(), table.column("on").to_pylist()
    at[3], on[4] = dt.datetime(2999, 12, 31, 23, 59), dt.date(2999, 12, 31)
    place.land(make_rows(at=at, on=on))
    result = place.run()
    assert (result["rows_out"], result["quarantined"]) == (39, 1)
    assert place.reasons() == ["later than its partition: at"]
    assert dt.date(2999, 12, 31) in [r["on"] for r in place.table()], "a date that no rule is about is data"
    assert "2999" in place.report()


def test_formulas_stay_what_they_are(place: Any, make_rows: Any) -> None:
    formula = '=HYPERLINK("http://example.org/"&A1,"click")'
    place.land(make_rows(kind=[formula] * 40))
    place.run()
    assert {r["kind"] for r in place.table()} == {formula}
    page = place.report()
    assert html.escape(formula) in page and formula not in page


@pytest.mark.summary
def test_scripts_in_values_and_names_are_text_in_every_page(place: Any, make_rows: Any) -> None:
    name = f"{SCRIPT}\"'$x"
    place.columns = place.columns | {name: "string", "</script>": "number"}
    evil = ["</script>" + SCRIPT, '"><img src=x onerror=alert(1)>', "$column ${x} $$", "&lt;"]
    place.suite = [
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": name, "value_set": [SCRIPT]},
         "severity": "warning", "meta": {"notes": SCRIPT}},
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "kind", "regex": "^(?:<b>)?$"}, "severity": "warning"},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": name, "value_set": [SCRIPT]},
         "severity": "warning"},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "</script>", "min_value": 3}},
    ]  # fmt: skip
    place.land(make_rows(**{name: evil * 10, "kind": evil * 10, "</script>": [float(i) for i in range(40)]}))
    assert place.run()["quarantined"] == 3
    for kind in ("validation", "profile"):
        page = place.report(kind=kind)
        assert SCRIPT not in page, kind
        assert "<img src=x" not in page and "onerror=alert(1)>" not in page.replace("&gt;", "").replace(
            "\\u003e", ""
        ), kind
        assert "alert(1)" in page, "shown as text"
    page = place.report()
    assert "<script" not in page.lower()
    assert "http://" not in page and "https://" not in page.replace("https://greatexpectations.io", "")


@pytest.mark.summary
def test_personal_data_is_in_no_report_message_or_log(
    place: Any, make_rows: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    place.suite = [
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "phone", "regex": "^\\+49 170 00000"}},
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "phone", "value_set": ["+40"]}, "severity": "info"},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": "phone", "value_set": ["+1"]},
         "severity": "warning"},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "phone"}},
    ]  # fmt: skip
    place.land(make_rows(phone=[f"+49 170 00{i % 30:04d}" for i in range(40)]))
    with pytest.raises(DataError) as caught:
        place.run()
    place.suite = place.suite[:1]
    place.changes = {"quarantine_limit": 1.0}
    place.run()
    seen = [str(caught.value), caplog.text, *capfd.readouterr()]
    seen += [p.read_text() for p in (place.lake / "reports").rglob("*.*")]
    seen += [p.read_text() for p in (place.lake / "manifests").rglob("*.json")]
    seen += [r["row_values"] for r in place.table("quarantine")]
    assert len(seen) > 8
    assert not [text[:100] for text in seen if "170 00" in text.replace("\\+49 170 00000", "")]


CSV = "id,at,amount,count,kind,ok,on,phone\n"


def csv_row(i: int, **changes: str) -> str:
    cells = {"id": f"r{i}", "at": "2020-03-01T10:00:00+02:00", "amount": f"{i}.5", "count": str(i), "kind": "a",
             "ok": "true", "on": "2020-03-01", "phone": "1"} | changes  # fmt: skip
    return ",".join(cells.values()) + "\n"


@pytest.fixture
def text_place(place: Any) -> Any:
    place.changes = {"source": "{landing}/rows/{date}.csv"}
    return place


def test_text_files_are_read_as_the_declared_types(text_place: Any) -> None:
    text_place.land(
        CSV + "".join(csv_row(i) for i in range(20)) + csv_row(20, amount="", count="NA", kind="", ok=""),
        ending="csv",
    )
    assert text_place.run()["rows_out"] == 21
    rows = {r["id"]: r for r in text_place.table()}
    assert rows["r3"]["at"] == dt.datetime(2020, 3, 1, 8, 0) and rows["r3"]["amount"] == 3.5
    assert rows["r3"]["on"] == dt.date(2020, 3, 1) and rows["r3"]["ok"] is True
    assert [rows["r20"][c] for c in ("amount", "count", "kind", "ok")] == [None, None, None, None]


def test_cells_that_cannot_be_read_put_their_row_aside(text_place: Any) -> None:
    bad = [
        csv_row(30, count="1.5"),
        csv_row(31, amount="many"),
        csv_row(32, on="01.03.2020"),
        csv_row(33, ok="perhaps"),
    ]
    text_place.land(CSV + "".join(csv_row(i) for i in range(20)) + "".join(bad), ending="csv")
    result = text_place.run()
    assert (result["rows_out"], result["quarantined"]) == (20, 4)
    assert text_place.reasons() == [
        "not readable as boolean: ok", "not readable as date: on", "not readable as integer: count",
        "not readable as number: amount",
    ]  # fmt: skip
    values = {r["id"]: json.loads(r["row_values"]) for r in text_place.table("quarantine")}
    assert values["r31"]["amount"] == "many" and values["r30"]["count"] == "1.5"


def test_a_retyped_text_column_stops_the_partition(text_place: Any) -> None:
    text_place.land(CSV + "".join(csv_row(i, amount="many") for i in range(20)), ending="csv")
    refused(text_place, "20 × not readable as number: amount")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (CSV + csv_row(0) + "r1,2020-03-01\n", "is malformed"),
        (CSV + csv_row(0) + csv_row(1).strip() + ",more,cells\n", "is malformed"),
        (CSV + csv_row(0) + 'r1,"unclosed\n', "is malformed"),
        (b"\xff\xfe\x00\x00", "is not readable text"),
        (CSV.encode() + csv_row(0, kind="caf\u00e9").encode("latin-1"), "is malformed|is not readable text"),
        (CSV.replace("kind", "id") + csv_row(0), "has a duplicate or an empty column name"),
        (CSV.replace("kind", "KIND") + csv_row(0), "column 'kind' .string. is missing; the file has 'KIND'"),
        (CSV, "holds no rows"),
    ],
)
def test_malformed_text(text_place: Any, content: Any, match: str) -> None:
    text_place.land(content, ending="csv")
    refused(text_place, match)


def test_a_malformed_line_is_not_quoted(text_place: Any) -> None:
    text_place.land(CSV + csv_row(0) + csv_row(1, phone="+49 170 555").strip() + ",x\n", ending="csv")
    assert "555" not in refused(text_place, "is malformed")


def test_ten_megabytes_in_a_text_file(text_place: Any) -> None:
    text_place.land(CSV + csv_row(0) + csv_row(1, kind="x" * 10_000_000), ending="csv")
    assert text_place.run()["rows_out"] == 2


def test_compressed_text(place: Any) -> None:
    import gzip

    place.changes = {"source": "{landing}/rows/{date}.csv.gz"}
    place.land(gzip.compress((CSV + csv_row(0) + csv_row(1)).encode()), ending="csv.gz")
    assert place.run()["rows_out"] == 2
    place.land(b"not gzip", NEXT, ending="csv.gz")
    with pytest.raises(DataError, match="is not readable text"):
        place.run(NEXT)
