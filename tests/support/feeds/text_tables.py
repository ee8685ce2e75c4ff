"""Tables as hypothesis draws them, and as other programs write them as text."""

from __future__ import annotations

import csv
import datetime as dt
import io
from dataclasses import dataclass
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

from perennial.core.sql import MISSING_MARKERS
from perennial.feeds.text_casts import EPOCHS, ISO, TextFormat

KINDS = ("string", "integer", "number", "boolean", "date", "timestamp")
DATE_FORMATS = ("%d.%m.%Y", "%m/%d/%Y", "%d-%b-%Y", "%B %d, %Y", "%Y%m%d", "%d/%m/%y", ISO, *EPOCHS)
TIME_FORMATS = (
    "%d.%m.%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p", "%d %b %Y %H:%M:%S%z", "%Y/%m/%d %H:%M:%S.%f", ISO, *EPOCHS,
)  # fmt: skip
#: Characters that the encodings have, by encoding.
LETTERS = {
    "utf-8": "aZ0 ,;|'\"éß€Ж漢😀-_.", "utf-16": "aZ0 ,;|'\"éß€Ж漢😀-_.", "latin-1": "aZ0 ,;|'\"éßÜ-_.",
    "cp1252": "aZ0 ,;|'\"éß€-_.", "cp1251": "aZ0 ,;|'\"Жя-_.", "gb18030": "aZ0 ,;|'\"漢字-_.",
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A table, and how it is written.

    Attributes:
        kinds: declared type of each column.
        rows: the values; times are in UTC, without a zone.
        text_format: the format.
        line_end: the characters that end a line.
        quote_all: whether every cell is quoted.
        mark: whether a byte order mark precedes the text.
    """

    kinds: dict[str, str]
    rows: list[tuple[Any, ...]]
    text_format: TextFormat
    line_end: str
    quote_all: bool
    mark: bool

    def content(self) -> bytes:
        """The bytes of the file."""
        text_format, text = self.text_format, io.StringIO(newline="")
        quoted = bool(text_format.quote_character)
        writer = csv.writer(
            text,
            delimiter=text_format.delimiter_character,
            quotechar=text_format.quote_character or None,
            quoting=csv.QUOTE_NONE if not quoted else csv.QUOTE_ALL if self.quote_all else csv.QUOTE_MINIMAL,
            doublequote=text_format.escape == "doubled",
            escapechar="\\" if text_format.escape == "backslash" and quoted else None,
            lineterminator=self.line_end,
        )
        for i in range(text_format.skip_lines):
            text.write(f"Report {i}{self.line_end}")
        writer.writerow("" if name == text_format.unnamed else name for name in self.kinds)
        for row in self.rows:
            writer.writerow(self._cell(*item) for item in zip(self.kinds, row, strict=True))
        encoded = text.getvalue().encode(text_format.encoding)
        return (b"\xef\xbb\xbf" if self.mark and text_format.encoding == "utf-8" else b"") + encoded

    def _cell(self, name: str, value: Any) -> str:
        text_format, kind = self.text_format, self.kinds[name]
        if value is None:
            return text_format.nulls[0] if text_format.nulls else ""
        if kind == "boolean":
            words = text_format.true_values if value else text_format.false_values
            return words[0] if words else str(value)
        if kind in ("date", "timestamp"):
            return written_date(value, text_format.dates_of(name)[0])
        if kind in ("integer", "number"):
            return written_number(value, text_format)
        return str(value)


def written_number(value: float, text_format: TextFormat) -> str:
    """A number as the format has it."""
    text = repr(value)
    if text_format.thousands != "none" and "e" not in text:
        text = f"{value:,}" if isinstance(value, int) else f"{int(abs(value)):,}" + text[text.index(".") :]
        if isinstance(value, float) and repr(value).startswith("-"):
            text = "-" + text
    sign = {"space": "\xa0", "none": ""}.get(text_format.thousands, text_format.thousands)
    return text.replace(",", "\0").replace(".", text_format.decimal).replace("\0", sign)


def written_date(value: dt.date, date_format: str) -> str:
    """A date, or a time in UTC, as a format has it."""
    if date_format == ISO:
        return value.isoformat(" ") if isinstance(value, dt.datetime) else value.isoformat()
    moment = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)
    moment = moment.replace(tzinfo=dt.UTC)
    if date_format in EPOCHS:
        count = (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
        return str(count // EPOCHS[date_format])
    if "%z" in date_format:
        moment = moment.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
    return moment.strftime(date_format)


@st.composite
def text_tables(draw: st.DrawFn, *, inferable: bool = False) -> TextTable:
    """Any table in any format that can express it.

    Args:
        draw: draws from a strategy.
        inferable: only tables whose text shows how it is to be read: not in an encoding that can only be guessed,
            texts that are no numbers, times of the present, and columns named as usual.
    """
    encoding = draw(st.sampled_from(["utf-8", "utf-16"] if inferable else sorted(LETTERS)))
    quote = draw(st.sampled_from(['"', "none"] if inferable else ['"', "'", "none"]))
    decimal, thousands = draw(
        st.sampled_from([(".", "none"), (",", "none"), (",", "."), (".", ","), (".", "'"), (",", "space")])
    )
    if thousands == "space" and encoding in ("cp1251", "gb18030"):
        thousands = "none"
    nulls = draw(st.sampled_from([(), ("-",), ("\\N",), ("<NA>", "n/a")]))
    words = draw(st.sampled_from([((), ()), (("Ja", "J"), ("Nein", "N")), (("WAHR",), ("FALSCH",))]))
    fewest = 2 if inferable or quote == "none" else 1  # an empty line is no row of one column
    drawn = draw(st.lists(st.sampled_from(KINDS), min_size=fewest, max_size=6))
    kinds = {f"{'date_' if kind in ('date', 'timestamp') else 'c'}{i}": kind for i, kind in enumerate(drawn)}
    date_formats = {
        name: (draw(st.sampled_from(DATE_FORMATS if kind == "date" else TIME_FORMATS)),)
        for name, kind in kinds.items()
        if kind in ("date", "timestamp")
    }
    text_format = TextFormat(
        delimiter=draw(st.sampled_from([",", ";", "tab", "|"] if quote != "none" else ["tab", "|"])),
        quote=quote,
        escape="backslash" if quote != "none" and nulls != ("\\N",) and draw(st.booleans()) else "doubled",
        encoding=encoding,
        skip_lines=draw(st.sampled_from([0, 0, 0, 2])),
        unnamed=next(iter(kinds)) if draw(st.booleans()) and len(kinds) > 1 and not inferable else None,
        decimal=decimal,
        thousands=thousands,
        nulls=nulls,
        date_formats=date_formats,
        true_values=words[0],
        false_values=words[1],
    )
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    # A backslash outside of quotes is a backslash; Python's writer thinks otherwise.
    quote_all = text_format.escape == "backslash" or draw(st.booleans())
    # Python quotes a line feed only if lines end with it.
    inner = "\r" if line_end == "\r" and not quote_all else "\n\r"
    cells = st.tuples(
        *(st.none() | values(kind, text_format, name, inner, inferable) for name, kind in kinds.items())
    )
    rows = draw(st.lists(cells, min_size=3 if inferable else 1, max_size=8))
    table = TextTable(kinds, rows, text_format, line_end, quote_all, mark=draw(st.booleans()))
    try:
        table.content()
    except csv.Error:  # a cell has the delimiter, and nothing is quoted
        reject()
    return table


def values(
    kind: str, text_format: TextFormat, name: str, line_ends: str, inferable: bool
) -> st.SearchStrategy[Any]:
    """Values of a declared type that the format can express."""
    if kind == "integer":
        return st.integers(-(2**63), 2**63 - 1)
    if kind == "number":
        return st.floats(allow_nan=False, allow_infinity=False)
    if kind == "boolean":
        return st.booleans()
    if kind in ("date", "timestamp"):
        short = "%y" in text_format.dates_of(name)[0]
        first, last = (1990, 2035) if inferable else (1970, 2068) if short else (1000, 9998)
        if kind == "date":
            return st.dates(dt.date(first, 1, 1), dt.date(last, 12, 31))
        times = st.datetimes(dt.datetime(first, 1, 2), dt.datetime(last, 12, 30))
        return times.map(lambda t: _expressible(t, text_format.dates_of(name)[0]))
    letters = LETTERS[text_format.encoding] + (line_ends if text_format.quote_character else "")
    if not text_format.quote_character:
        letters = "".join(c for c in letters if c not in (text_format.delimiter_character, '"', "'"))
    texts = st.text(letters, min_size=1, max_size=8).map(lambda text: "w" + text if inferable else text)
    return texts.filter(
        lambda text: text.strip() not in (*MISSING_MARKERS, *text_format.nulls) and not text.endswith("\r")
    )


def _expressible(moment: dt.datetime, date_format: str) -> dt.datetime:
    if date_format in (ISO, "epoch_microseconds") or "%f" in date_format:
        return moment
    if date_format == "epoch_milliseconds":
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    return moment.replace(microsecond=0)
