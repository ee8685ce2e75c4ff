"""How the text cells of a feed are written, and the SQL that reads them as declared types.

A cell is read only if all of it is a value of the declared type as the format writes it. Nothing is guessed or cut:
`1_000` is no number, `24.12.24` no date with four digits of the year, and infinity no time.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from perennial.core.sql import MISSING_MARKERS, text_literal

__all__ = [
    "EPOCHS",
    "ISO",
    "QUARTER",
    "TextFormat",
    "cast_sql",
    "missing_sql",
    "without_nulls",
    "written_pattern",
]

#: The word for dates and times as ISO 8601 writes them, with a space or a T, with or without an offset.
ISO = "iso"
#: The words for times that are counted from 1970-01-01 in UTC, with the microseconds of a unit.
EPOCHS = {"epoch_seconds": 10**6, "epoch_milliseconds": 10**3, "epoch_microseconds": 1}
#: The characters that words of a spec stand for.
_CHARACTERS = {"tab": "\t", "space": " ", "whitespace": " ", "none": ""}
#: The directive of a quarter, 1 to 4, which strptime does not have.
QUARTER = "%q"
#: The spaces that are written between thousands: the usual one, and those that do not break a line.
_SPACES = r"[ \x{00a0}\x{202f}]"
#: What a directive of a date format reads, as a regular expression; DuckDB accepts years of any length, for example.
_DIRECTIVES = {
    "d": "[0-9]{1,2}", "m": "[0-9]{1,2}", "Y": "[0-9]{4}", "y": "[0-9]{2}", "b": "[A-Za-z]{3}", "B": "[A-Za-z]{3,9}",
    "a": "[A-Za-z]{3}", "A": "[A-Za-z]{6,9}", "j": "[0-9]{1,3}", "q": "[1-4]", "H": "[0-9]{1,2}", "I": "[0-9]{1,2}",
    "M": "[0-9]{1,2}", "S": "[0-9]{1,2}", "f": "[0-9]{1,6}", "p": "[AaPp][Mm]",
    "z": "(?:[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)", "Z": "[A-Za-z][A-Za-z0-9_/+-]*",
}  # fmt: skip
_DIRECTIVE = re.compile("%([" + "".join(_DIRECTIVES) + "])")


@dataclass(frozen=True)
class TextFormat:
    """How a feed writes its text files. The defaults are CSV as RFC 4180 has it, with ISO dates.

    Attributes:
        delimiter: the character between cells, ``tab``, ``space``, or ``whitespace`` for any number of spaces and tabs.
        quote: the character around a cell with special characters, or ``none``.
        escape: how a quote within a quoted cell is written: ``doubled``, or after a ``backslash``.
        encoding: the encoding of the text, as Python calls it.
        skip_lines: lines before the header.
        header: whether the first line has the names of the columns; if not, they are ``column_1``, ``column_2``, …
        comment: the sign at the beginning of lines that are comments, or ``none``.
        footer_lines: lines at the end that are not rows.
        skip_after_header: rows after the header that describe the columns, such as units.
        extra_cell: whether rows may have one more cell than the header: ``first``, a row's name, or ``last``, which is
            empty.
        duplicate_names: what to do about columns with the same name: ``refuse`` the file, or ``number`` them.
        unnamed: name of the column whose name the header leaves empty; None: such columns are ignored.
        decimal: the decimal sign.
        thousands: the sign between thousands, ``space`` or ``none``.
        nulls: texts that stand for a missing value in any column.
        date_format: how dates and times are written: strptime formats, `ISO`, or a key of `EPOCHS`; the first that
            fits is used.
        date_formats: the same of single columns.
        true_values: texts of true in any case; empty: the usual ones.
        false_values: texts of false.
        sheet: name of the sheet of an Excel file; None: the first.
    """

    delimiter: str = ","
    quote: str = '"'
    escape: str = "doubled"
    encoding: str = "utf-8"
    skip_lines: int = 0
    header: bool = True
    comment: str = "none"
    footer_lines: int = 0
    skip_after_header: int = 0
    extra_cell: str = "none"
    duplicate_names: str = "refuse"
    unnamed: str | None = None
    decimal: str = "."
    thousands: str = "none"
    nulls: tuple[str, ...] = ()
    date_format: tuple[str, ...] = (ISO,)
    date_formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    true_values: tuple[str, ...] = ()
    false_values: tuple[str, ...] = ()
    sheet: str | None = None

    @property
    def delimiter_character(self) -> str:
        """The character between cells."""
        return _CHARACTERS.get(self.delimiter, self.delimiter)

    @property
    def quote_character(self) -> str:
        """The character around cells; empty if there is none."""
        return _CHARACTERS.get(self.quote, self.quote)

    @property
    def escape_character(self) -> str:
        """The character before a quote within a quoted cell; empty if cells are not quoted."""
        return "\\" if self.escape == "backslash" and self.quote_character else self.quote_character

    def python_dialect(self) -> dict[str, Any]:
        """The format as keywords of Python's csv module."""
        quoted = bool(self.quote_character)
        return {
            "delimiter": self.delimiter_character,
            "quotechar": self.quote_character or None,
            "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            "doublequote": self.escape == "doubled",
            "escapechar": "\\" if quoted and self.escape == "backslash" else None,
            "skipinitialspace": self.delimiter == "whitespace",
            "strict": False,
        }

    def dates_of(self, column: str) -> tuple[str, ...]:
        """How the dates and times of a column are written."""
        return tuple(self.date_formats.get(column, self.date_format))


