"""`perennial new` finds out how a text file is written, and the spec that it writes reads the file."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import tempfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from perennial.cli.new import templates
from perennial.cli.new.samples import sample_reader
from perennial.cli.new.samples._cell_sniffer import NULL_TEXTS
from perennial.cli.new.samples.choices import ReadingChoices
from perennial.core.errors import PerennialError
from perennial.feeds.text_casts import TextFormat
from support.feeds.text_tables import TextTable, text_tables


def read(
    content: bytes | dict[str, bytes], name: str = "rows.csv"
) -> tuple[dict[str, str], list[tuple[Any, ...]], TextFormat, str]:
    """Kinds, rows, format and remarks of a sample."""
    files = content if isinstance(content, dict) else {name: content}
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            (Path(folder) / file).write_bytes(data)
        with sample_reader.open_sample(
            [Path(folder) / file for file in files], f"{folder}/landing"
        ) as sample:
            kinds = {name: column.kind for name, column in sample.columns.items()}
            cells = ", ".join(f'"{name}"' for name in kinds)
            rows = sample.query(f"SELECT {cells or 'NULL'} FROM __rows ORDER BY __file, __row")
            remarks = [*sample.remarks, *(undecided.remark for undecided in sample.undecided)]
            return kinds, rows, sample.text_format, " ".join(remarks)


def inferred(
    text: str, encoding: str = "utf-8"
) -> tuple[dict[str, str], list[tuple[Any, ...]], dict[str, Any]]:
    """Kinds, rows and what of the format is not as by default."""
    kinds, rows, text_format, _ = read(text.encode(encoding))
    default = TextFormat()
    return kinds, rows, {k: v for k, v in vars(text_format).items() if v != getattr(default, k)}


def test_a_german_file() -> None:
    text = "Kunde;Betrag;Datum;Aktiv;Anzahl\nMüller, A;1.234,50;31.01.2024;J;-\nGroß;-0,5;01.02.2024;N;12\n"
    text += ";99;03.02.2024;J;1.000\n"
    kinds, rows, text_format = inferred(text, "cp1252")
    assert kinds == {
        "Kunde": "string",
        "Betrag": "number",
        "Datum": "date",
        "Aktiv": "boolean",
        "Anzahl": "integer",
    }
    assert rows == [
        ("Müller, A", 1234.5, dt.date(2024, 1, 31), True, None), ("Groß", -0.5, dt.date(2024, 2, 1), False, 12),
        (None, 99.0, dt.date(2024, 2, 3), True, 1000),
    ]  # fmt: skip
    assert text_format == {
        "delimiter": ";", "encoding": "cp1252", "decimal": ",", "thousands": ".", "nulls": ("-",),
        "date_format": ("%d.%m.%Y",), "true_values": ("j",), "false_values": ("n",),
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_encodings_and_line_ends(encoding: str, line_end: str) -> None:
    text = line_end.join(["name\tx", "é\t1", "漢字\t2", '"a\tb"\t3', ""])
    kinds, rows, text_format = inferred(text, encoding)
    assert kinds == {"name": "string", "x": "integer"}
    assert rows == [("é", 1), ("漢字", 2), ("a\tb", 3)]
    expected = {"delimiter": "tab"} | ({} if encoding == "utf-8-sig" else {"encoding": encoding})
    assert text_format == expected


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1252", ["Müller", "Größe", "Café", "€uro", "señor"]),
        ("latin-1", ["Müller", "Größe", "Café", "señor"]),
        ("cp1251", ["Москва", "Санкт-Петербург", "привет", "Новосибирск"]),
        ("koi8-r", ["Москва", "Санкт-Петербург", "привет", "Новосибирск"]),
        ("gb18030", ["北京", "上海市", "广州", "深圳", "你好世界"]),
        ("cp850", ["Müller", "Größe", "Jäger", "schön"]),
        ("cp1250", ["Łódź", "żółw", "miłość", "źdźbło", "święto", "książka"]),
    ],
)  # fmt: skip
def test_legacy_encodings_are_guessed_with_a_remark(encoding: str, words: list[str]) -> None:
    kinds, rows, _, remarks = read(
        ("id,name\n" + "".join(f"{i},{w}\n" for i, w in enumerate(words))).encode(encoding)
    )
    assert kinds == {"id": "integer", "name": "string"}
    assert [name for _, name in rows] == words
    assert "the files are not UTF-8" in remarks


D, T = dt.date, dt.datetime
EPOCHS = [T(2023, 11, 14, 22, 13, 20), T(2023, 11, 14, 22, 13, 21)]


@pytest.mark.parametrize(
    ("texts", "values", "formats"),
    [
        (["31/01/2024", "01/02/2024"], [D(2024, 1, 31), D(2024, 2, 1)], "%d/%m/%Y"),
        (["01/31/2024", "02/01/2024"], [D(2024, 1, 31), D(2024, 2, 1)], "%m/%d/%Y"),
        (["1/31/24 1:05 PM", "2/1/24 11:59 AM"], [T(2024, 1, 31, 13, 5), T(2024, 2, 1, 11, 59)], "%m/%d/%y %I:%M %p"),
        (["3-Jan-2024", "28-Feb-2024"], [D(2024, 1, 3), D(2024, 2, 28)], "%d-%b-%Y"),
        (["January 3, 2024", "May 28, 2024"], [D(2024, 1, 3), D(2024, 5, 28)], "%B %d, %Y"),
        (["May 3, 2024", "June 28, 2024"], [D(2024, 5, 3), D(2024, 6, 28)], "%B %d, %Y"),
        (["20240131", "20240201"], [D(2024, 1, 31), D(2024, 2, 1)], "%Y%m%d"),
        (["1700000000", "1700000001"], EPOCHS, "epoch_seconds"),
        (["1700000000000", "1700000001000"], EPOCHS, "epoch_milliseconds"),
        (["31.01.2024 10:00:00.5", "01.02.2024 11:00:00"], [T(2024, 1, 31, 10, 0, 0, 500000), T(2024, 2, 1, 11)], None),
        (["2024-01-31T10:00:00+02:00", "2024-02-01T10:00:00Z"], [T(2024, 1, 31, 8), T(2024, 2, 1, 10)], "iso"),
        (["31 Jan 2024 10:00 +0200", "1 Feb 2024 10:00 -0100"], [T(2024, 1, 31, 8), T(2024, 2, 1, 11)],
         "%d %b %Y %H:%M %z"),
        (["31/Jan/2024:10:00:00 +0000", "01/Feb/2024:10:00:00 +0000"], [T(2024, 1, 31, 10), T(2024, 2, 1, 10)],
         "%d/%b/%Y:%H:%M:%S %z"),
        (["2024-1-5", "2024-11-25"], [D(2024, 1, 5), D(2024, 11, 25)], "%Y-%m-%d"),
        (["Wed Jan 31 10:00:00 2024", "Thu Feb 1 10:00:00 2024"], [T(2024, 1, 31, 10), T(2024, 2, 1, 10)],
         "%a %b %d %H:%M:%S %Y"),
    ],
)  # fmt: skip
def test_dates(texts: list[str], values: list[Any], formats: str | None) -> None:
    kinds, rows, text_format = inferred(
        "x|order_date\n" + "".join(f"{i}|{text}\n" for i, text in enumerate(texts))
    )
    assert [date for _, date in rows] == values
    assert kinds["order_date"] == ("timestamp" if isinstance(values[0], dt.datetime) else "date")
    if formats:
        assert text_format.get("date_format", ("iso",)) == (formats,)


def test_the_day_and_the_month() -> None:
    ambiguous = [f"{m:02}/{d:02}/2024" for m, d in ((1, 2), (3, 4), (5, 6))]
    _, rows, text_format, remarks = read("\n".join(["d,x", *(f"{t},1" for t in ambiguous)]).encode())
    assert text_format.date_format == ("%m/%d/%Y",) and rows[0][0] == D(2024, 1, 2)
    assert (
        "01/02/2024 is 2 January 2024" in remarks
        and "--date-order day: 01/02/2024 is 1 February 2024" in remarks
    )
    # another column of the file decides
    both = read("\n".join(["d,e", *(f"{t},25/12/2023" for t in ambiguous)]).encode())
    assert both[1][0] == (D(2024, 2, 1), D(2023, 12, 25))
    # days in a row are of one month
    daily = read("\n".join(["d,x", *(f"{d:02}/03/2024,1" for d in range(1, 11))]).encode())
    assert daily[1][-1][0] == D(2024, 3, 10)
    # the dates of the files decide
    named = read({"2024-02-01.csv": b"d,x\n01/02/2024,1\n", "2024-02-03.csv": b"d,x\n03/02/2024,1\n"})
    assert [d for d, _ in named[1]] == [D(2024, 2, 1), D(2024, 2, 3)]


def test_a_late_cell_decides() -> None:
    lines = [f"{i},01/02/2024,{i},1.5,true,7" for i in range(5000)] + ['x,13/02/2024,1.5,"1,5",maybe,007']
    kinds, rows, text_format, _ = read("\n".join(["a,b,c,d,e,f", *lines]).encode())
    assert kinds == {"a": "string", "b": "date", "c": "number", "d": "string", "e": "string", "f": "string"}
    assert rows[0][1] == D(2024, 2, 1) and text_format.date_format == ("%d/%m/%Y",)
    assert rows[-1] == ("x", D(2024, 2, 13), 1.5, "1,5", "maybe", "007")


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["1", "5.0", "-"], "integer", [1, 5, None]), (["1", "\\N", "2.5"], "number", [1, None, 2.5]),
        (["01", "12"], "string", ["01", "12"]), (["123456789012345678901", "1"], "string", None),
        (["1_000", "2"], "string", ["1_000", "2"]), (["1e3", "2"], "number", [1000.0, 2.0]),
        (["Yes", "No", "<NA>"], "boolean", [True, False, None]), (["Y", "Y"], "string", None),
        (["True", "False", ""], "boolean", [True, False, None]), (["oui", "non"], "boolean", [True, False]),
        (["1 234.5", "2"], "number", [1234.5, 2.0]), (["inf", "1"], "number", [float("inf"), 1.0]),
        (["1/2", "3/4"], "string", None), (["12:30", "13:45"], "string", None), (["?", "a"], "string", ["?", "a"]),
        (["1.2.3", "1.2.4"], "string", None), (["12-34", "13-35"], "string", None),
        (["infinity", "2024-01-01"], "string", None),
    ],
)  # fmt: skip
def test_cells(texts: list[str], kind: str, values: list[Any] | None) -> None:
    kinds, rows, _ = inferred("x|c\n" + "".join(f"{i}|{text}\n" for i, text in enumerate(texts)))
    assert kinds["c"] == kind
    assert [c for _, c in rows] == (values or texts)


def test_thousands_or_decimals() -> None:
    english = read(b'x,y\n"1,234",a\n"2,345",b\n')
    assert [x for x, _ in english[1]] == [
        1234,
        2345,
    ] and "--decimal ,: 1,234 is 1.234" in english[3]
    german = read(b"x;y\n1,234;a\n2,345;b\n")
    assert [x for x, _ in german[1]] == [1.234, 2.345] and "--decimal .: 1,234 is 1234" in german[3]
    certain = read(b'x,y\n"1,234.5",a\n"2,345",b\n')
    assert [x for x, _ in certain[1]] == [1234.5, 2345.0] and not certain[3]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Report of March\n\na;b;c\n1;x;2\n3;y;4\n", [(1, "x", 2), (3, "y", 4)]),
        ("'a','b'\n'1','it''s'\n'2','x,y'\n", [(1, "it's"), (2, "x,y")]),
        ('a|b\n1|5" pipe\n2|x\n', [(1, '5" pipe'), (2, "x")]),
        ('a,b\n1,"say \\"hi\\", then"\n2,"x"\n', [(1, 'say "hi", then'), (2, "x")]),
        (",a,b\n0,1,x\n1,2,y\n", [(1, "x"), (2, "y")]), ("a;b;\n1;x;\n2;y;\n", [(1, "x"), (2, "y")]),
        ("a b\n1 2\n3 4\n", [(1, 2), (3, 4)]), ("a\n1\n2\n", [(1,), (2,)]),
        ("5.1,x\n4.9,x\n4.7,y\n", [(5.1, "x"), (4.9, "x"), (4.7, "y")]),
        ("p,x\ne,y\np,y\ne,x\n", [("p", "x"), ("e", "y"), ("p", "y"), ("e", "x")]),
        (",0,1,2\n0,1.5,4,3\n1,2.5,3,2\n", [(1.5, 4, 3), (2.5, 3, 2)]),
        ("% by hand\n% in s\n  t   v  \n1.5 2\n 3    4\nTOTAL 2\n", [(1.5, 2), (3, 4)]),
        ("#id,v\n1,2\n2,3\n", [(1, 2), (2, 3)]),
        ('18.0   8   307.0\t"a b"\n15.0   8   350.0\t"c"\n', [(18, 8, 307, "a b"), (15, 8, 350, "c")]),
        ('"a" "b"\n"1" 2 3\n"2" 4 5\n', [(2, 3), (4, 5)]), ("a,b\n1,2,\n3,4,\n", [(1, 2), (3, 4)]),
        ("a,b\n1,2\n3,4\nSum,6\n\nSource: me\n", [(1, 2), (3, 4)]), ("a,b,a\n1,2,3\n4,5,6\n", [(1, 2, 3), (4, 5, 6)]),
        ("a,b\n1,don't\n2,won't\n", [(1, "don't"), (2, "won't")]), ("a^b\n1^x\n2^y\n", [(1, "x"), (2, "y")]),
    ],
)  # fmt: skip
def test_dialects(text: str, rows: list[tuple[Any, ...]]) -> None:
    assert inferred(text)[1] == rows


@pytest.mark.parametrize(
    ("texts", "date_format"),
    [
        (["2019-03", "2019-04"], "%Y-%m"), (["Mar 2019", "Apr 2019"], "%b %Y"), (["2019Q2", "2019Q4"], "%YQ%q"),
        (["Q2 2019", "Q4 2020"], "Q%q %Y"), (["2019M03", "2019M12"], "%YM%m"), (["201903", "201912"], "%Y%m"),
        (["03/2019", "11/2019"], "%m/%Y"),
    ],
)  # fmt: skip
def test_months_and_quarters(texts: list[str], date_format: str) -> None:
    kinds, rows, text_format = inferred("month,x\n" + "".join(f"{text},a\n" for text in texts))
    assert kinds["month"] == "date" and text_format == {"date_format": (date_format,)}
    assert rows[0][0] == dt.date(2019, 4 if "Q" in texts[0] else 3, 1)


def test_what_is_open_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("d;n;z\n03/04/2019;1,234;0\n05/06/2019;2,345;1\n")

    def rows(**chosen: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
        with sample_reader.open_sample([path], str(tmp_path), ReadingChoices(**chosen)) as sample:
            cells = ", ".join(f'"{name}"' for name in sample.columns)
            return [u.choice for u in sample.undecided], sample.query(f"SELECT {cells} FROM __rows")[:1]

    assert rows() == (["date_order", "decimal", "zero_one"], [(dt.date(2019, 3, 4), 1.234, 0)])
    chosen = {"date_order": "day", "decimal": ".", "zero_one": "booleans"}
    assert rows(**chosen) == ([], [(dt.date(2019, 4, 3), 1234, False)])
    assert rows(header="no")[1] == [("d", "n", "z")]


def test_a_layout_that_is_no_table_is_refused() -> None:
    for text, message in (("1 1:0.5 2:3\n-1 2:4\n", "libsvm"), ('[{"a": 1}]', "JSON"),
                          (" id   school  n\n  1  12 years  2\n  2    years  3\n", "fixed width")):  # fmt: skip
        with pytest.raises(PerennialError, match=message):
            read(text.encode(), "rows.txt")


@pytest.mark.parametrize(("name", "remedy"), [("a.arff", "loadarff"), ("a.data", "loadarff"), ("a.xls", "read_excel"),
                                              ("a.sqlite", "--connection NAME --table TABLE")])  # fmt: skip
def test_other_formats_are_refused_with_what_to_do(name: str, remedy: str) -> None:
    with pytest.raises(PerennialError, match=remedy):
        read(b"@relation x\n@attribute a numeric\n@data\n1\n", name)


def test_an_excel_sheet() -> None:
    book = openpyxl.Workbook()
    book.create_sheet("Orders")
    for row in [["Report"], [], ["id", "at", "x"], [1, T(2024, 1, 2, 3), 1.5], [2, T(2024, 1, 3), None]]:
        book["Orders"].append(row)
    book.create_sheet("Other").append(["a", "b"])
    target = io.BytesIO()
    book.save(target)
    kinds, rows, text_format, _ = read(target.getvalue(), "rows.xlsx")
    assert kinds == {"id": "integer", "at": "timestamp", "x": "number"}
    assert rows == [(1, T(2024, 1, 2, 3), 1.5), (2, T(2024, 1, 3), None)]
    assert (text_format.sheet, text_format.skip_lines) == ("Orders", 2)


def test_a_damaged_file_is_refused() -> None:
    with pytest.raises(PerennialError, match="not readable text"):
        read(gzip.compress(b"a,b\n1,2\n")[:-4], "rows.csv.gz")


def equal(expected: Any, kind: str, got: Any, got_kind: str) -> bool:
    """Whether a cell was read as what was written, as far as its text shows that."""
    if expected is None:  # what stands for a missing value only in columns of text is a text
        return got is None or (got_kind == "string" and got in NULL_TEXTS)
    if kind == got_kind and kind not in ("date", "timestamp"):
        return bool(expected == got)
    if {kind, got_kind} <= {"integer", "number"}:
        return float(expected) == float(got)
    if {kind, got_kind} <= {"date", "timestamp"}:
        return moment(expected) == moment(got)
    return got_kind == "string"  # a column of one boolean word, of ids beyond 64 bits


def moment(value: dt.date) -> dt.datetime:
    return value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)


def test_a_point_may_separate_thousands_in_a_file_of_any_delimiter() -> None:
    said = "'.' may be the decimal sign or separate thousands: 1.250 is 1.250 (--decimal ,: 1.250 is 1250)"
    for delimiter in ",;\t|":
        text = "a,b\n1,1.250\n2,3.500\n".replace(",", delimiter)
        assert said in read(text.encode())[3]
        assert read(text.replace("3.500", "0.500").encode())[3] == ""
        assert read(text.replace("3.500", "3.5").encode())[3] == ""


@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(table=text_tables(inferable=True))
def test_a_table_in_any_format_is_inferred(table: TextTable) -> None:
    kinds, rows, _, remarks = read(table.content())
    for column, kind in table.kinds.items():
        position = list(table.kinds).index(column)
        expected = [row[position] for row in table.rows]
        if expected == [None] * len(expected):
            continue
        got = [row[list(kinds).index(column)] for row in rows]
        doubtful = ("date" in kind or kind == "timestamp") and "do not tell the day" in remarks
        doubtful |= kind in ("integer", "number") and "may be the decimal sign" in remarks
        if not doubtful:
            assert all(equal(e, kind, g, kinds[column]) for e, g in zip(expected, got, strict=True)), (
                column,
                got,
            )


def test_the_format_in_the_spec(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a;d\n1,5;31.01.2024\n2,5;01.02.2024\n")
    with sample_reader.open_sample([tmp_path / "rows.csv"], str(tmp_path / "landing")) as sample:
        lines = templates.format_lines(sample, sample.columns)
    assert yaml.safe_load("\n".join(lines)) == {
        "format": {"delimiter": ";", "decimal": ",", "date_format": "%d.%m.%Y"}
    }
