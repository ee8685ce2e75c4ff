"""The section ``format`` of ``model.yaml``: how the text of a feed is written."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from perennial.feeds.text_casts import EPOCHS, ISO
from perennial.spec.strict_model import Column, StrictModel

__all__ = ["DATE_WORDS", "Encoding", "TextFormatSpec"]

Encoding = Literal[
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252", "iso-8859-15", "iso-8859-2", "iso-8859-7",
    "iso-8859-9", "cp437", "cp850", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8-r",
    "mac-roman", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr",
]  # fmt: skip
#: Date formats that are words.
DATE_WORDS = (ISO, *EPOCHS)
_DIRECTIVES = "dmYybBaAjqHIMSfpzZ"


def check_date_format(value: str) -> str:
    """Refuse a date format that is neither a word nor names a day, or a period, by directives that can be read.

    A month, a quarter or a year is read as its first day.

    Raises:
        ValueError: with the directives that are allowed.
    """
    if value in DATE_WORDS:
        return value
    used = re.findall(r"%(.?)", value, re.DOTALL)
    words = f"{', '.join(DATE_WORDS)}, or a format such as %d.%m.%Y %H:%M:%S"
    if not used:
        raise ValueError(f"not a date format: {words}")
    if unknown := [d for d in used if d not in _DIRECTIVES or not d]:
        raise ValueError(f"%{unknown[0]} cannot be read; allowed: {' '.join('%' + d for d in _DIRECTIVES)}")
    if repeated := [d for d in used if used.count(d) > 1]:
        raise ValueError(f"%{repeated[0]} occurs twice")
    month, rest = {"m", "b", "B"} & {*used}, {*"djHIMSfpzZ"} & {*used}
    has_day = "j" in used or ("d" in used and month)
    if not {"Y", "y"} & {*used} or (rest and not has_day):
        raise ValueError(f"it names no day: {words}")
    if "q" in used and ({*used} != {"q", "Y"}):
        raise ValueError("%q, a quarter, needs %Y, and no other directive")
    if "I" in used and "p" not in used:
        raise ValueError("%I needs %p")
    return value


DateFormat = Annotated[
    str, StringConstraints(min_length=1, max_length=100), AfterValidator(check_date_format)
]
#: One format, or several of which the first that fits is used.
DateFormats = Annotated[
    list[DateFormat],
    Field(min_length=1, max_length=10),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
    ),
]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=50)]


class TextFormatSpec(StrictModel):
    """How text files are written, and text cells of Parquet files and Excel sheets."""

    delimiter: Literal[",", ";", "tab", "|", "space", "whitespace", ":", "^", "~"] = Field(
        ",", description="What separates the cells of a line; whitespace: any number of spaces and tabs."
    )
    quote: Literal['"', "'", "none"] = Field(
        '"', description="What a cell is in that contains delimiters or line ends."
    )
    escape: Literal["doubled", "backslash"] = Field(
        "doubled", description="How a quote in a quoted cell is written: twice, or after a backslash."
    )
    encoding: Encoding = Field("utf-8", description="Encoding of the text; a byte order mark may precede it.")
    skip_lines: int = Field(0, ge=0, le=1000, description="Lines, or rows of a sheet, before the header.")
    header: bool = Field(
        True,
        description="Whether the first line has the names of the columns; if not, they are column_1, column_2, ...",
    )
    comment: Literal["none", "#", "%", "//", "!", "*"] = Field(
        "none", description="What the lines begin with that are comments, which are ignored."
    )
    footer_lines: int = Field(
        0,
        ge=0,
        le=100,
        description="Lines at the end that are not rows, such as a total; empty ones do not count.",
    )
    skip_after_header: int = Field(
        0, ge=0, le=100, description="Rows after the header that describe the columns, such as their units."
    )
    extra_cell: Literal["none", "first", "last"] = Field(
        "none",
        description="Whether rows may have one cell more than the header: first, the name of the row, as R writes it; "
        "last, nothing after a delimiter at the end of the line.",
    )
    duplicate_names: Literal["refuse", "number"] = Field(
        "refuse",
        description="What to do about a file with several columns of one name: refuse it, or number them from the "
        "second on, as in price, price_2.",
    )
    unnamed: Column | None = Field(
        None,
        description="Name for the column whose name the header leaves empty, such as an index that pandas or R wrote; "
        "columns without a name are ignored when not given.",
    )
    decimal: Literal[".", ","] = Field(".", description="Decimal sign of numbers.")
    thousands: Literal["none", ",", ".", "space", "'"] = Field(
        "none", description="What may separate the thousands of numbers."
    )
    nulls: list[_Text] = Field(
        [],
        max_length=50,
        description="Texts that stand for a missing value in any column; besides an empty cell and, in columns of "
        "other types than string, NA, N/A, NULL, null, None, NaN and nan.",
    )
    date_format: DateFormats = Field(
        ["iso"],
        description="How dates and times are written: iso, epoch_seconds, epoch_milliseconds, epoch_microseconds, or a "
        "format of strptime such as %d.%m.%Y, %Y-%m or, for quarters, %YQ%q; of a list, the first that fits.",
    )
    date_formats: dict[Column, DateFormats] = Field(
        {}, description="The date format of single columns, in place of date_format."
    )
    true_values: list[_Text] = Field(
        [],
        max_length=20,
        description="Texts of true in boolean columns, in any case; by default true, t, yes, y and 1. Needs "
        "false_values.",
    )
    false_values: list[_Text] = Field(
        [], max_length=20, description="Texts of false in boolean columns; by default false, f, no, n and 0."
    )
    sheet: str | None = Field(
        None,
        min_length=1,
        max_length=31,
        description="Name of the sheet of an Excel file; the first when not given.",
    )

    @model_validator(mode="after")
    def _signs(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(f"thousands is {self.thousands!r}, which is the decimal sign, too")
        if bool(self.true_values) != bool(self.false_values):
            raise ValueError("true_values and false_values are given together, or neither")
        texts = {text.casefold() for text in self.true_values}
        if both := [text for text in self.false_values if text.casefold() in texts]:
            raise ValueError(f"false_values names {both[0]!r}, which is among true_values, too")
        if both := [text for text in (*self.true_values, *self.false_values) if text in self.nulls]:
            raise ValueError(f"nulls names {both[0]!r}, which is a boolean value, too")
        # By value: a spec that was stored has every key.
        about_header = [
            key
            for key in ("unnamed", "extra_cell", "skip_after_header")
            if getattr(self, key) != type(self).model_fields[key].default
        ]
        if not self.header and about_header:
            key = about_header[0]
            raise ValueError(f"{key} is about a header, and header is false: remove one of them")
        if self.quote == "none" and self.escape == "backslash":
            raise ValueError("escape is backslash, but quote is none: cells are not quoted")
        return self