def missing_sql(cell: str, text_format: TextFormat) -> str:
    """SQL of the condition that a text cell of a type other than ``string`` has no value; it is null for NULL."""
    # A regular expression: DuckDB makes a join of each `trim(cell) IN (…)`, which is one for each column.
    return f"regexp_full_match(trim({cell}), {_one_of((*MISSING_MARKERS, *text_format.nulls))})"


def cast_sql(cell: str, declared: str, text_format: TextFormat, column: str = "") -> str:
    """SQL of a text cell as its declared type; null where it is missing or cannot be read.

    Args:
        cell: SQL of the cell.
        declared: declared type.
        text_format: how cells are written.
        column: the column, which may have a date format of its own.
    """
    if declared == "string":
        value = f"nullif({cell}, '')"
    else:
        casts: dict[str, Callable[[str, TextFormat, str], str]] = {
            "integer": _integer, "number": _number, "date": _date, "timestamp": _timestamp, "boolean": _boolean,
        }  # fmt: skip
        value = casts[declared](f"trim({cell})", text_format, column)
    return without_nulls(value, cell, text_format)


def without_nulls(value: str, cell: str, text_format: TextFormat) -> str:
    """SQL of a value, null if its cell is one of the texts that the format declares to be missing values."""
    if not text_format.nulls:
        return value
    return f"CASE WHEN NOT regexp_full_match(trim({cell}::VARCHAR), {_one_of(text_format.nulls)}) THEN {value} END"


def _one_of(texts: tuple[str, ...]) -> str:
    return text_literal("|".join(re.escape(text) for text in texts))


def _plain_number(text: str, text_format: TextFormat) -> tuple[str, str, str]:
    """SQL of a number with a decimal point and no thousands; regular expressions of the whole part and the point."""
    digits, plain = "[0-9]+", text
    if text_format.thousands != "none":
        separator = _SPACES if text_format.thousands == "space" else re.escape(text_format.thousands)
        # Groups of two are how India writes them.
        digits = f"(?:[0-9]+|[0-9]{{1,3}}(?:{separator}[0-9]{{2,3}})*{separator}[0-9]{{3}})"
        plain = f"regexp_replace({plain}, {text_literal(separator)}, '', 'g')"
    if text_format.decimal != ".":
        plain = f"replace({plain}, {text_literal(text_format.decimal)}, '.')"
    return plain, digits, re.escape(text_format.decimal)


def _integer(text: str, text_format: TextFormat, column: str) -> str:
    plain, digits, point = _plain_number(text, text_format)
    # Writers give integers a decimal point or an exponent where a column has missing values. A cast would round 1.5,
    # and DOUBLE would round integers above 2^53.
    written = text_literal(
        f"[+-]?(?:{digits}(?:{point}[0-9]{{0,18}})?|{point}[0-9]{{1,18}})(?:[eE][+]?[0-9]{{1,2}})?"
    )
    value = f"TRY_CAST({plain} AS BIGINT)"
    return (
        f"CASE WHEN regexp_full_match({text}, {text_literal(f'[+-]?{digits}')}) THEN {value} "
        f"WHEN regexp_full_match({text}, {written}) AND TRY_CAST({plain} AS DECIMAL(38, 18)) = {value} "
        f"THEN {value} END"
    )


def _number(text: str, text_format: TextFormat, column: str) -> str:
    plain, digits, point = _plain_number(text, text_format)
    written = text_literal(f"[+-]?(?:{digits}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?")
    infinite = "'(?i)[+-]?inf(?:inity)?'"
    return (
        f"CASE WHEN regexp_full_match({text}, {written}) THEN CASE WHEN isfinite(TRY_CAST({plain} AS DOUBLE)) "
        f"THEN TRY_CAST({plain} AS DOUBLE) END "  # 1e400 is not infinity
        f"WHEN regexp_full_match({text}, {infinite}) THEN TRY_CAST({text} AS DOUBLE) END"
    )


