"""Rows: which files are refused, which rows go to quarantine, and that no page runs what is in them."""

# ruff: noqa: E501 -- a case a line reads best
from __future__ import annotations

import datetime as dt
import html
import json
import logging
import math
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import DataError
from perennial.storage import duckdb_session
from perennial.validation import validator

DAY, NEXT = "2020-03-01", "2020-03-02"
SCRIPT = "<script>alert(1)</script>"


def refused(small_model: Any, match: str) -> str:
    """The step stops with an error that names model, partition, cause and remedy; nothing is published."""
    with pytest.raises(DataError, match=match) as caught:
        small_model.run()
    text = str(caught.value)
    assert text.startswith(f"model small, partition {DAY}: ")
    assert "What to do: " in text
    assert small_model.table() == []
    return text


def test_a_missing_partition(small_model: Any) -> None:
    refused(small_model, "has not landed")


def test_zero_bytes(small_model: Any) -> None:
    small_model.land(b"")
    refused(small_model, "is empty: zero bytes")


def test_not_parquet_at_all(small_model: Any) -> None:
    small_model.land(b"PAR1 this is no parquet file PAR1")
    refused(small_model, "is not a parquet file")


def test_a_truncated_file(small_model: Any, make_rows: Any) -> None:
    path = small_model.land(make_rows())
    path.write_bytes(path.read_bytes()[:-200])
    refused(small_model, "is not a parquet file")


@pytest.mark.parametrize("column", ["amount", "phone"])
def test_damaged_pages(small_model: Any, make_rows: Any, column: str) -> None:
    """The footer is whole, the pages are not: found while reading, also in a column that no expectation looks at."""
    import pyarrow.parquet as pq

    path = small_model.land(make_rows(n=5000))
    with pq.ParquetFile(path) as file:
        index = file.schema_arrow.names.index(column)
        chunk = file.metadata.row_group(0).column(index)
        start, size = chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(bytes(content))
    refused(small_model, "cannot be read to its end")