def _boolean(text: str, text_format: TextFormat, column: str) -> str:
    if not text_format.true_values:
        return f"TRY_CAST({text} AS BOOLEAN)"
    true, false = (
        text_literal(f"(?i){'|'.join(re.escape(value) for value in values)}")
        for values in (text_format.true_values, text_format.false_values)
    )
    return (
        f"CASE WHEN regexp_full_match({text}, {true}) THEN TRUE "
        f"WHEN regexp_full_match({text}, {false}) THEN FALSE END"
    )


def _date(text: str, text_format: TextFormat, column: str) -> str:
    dates = []
    for date_format in text_format.dates_of(column):
        if date_format == ISO:
            iso = "'[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}(?:[ T]00:00(?::00(?:[.]0{1,9})?)?)?'"
            dates.append(
                f"CASE WHEN regexp_full_match({text}, {iso}) THEN TRY_CAST(left({text}, 10) AS DATE) END"
            )
        else:  # a time of day would be lost
            moment = _moment(text, date_format, text_format)
            whole = f"{moment} = date_trunc('day', {moment})"
            dates.append(f"CASE WHEN {whole} THEN CAST({moment} AS DATE) END")
    return dates[0] if len(dates) == 1 else f"coalesce({', '.join(dates)})"


def _timestamp(text: str, text_format: TextFormat, column: str) -> str:
    moments = [_moment(text, date_format, text_format) for date_format in text_format.dates_of(column)]
    return moments[0] if len(moments) == 1 else f"coalesce({', '.join(moments)})"


def _moment(text: str, date_format: str, text_format: TextFormat) -> str:
    """SQL of a text as a time in UTC; null if it is not written in the format."""
    if date_format == ISO:  # a cast to TIMESTAMP would drop the offset that the text may carry
        # DuckDB also reads 'infinity', 'epoch' and years before Christ.
        iso = "'[0-9]{4}[-/][^(]*'"
        moment = f"(TRY_CAST({text} AS TIMESTAMPTZ) AT TIME ZONE 'UTC')"
        return f"CASE WHEN regexp_full_match({text}, {iso}) THEN {moment} END"
    if date_format in EPOCHS:
        plain, digits, point = _plain_number(text, text_format)
        written = text_literal(f"-?{digits}(?:{point}[0-9]*)?(?:[eE][+]?[0-9]{{1,2}})?")
        count = f"TRY_CAST(TRY({plain}::DECIMAL(32, 6) * {EPOCHS[date_format]}) AS BIGINT)"
        return f"CASE WHEN regexp_full_match({text}, {written}) THEN TRY(make_timestamp({count})) END"
    written = text_literal(written_pattern(date_format))
    if QUARTER in date_format:
        year, quarter = (text_literal(_capturing(date_format, directive)) for directive in "Yq")
        parts = (
            f"regexp_extract({text}, {year}, 1)::INT, regexp_extract({text}, {quarter}, 1)::INT * 3 - 2, 1"
        )
        return f"CASE WHEN regexp_full_match({text}, {written}) THEN make_date({parts})::TIMESTAMP END"
    cell = text
    if "%z" in date_format:  # which does not read Z
        cell = f"regexp_replace({text}, '[Zz]$', '+00:00')"
    moment = f"try_strptime({cell}, {text_literal(date_format)})"
    if "%z" in date_format or "%Z" in date_format:
        moment = f"({moment} AT TIME ZONE 'UTC')"
    return f"CASE WHEN regexp_full_match({text}, {written}) THEN {moment} END"


def _capturing(date_format: str, directive: str) -> str:
    """The regular expression of a format, with a group around what one directive reads."""
    before, after = date_format.split(f"%{directive}")
    return f"{written_pattern(before)}({_DIRECTIVES[directive]}){written_pattern(after)}"


def written_pattern(date_format: str) -> str:
    """The regular expression of texts that are written in a strptime format."""
    # Without a sign between two numbers, each of them has all its digits.
    adjacent = re.search("%[dmYyjHIMSf]%[dmYyjHIMSf]", date_format) is not None
    pattern, last = "", 0
    for match in _DIRECTIVE.finditer(date_format):
        part = _DIRECTIVES[match[1]]
        pattern += re.escape(date_format[last : match.start()])
        pattern += part.replace("{1,", "{") if adjacent else part
        last = match.end()
    return pattern + re.escape(date_format[last:])