def test_many_wide_files_are_validated_a_few_at_a_time(
    small_model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same result as together; one partition has rows that go to quarantine."""
    days = [DAY, NEXT, "2020-03-03", "2020-03-04", "2020-03-05"]
    for day in days:
        small_model.land(
            make_rows(day, n=20, **({"amount": [-1.0, -2.0] * 2 + [1.0] * 16} if day == NEXT else {})), day
        )
    validated: list[int] = []
    real = validator.validate

    def counted(con: Any, feed: Any, landed: list[Any], *more: Any) -> Any:
        validated.append(len(landed))
        return real(con, feed, landed, *more)

    monkeypatch.setattr(validator, "validate", counted)
    results = []
    for files in (100, 2):
        monkeypatch.setattr(duckdb_session, "files_at_once", lambda columns, files=files: files)
        result = small_model.run(DAY, days[-1], force=True)
        quarantined = [row["id"] for row in small_model.table("quarantine")]
        results.append((result["rows_in"], result["rows_out"], quarantined, small_model.table()))
    assert validated == [5, 2, 2, 1]
    assert results[0] == results[1]
    assert results[0][:3] == (100, 96, [f"{NEXT}-{i}" for i in range(4)])


def test_one_damaged_file_of_a_range_stops_its_partition_only(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows())
    path = small_model.land(make_rows(NEXT, n=5000), NEXT)
    content = bytearray(path.read_bytes())
    content[4:60_000] = b"\xff" * (60_000 - 4)
    path.write_bytes(bytes(content))
    small_model.land(make_rows("2020-03-03"), "2020-03-03")
    with pytest.raises(DataError, match=f"model small, partition {NEXT}: .*cannot be read to its end"):
        small_model.run(DAY, "2020-03-03")
    assert {r["partition_date"] for r in small_model.table()} == {DAY, "2020-03-03"}


def test_no_rows(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows().slice(0, 0))
    refused(
        small_model, r"expect_table_row_count_to_be_between.*: observed 0.* declare data.arrival: optional"
    )


def test_a_missing_column_names_itself_its_type_and_what_is_like_it(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows().rename_columns(["id", "at", "Amount", "count", "kind", "ok", "on", "phone"]))
    text = refused(small_model, "column 'amount' \\(number\\) is missing")
    assert "the file has 'Amount'" in text


@pytest.mark.parametrize(
    ("declared", "there", "shown"),
    [
        ("amount", " amount ", "' amount '"), ("amount", "Amount\u00a0", r"'Amount\xa0'"), ("unit price", "unit_price", ""),
        ("unit price", "UnitPrice", "'UnitPrice'"), ("amount", "\ufeffamount", r"'\ufeffamount'"),
        ("größe", "gro\u0308ße", r"'gro\u0308\xdfe'; declared is 'gr\xf6\xdfe'"), ("größe", "GRÖSSE", "'GRÖSSE'"),
        ("amount", "a\u200bmount", r"'a\u200bmount'"), ("ﬁt", "fit", "'fit'"),
    ],
)  # fmt: skip
def test_a_missing_column_names_what_looks_like_it(
    small_model: Any, make_rows: Any, declared: str, there: str, shown: str
) -> None:
    small_model.columns = {**small_model.columns, declared: "number"}
    small_model.suite = []
    table = make_rows()
    small_model.land(table.append_column(there, table["amount"]).drop_columns(["amount"]))
    text = refused(small_model, "is missing")
    assert f"column {declared!r} (number) is missing" in text
    assert ("the file has" in text.split(repr(declared))[1]) == bool(shown) and shown in text


@pytest.mark.data_profile
def test_a_column_that_is_not_declared_is_mentioned(
    small_model: Any, make_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for day in (DAY, NEXT):
        small_model.land(make_rows(day).append_column("<new>", pa.array([[1]] * 40)), day)
    with caplog.at_level("INFO", "perennial"):
        small_model.run(DAY, NEXT)
    mentions = [r.getMessage() for r in caplog.records if "does not list" in r.getMessage()]
    assert mentions == [
        "Model small: the files have columns that data.columns does not list: '<new>' (list<element: int64>)."
    ]
    profile = json.loads(small_model.report(f"{DAY}..{NEXT}", "json", "profile"))
    assert profile["perennial"]["undeclared_columns"] == {"<new>": "list<element: int64>"}
    page = small_model.report(f"{DAY}..{NEXT}", "html", "profile")
    assert (
        "Columns that the spec does not declare" in page and "&lt;new&gt;: list&lt;element: int64&gt;" in page
    )


def test_retyped_columns_are_all_named(small_model: Any, make_rows: Any) -> None:
    dates = make_rows()["on"]
    small_model.land(make_rows(amount=[[1.5]] * 40, count=dates, ok=dates, kind=[1] * 40))
    text = refused(small_model, "column 'amount' is declared number; the file has list<element: double>")
    assert "column 'count' is declared integer; the file has date32" in text
    assert "column 'ok' is declared boolean; the file has date32" in text
    assert "column 'kind' is declared string; the file has int64" in text


def test_extra_columns_follow_the_spec(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows(surprise=[1] * 40))
    assert small_model.run()["rows_out"] == 40
    assert "surprise" not in small_model.table()[0]
    small_model.changes = {"extra_columns": "stop"}
    with pytest.raises(DataError, match="column 'surprise' is not declared"):
        small_model.run()


@pytest.mark.data_profile
def test_types_that_hold_the_same_are_taken(small_model: Any, make_rows: Any) -> None:
    """Dictionaries, decimals, small integers, other units and zones of time, a column without a single value."""
    import decimal

    import pyarrow as pa

    zone = dt.timezone(dt.timedelta(hours=2))
    stamps = pa.array([dt.datetime(2020, 3, 1, 2, 0, tzinfo=zone)] * 40, pa.timestamp("ms", "+02:00"))
    small_model.land(make_rows(
        kind=pa.array(["a"] * 40).dictionary_encode(), amount=[decimal.Decimal("1.5")] * 40, at=stamps,
        count=pa.array([7] * 40, pa.int8()), ok=pa.nulls(40),
    ))  # fmt: skip
    assert small_model.run()["rows_out"] == 40
    row = small_model.table()[0]
    assert (row["amount"], row["count"], row["kind"], row["ok"]) == (1.5, 7, "a", None)
    assert row["at"] == dt.datetime(2020, 3, 1, 0, 0)


@pytest.mark.data_profile
def test_nulls_nan_and_infinities(small_model: Any, make_rows: Any) -> None:
    amounts = [float(i) for i in range(40)]
    amounts[0:4] = [math.nan, math.inf, -math.inf, None]  # type: ignore[list-item]
    small_model.suite = [{"type": "expect_column_mean_to_be_between", "kwargs": {"column": "amount", "max_value": 1000}},
                   {"type": "expect_column_proportion_of_non_null_values_to_be_between",
                    "kwargs": {"column": "amount", "min_value": 0.95, "max_value": 0.95}}]  # fmt: skip
    small_model.land(make_rows(amount=amounts))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    assert small_model.reasons() == ["not a finite number: amount"]
    assert [json.loads(r["row_values"])["amount"] for r in small_model.table("quarantine")] == ["inf", "-inf"]
    published = {r["id"]: r["amount"] for r in small_model.table()}
    assert published[f"{DAY}-0"] is None and published[f"{DAY}-3"] is None, "NaN is a missing value"


def test_null_keys_and_null_times(small_model: Any, make_rows: Any) -> None:
    table = make_rows()
    ids, at = table.column("id").to_pylist(), table.column("at").to_pylist()
    ids[4], ids[5], at[6] = None, None, None
    small_model.land(make_rows(id=ids, at=at))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (37, 3)
    assert small_model.reasons() == [
        "expect_column_values_to_not_be_null(at)",
        "expect_column_values_to_not_be_null(id)",
    ]


def test_of_duplicate_keys_the_first_stays(small_model: Any, make_rows: Any) -> None:
    ids = [f"k{i}" for i in range(40)]
    ids[10] = ids[20] = ids[30] = "same"
    small_model.land(make_rows(id=ids))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    assert [r["amount"] for r in small_model.table() if r["id"] == "same"] == [10.0]
    assert small_model.reasons() == ["expect_column_values_to_be_unique(id)"]
    judged = [r for r in json.loads(small_model.report(ending="json"))["results"]
              if r["expectation_config"]["type"] == "expect_column_values_to_be_unique"]  # fmt: skip
    assert judged[0]["result"]["unexpected_count"] == 3, "Great Expectations counts all that share the key"


def test_duplicates_of_a_compound_key(small_model: Any, make_rows: Any) -> None:
    small_model.changes, small_model.label = {"key": ["kind", "count"]}, {"expression": "ok"}
    counts = list(range(40))
    counts[2] = 0  # both of kind "b"
    small_model.land(make_rows(count=counts))
    result = small_model.run()
    assert result["quarantined"] == 1
    assert small_model.reasons() == ["expect_compound_columns_to_be_unique(kind, count)"]


@pytest.mark.data_profile
def test_a_text_of_ten_megabytes(small_model: Any, make_rows: Any) -> None:
    kinds = ["a"] * 40
    kinds[3] = "x" * 10_000_000
    small_model.suite = [
        {"type": "expect_column_value_lengths_to_be_between", "kwargs": {"column": "kind", "max_value": 100}}
    ]
    small_model.land(make_rows(kind=kinds))
    assert small_model.run()["quarantined"] == 1
    shown = json.loads(small_model.table("quarantine")[0]["row_values"])["kind"]
    assert len(shown) < 1100 and shown.endswith("… (10000000 characters)")
    assert len(small_model.report()) < 300_000 and len(small_model.report(ending="json")) < 300_000
    small_model.suite = []
    assert small_model.run()["rows_out"] == 40, "without an expectation against it, it is data"
    assert max(len(r["kind"]) for r in small_model.table()) == 10_000_000


@pytest.mark.data_profile
def test_dates_in_2999(small_model: Any, make_rows: Any) -> None:
    table = make_rows()
    at, on = table.column("at").to_pylist(), table.column("on").to_pylist()
    at[3], on[4] = dt.datetime(2999, 12, 31, 23, 59), dt.date(2999, 12, 31)
    small_model.land(make_rows(at=at, on=on))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (39, 1)
    assert small_model.reasons() == ["later than its partition: at"]
    assert dt.date(2999, 12, 31) in [r["on"] for r in small_model.table()], (
        "a date that no rule is about is data"
    )
    assert "2999" in small_model.report()


def test_formulas_stay_what_they_are(small_model: Any, make_rows: Any) -> None:
    formula = '=HYPERLINK("http://example.org/"&A1,"click")'
    small_model.land(make_rows(kind=[formula] * 40))
    small_model.run()
    assert {r["kind"] for r in small_model.table()} == {formula}
    page = small_model.report()
    assert html.escape(formula) in page and formula not in page


@pytest.mark.data_profile
def test_scripts_in_values_and_names_are_text_in_every_page(small_model: Any, make_rows: Any) -> None:
    name = f"{SCRIPT}\"'$x"
    small_model.columns = small_model.columns | {name: "string", "</script>": "number"}
    evil = ["</script>" + SCRIPT, '"><img src=x onerror=alert(1)>', "$column ${x} $$", "&lt;"]
    small_model.suite = [
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": name, "value_set": [SCRIPT]},
         "severity": "warning", "meta": {"notes": SCRIPT}},
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "kind", "regex": "^(?:<b>)?$"}, "severity": "warning"},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": name, "value_set": [SCRIPT]},
         "severity": "warning"},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "</script>", "min_value": 3}},
    ]  # fmt: skip
    small_model.land(
        make_rows(**{name: evil * 10, "kind": evil * 10, "</script>": [float(i) for i in range(40)]})
    )
    assert small_model.run()["quarantined"] == 3
    for kind in ("validation", "profile"):
        page = small_model.report(kind=kind)
        assert SCRIPT not in page, kind
        assert "<img src=x" not in page and "onerror=alert(1)>" not in page.replace("&gt;", "").replace(
            "\\u003e", ""
        ), kind
        assert "alert(1)" in page, "shown as text"
    page = small_model.report()
    assert "<script" not in page.lower()
    assert "http://" not in page and "https://" not in page.replace("https://greatexpectations.io", "")


@pytest.mark.data_profile
def test_personal_data_is_in_no_report_message_or_log(
    small_model: Any, make_rows: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    small_model.suite = [
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "phone", "regex": "^\\+49 170 00000"}},
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "phone", "value_set": ["+40"]}, "severity": "info"},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": "phone", "value_set": ["+1"]},
         "severity": "warning"},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "phone"}},
    ]  # fmt: skip
    small_model.land(make_rows(phone=[f"+49 170 00{i % 30:04d}" for i in range(40)]))
    with pytest.raises(DataError) as caught:
        small_model.run()
    small_model.suite = small_model.suite[:1]
    small_model.changes = {"quarantine_limit": 1.0}
    small_model.run()
    texts = [str(caught.value), caplog.text, *capfd.readouterr()]
    texts += [p.read_text() for p in (small_model.lake / "reports").rglob("*.*")]
    texts += [p.read_text() for p in (small_model.lake / "manifests").rglob("*.json")]
    texts += [r["row_values"] for r in small_model.table("quarantine")]
    assert len(texts) > 8
    assert not [text[:100] for text in texts if "170 00" in text.replace("\\+49 170 00000", "")]


CSV = "id,at,amount,count,kind,ok,on,phone\n"


def csv_row(i: int, **changes: str) -> str:
    cells = {"id": f"r{i}", "at": "2020-03-01T10:00:00+02:00", "amount": f"{i}.5", "count": str(i), "kind": "a",
             "ok": "true", "on": "2020-03-01", "phone": "1"} | changes  # fmt: skip
    return ",".join(cells.values()) + "\n"


@pytest.fixture
def text_model(small_model: Any) -> Any:
    small_model.changes = {"source": "{landing}/rows/{date}.csv"}
    return small_model


def test_text_files_are_read_as_the_declared_types(text_model: Any) -> None:
    text_model.land(
        CSV + "".join(csv_row(i) for i in range(20)) + csv_row(20, amount="", count="NA", kind="", ok=""),
        ending="csv",
    )
    assert text_model.run()["rows_out"] == 21
    rows = {r["id"]: r for r in text_model.table()}
    assert rows["r3"]["at"] == dt.datetime(2020, 3, 1, 8, 0) and rows["r3"]["amount"] == 3.5
    assert rows["r3"]["on"] == dt.date(2020, 3, 1) and rows["r3"]["ok"] is True
    assert [rows["r20"][c] for c in ("amount", "count", "kind", "ok")] == [None, None, None, None]


def test_rows_with_cells_that_cannot_be_cast_go_to_quarantine(text_model: Any) -> None:
    bad = [
        csv_row(30, count="1.5"),
        csv_row(31, amount="many"),
        csv_row(32, on="01.03.2020"),
        csv_row(33, ok="perhaps"),
    ]
    text_model.land(CSV + "".join(csv_row(i) for i in range(20)) + "".join(bad), ending="csv")
    result = text_model.run()
    assert (result["rows_out"], result["quarantined"]) == (20, 4)
    assert text_model.reasons() == [
        "not readable as boolean: ok", "not readable as date: on", "not readable as integer: count",
        "not readable as number: amount",
    ]  # fmt: skip
    values = {r["id"]: json.loads(r["row_values"]) for r in text_model.table("quarantine")}
    assert values["r31"]["amount"] == "many" and values["r30"]["count"] == "1.5"


def test_a_retyped_text_column_stops_the_partition(text_model: Any) -> None:
    text_model.land(CSV + "".join(csv_row(i, amount="many") for i in range(20)), ending="csv")
    refused(text_model, "20 × not readable as number: amount")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (CSV + csv_row(0) + "r1,2020-03-01\n", "is malformed"),
        (CSV + csv_row(0) + csv_row(1).strip() + ",more,cells\n", "is malformed"),
        (CSV + csv_row(0) + 'r1,"unclosed\n', "is malformed"),
        (b"\xff\xfe\x00\x00", "is not readable text"),
        (CSV.encode() + csv_row(0, kind="caf\u00e9").encode("latin-1"), "is malformed|is not readable text"),
        (CSV.replace("kind", "id") + csv_row(0), "has a duplicate column name"),
        (CSV.replace("kind", "KIND") + csv_row(0), "column 'kind' .string. is missing; the file has 'KIND'"),
        (CSV, "observed 0, expected min_value 2"),
    ],
)
def test_malformed_text(text_model: Any, content: Any, match: str) -> None:
    text_model.land(content, ending="csv")
    refused(text_model, match)


def test_a_malformed_line_is_not_quoted(text_model: Any) -> None:
    text_model.land(CSV + csv_row(0) + csv_row(1, phone="+49 170 555").strip() + ",x\n", ending="csv")
    assert "555" not in refused(text_model, "is malformed")


def test_ten_megabytes_in_a_text_file(text_model: Any) -> None:
    text_model.land(CSV + csv_row(0) + csv_row(1, kind="x" * 10_000_000), ending="csv")
    assert text_model.run()["rows_out"] == 2
