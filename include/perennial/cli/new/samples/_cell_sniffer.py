"""What the text cells of a sample are: types, signs of numbers, missing values, dates, boolean words.

The beginning of the sample suggests a reading. It is tried on all cells, and those that it cannot read are added to
what the next reading must fit, until every cell can be read. So a reading fits the whole sample, and the cost is
linear in its cells.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from perennial.cli.new.samples._date_sniffer import (
    date_formats,
    day_first,
    day_precedes,
    moments,
    parsed,
    swapped,
)
from perennial.cli.new.samples.choices import ReadingChoices, Undecided
from perennial.core.sql import MISSING_MARKERS, quote_identifier, text_literal
from perennial.feeds import text_casts
from perennial.feeds.feed_schema import FeedSchema
from perennial.feeds.text_casts import ISO, TextFormat
from perennial.ingestion import typed_rows
from perennial.spec.sections import ColumnType
from perennial.storage.landing import LandedFile

__all__ = ["Reading", "sniff_cells"]

#: Rows of the beginning that suggest the first reading, fewer of very many columns, and unreadable texts of a column
#: that correct it.
FIRST_ROWS, MIN_FIRST_ROWS, FIRST_CELLS, MORE_TEXTS = 2000, 200, 500_000, 100
#: Columns of one query: its time grows with the square of its aggregates.
COLUMNS_PER_QUERY = 25
#: Readings that are tried; after the last, a column that could not be read is text.
MAX_ROUNDS = 12
#: Texts that stand for a missing value where all other cells of a column are numbers, dates or booleans.
NULL_TEXTS = (
    "\\N", "<NA>", "-", "--", "---", "?", ".", "..", "*", "n/a", "n.a.", "na", "Na", "#N/A", "#NA", "#N/A N/A",
    "#NULL!", "#VALUE!", "#DIV/0!", "(null)", "<null>", "Null", "NaT", "nat", "nil", "none", "NONE", "missing",
    "Missing", "unknown", "Unknown", "NAN", "Nan", "(blank)", "k.A.",
)  # fmt: skip
_NULLS = frozenset(NULL_TEXTS)
#: Those of them that no one writes for anything else: they are missing values in a column of text, too.
_UNMISTAKABLE = ("\\N", "<NA>", "#N/A", "#NULL!", "(null)", "<null>", "NaT")
#: Pairs of words of boolean columns. Those of the first lines are read by default.
_WORDS = (
    ("true", "false"), ("yes", "no"), ("y", "n"), ("t", "f"),
    ("ja", "nein"), ("j", "n"), ("oui", "non"), ("o", "n"), ("si", "no"), ("sí", "no"), ("s", "n"), ("sim", "não"),
    ("wahr", "falsch"), ("vrai", "faux"), ("verdadero", "falso"), ("on", "off"), ("tak", "nie"),
)  # fmt: skip
_DEFAULT_WORDS = 4
#: Decimal and thousands signs, the likeliest first: in files with a semicolon between cells, and in others.
_POINT = ((".", ","), (".", "space"), (".", "'"))
_COMMA = ((",", "none"), (",", "."), (",", "space"), (",", "'"))
_SIGNS = {True: ((".", "none"), *_COMMA, *_POINT), False: ((".", "none"), *_POINT, *_COMMA)}
#: Names of integers that are days, or moments since 1970.
_DAY_NAMES = re.compile(r"(?i)(^|[^a-z])(date|day|dt|datum|fecha|jour|tag|yyyymmdd|ymd)([^a-z]|$)|date$")
_MONTH_NAMES = re.compile(r"(?i)month|period|yyyymm|(^|[^a-z])(ym|date)([^a-z]|$)|date$")
_EPOCH_NAMES = re.compile(r"(?i)time|date|epoch|stamp|created|updated|unix|(^|_)ts$|(^|_)at$")
#: Seconds from 1980 to 2042.
_EPOCH_RANGE = (315_532_800, 2_272_060_800)
_EPOCH_UNITS = {"epoch_seconds": 1, "epoch_milliseconds": 1000, "epoch_microseconds": 1_000_000}


@dataclass(frozen=True)
class Reading:
    """How the cells of a sample are read.

    Attributes:
        text_format: how they are written.
        kinds: type of each column.
        undecided: what another reading would fit as well.
    """

    text_format: TextFormat
    kinds: dict[str, ColumnType]
    undecided: tuple[Undecided, ...] = ()


def sniff_cells(
    con: duckdb.DuckDBPyConnection,
    files: Sequence[LandedFile],
    columns: Sequence[str],
    dialect: TextFormat,
    folder: Path,
    choices: ReadingChoices,
    days: Sequence[str] = (),
) -> Reading:
    """Infer the types of a sample's columns, and how their cells are written.

    Args:
        con: DuckDB connection; its view ``__rows`` is replaced.
        files: the sample, as Parquet files of text cells.
        columns: the columns.
        dialect: how the files are divided into cells.
        folder: where temporary files go.
        choices: what was chosen where the text leaves it open.
        days: partition date of each file, if known: dates near it are more plausible.
    """
    texts = _first_texts(con, files, columns)
    classified: dict[_ClassKey, _ColumnClass] = {}
    reading = _read(texts, dialect, choices, days, classified)
    for round_ in range(MAX_ROUNDS):
        feed = FeedSchema(
            "the sample", "rows", reading.kinds, hides_values=True, text_format=reading.text_format
        )
        failures = typed_rows.create_landed_view(con, feed, list(files), typed=folder / "tried.parquet")
        failing = _failing_texts(con, failures)
        codes = _codes(con, files, reading.kinds)
        for column, more in failing.items():
            texts[column].update(dict.fromkeys(more))
        if not failing and not codes:
            break
        if round_ == MAX_ROUNDS - 2:
            texts.update({column: {"text": None} for column in failing})
        for column in codes:
            texts[column]["00"] = None
        classified = {key: value for key, value in classified.items() if key[0] not in (*failing, *codes)}
        reading = _read(texts, dialect, choices, days, classified)
    return _with_undecided(con, files, reading, texts, choices)


def _paths(files: Sequence[LandedFile]) -> str:
    paths = ", ".join(text_literal(str(file.path)) for file in files)
    return f"read_parquet([{paths}], union_by_name=true, hive_partitioning=false)"


def _first_texts(
    con: duckdb.DuckDBPyConnection, files: Sequence[LandedFile], columns: Sequence[str]
) -> dict[str, dict[str, None]]:
    """The different texts of each column at the beginning of each file, in their order."""
    texts: dict[str, dict[str, None]] = {column: {} for column in columns}
    rows = max(MIN_FIRST_ROWS, min(FIRST_ROWS, FIRST_CELLS // max(1, len(columns))))
    each = max(50, rows // len(files))
    cells = ", ".join(quote_identifier(column) for column in columns)
    for file in files[: rows // 50]:
        query = f"SELECT {cells} FROM {_paths([file])} LIMIT {each}"
        table: pa.Table = con.sql(query).to_arrow_table()
        for i, column in enumerate(columns):
            cleaned = (text.strip(" ") for text in table.column(i).unique().to_pylist() if text is not None)
            texts[column].update(dict.fromkeys(text for text in cleaned if text not in MISSING_MARKERS))
    return texts


def _failing_texts(con: duckdb.DuckDBPyConnection, failures: Mapping[str, str]) -> dict[str, list[str]]:
    """Some of the texts of each column that cannot be read."""
    result = {}
    for column in _columns_where(con, "__rows", failures):
        uncast = quote_identifier(typed_rows.UNCAST_PREFIX + column)
        rows = con.execute(
            f"SELECT DISTINCT trim({uncast}) FROM __rows WHERE {uncast} IS NOT NULL LIMIT {MORE_TEXTS}"
        ).fetchall()
        result[column] = [text for (text,) in rows]
    return result


def _codes(
    con: duckdb.DuckDBPyConnection, files: Sequence[LandedFile], kinds: Mapping[str, ColumnType]
) -> list[str]:
    """Columns of numbers of which one has a leading zero, as in 01234, which marks a code."""
    conditions = {
        column: f"regexp_full_match(trim({quote_identifier(column)}), '0[0-9]+')"
        for column, kind in kinds.items()
        if kind in ("integer", "number")
    }
    return _columns_where(con, _paths(files), conditions)


def _columns_where(con: duckdb.DuckDBPyConnection, source: str, conditions: Mapping[str, str]) -> list[str]:
    """The columns whose condition is true of some row."""
    result, names = [], list(conditions)
    for i in range(0, len(names), COLUMNS_PER_QUERY):
        some = names[i : i + COLUMNS_PER_QUERY]
        (row,) = con.execute(
            f"SELECT {', '.join(f'bool_or({conditions[n]})' for n in some)} FROM {source}"
        ).fetchall()
        result += [name for name, value in zip(some, row, strict=True) if value]
    return result


class _ColumnClass(NamedTuple):
    """What the texts of a column are by themselves; dates that may begin with day or month have no type yet."""

    kind: ColumnType | None
    words: tuple[str, str] | None = None
    formats: tuple[str, ...] = ()
    orders: Mapping[bool, tuple[str, ...]] = {}


#: A column, and the decimal and thousands signs.
_ClassKey = tuple[str, str, str]


def _classify(column: str, texts: Sequence[str], signs: TextFormat) -> _ColumnClass:
    """Classify a column by its texts, of which there is at least one."""
    if pair := _boolean_words(texts):
        return _ColumnClass("boolean", words=pair)
    if kind := _number_kind(texts, signs):
        epoch = _counted(column, texts) if kind == "integer" or _EPOCH_NAMES.search(column) else None
        if epoch:
            return _ColumnClass("date" if epoch[0] == "%" else "timestamp", formats=(epoch,))
        return _ColumnClass(kind)
    if _all_match(texts, r"[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}"):
        return _ColumnClass("date")
    if _all_match(texts, _ISO_MOMENT):
        return _ColumnClass("timestamp")
    if orders := {order: f for order in (True, False) if (f := date_formats(texts, order))}:
        return _ColumnClass(None, orders=orders)
    return _ColumnClass("string")


def _read(
    texts: Mapping[str, Collection[str]], dialect: TextFormat, choices: ReadingChoices, days: Sequence[str],
    classified: dict[_ClassKey, _ColumnClass],
) -> Reading:  # fmt: skip
    """The reading of some texts of each column.

    Args:
        texts: the texts.
        dialect: how the files are divided into cells.
        choices: what was chosen where the text leaves it open.
        days: partition date of each file, if known.
        classified: of columns whose texts are the same as before; others are added.
    """
    values = {column: [t for t in some if t not in _NULLS] for column, some in texts.items()}
    decimal, thousands = _signs(values, dialect, choices.decimal)
    signs = replace(dialect, decimal=decimal, thousands=thousands)
    kinds: dict[str, ColumnType] = {}
    formats: dict[str, tuple[str, ...]] = {}
    words: dict[str, tuple[str, str]] = {}
    dated: dict[str, dict[bool, tuple[str, ...]]] = {}
    for column, some in values.items():
        if not some:
            kinds[column] = "string" if texts[column] else "integer"
            continue
        key = (column, decimal, thousands)
        if (of_column := classified.get(key)) is None:
            of_column = classified[key] = _classify(column, some, signs)
        if of_column.kind:
            kinds[column] = of_column.kind
        if of_column.words:
            words[column] = of_column.words
        if of_column.formats:
            formats[column] = of_column.formats
        if of_column.orders:
            dated[column] = dict(of_column.orders)
    for column, order in day_first(dated, values, choices.date_order, days).items():
        formats[column] = dated[column][order]
        kinds[column] = "timestamp" if any(re.search("%[HI]", f) for f in formats[column]) else "date"
    nulls = [
        n
        for n in NULL_TEXTS
        if any(n in texts[c] and (kinds[c] != "string" or n in _UNMISTAKABLE) for c in texts)
    ]
    common = formats and len({*formats.values()}) == 1 and all(
        c in formats for c, kind in kinds.items() if kind in ("date", "timestamp")
    )  # fmt: skip
    text_format = replace(
        signs,
        nulls=tuple(nulls),
        date_format=next(iter(formats.values())) if common else (ISO,),
        date_formats={} if common else formats,
    )
    return Reading(_with_words(text_format, {*words.values()}), {column: kinds[column] for column in texts})


_ISO_MOMENT = (
    r"[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}(?:[ T][0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]{1,9})?)?"
    r"(?: ?(?:[Zz]|UTC|[+-][0-9]{2}(?::?[0-9]{2})?))?)?"
)


def _all_match(texts: Iterable[str], pattern: str) -> bool:
    return all(re.fullmatch(pattern, text) for text in texts)


def _boolean_words(texts: Sequence[str]) -> tuple[str, str] | None:
    """The pair of words that a column consists of; of any but ``true`` and ``false``, both are needed."""
    used = {text.casefold() for text in texts}
    if used <= {"true", "false"}:
        return _WORDS[0]
    return next((pair for pair in _WORDS if used == {*pair}), None)


def _with_words(text_format: TextFormat, pairs: set[tuple[str, str]]) -> TextFormat:
    """A format with boolean words, if the usual ones will not do."""
    if pairs <= {*_WORDS[:_DEFAULT_WORDS]}:
        return text_format
    ordered = [pair for pair in _WORDS if pair in pairs]
    return replace(
        text_format,
        true_values=tuple(dict.fromkeys(true for true, _ in ordered)),
        false_values=tuple(dict.fromkeys(false for _, false in ordered)),
    )


def _signs(values: Mapping[str, Sequence[str]], dialect: TextFormat, chosen: str | None) -> tuple[str, str]:
    """The decimal and thousands signs with which the most columns are numbers."""
    order = [signs for signs in _SIGNS[dialect.delimiter == ";"] if chosen in (None, signs[0])]
    # without codes such as 01234, which are no numbers with any signs
    numeric = [
        some
        for some in values.values()
        if some and all(map(_NUMERIC.fullmatch, some)) and not _has_code(some)
    ]
    first = replace(dialect, decimal=order[0][0], thousands=order[0][1])
    unread = [some for some in numeric if _number_kind(some, first) is None]
    if not any(map(_SIGN.search, itertools.chain.from_iterable(unread))):
        return order[0]  # dates, for example: no signs make numbers of them
    counts = {
        signs: sum(
            _number_kind(some, replace(dialect, decimal=signs[0], thousands=signs[1])) is not None
            for some in numeric
        )
        for signs in order
    }
    return max(order, key=lambda signs: counts[signs])


_NUMERIC = re.compile(r"[-+0-9][0-9.,'\s\u202feE+-]*|[.,][0-9]+")


#: What may be a decimal or a thousands sign.
_SIGN = re.compile(r"[.,'\s\u202f]")


def _has_code(texts: Iterable[str]) -> bool:
    """Whether a text begins with a zero and another digit."""
    return any(text[0] == "0" and text[1:2].isdigit() for text in texts if text)


@cache
def _number_patterns(decimal: str, thousands: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Regular expressions of whole numbers, and of any."""
    separator = "[ \u00a0\u202f]" if thousands == "space" else re.escape(thousands)
    digits, point = "[0-9]+", re.escape(decimal)
    if thousands != "none":
        digits = f"(?:[0-9]+|[0-9]{{1,3}}(?:{separator}[0-9]{{2,3}})*{separator}[0-9]{{3}})"
    number = f"[+-]?(?:{digits}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?i:inf|infinity)"
    return re.compile(f"[+-]?{digits}(?:{point}0*)?"), re.compile(number)


def _number_kind(texts: Sequence[str], text_format: TextFormat) -> ColumnType | None:
    """The type of a column of numbers; None if some text is none, or a code."""
    whole, number = _number_patterns(text_format.decimal, text_format.thousands)
    if not all(number.fullmatch(text) for text in texts):
        return None
    if _has_code(texts):
        return None
    if not all(whole.fullmatch(text) for text in texts):
        return "number"
    # An id beyond 64 bits would be another one as a number.
    digits = (re.sub("[^0-9-]", "", text.partition(text_format.decimal)[0]) for text in texts)
    return "integer" if all(-(2**63) <= int(d) < 2**63 for d in digits) else None


def _counted(column: str, texts: Sequence[str]) -> str | None:
    """How integers are dates, or moments since 1970, by their size and the column's name; None if they are not."""
    if _all_match(texts, "[12][0-9]{7}") and (_DAY_NAMES.search(column) or len(texts) >= 10):
        return "%Y%m%d" if all(parsed(text, "%Y%m%d") for text in texts) else None
    if _MONTH_NAMES.search(column) and _all_match(texts, "(19|20)[0-9]{2}(0[1-9]|1[0-2])"):
        return "%Y%m"
    if not _EPOCH_NAMES.search(column) or not _all_match(texts, r"[0-9]{9,17}(?:[.][0-9]*)?"):
        return None
    numbers = [float(text) for text in texts]
    low, high = _EPOCH_RANGE
    return next(
        (e for e, unit in _EPOCH_UNITS.items() if low * unit <= min(numbers) and max(numbers) <= high * unit),
        None,
    )


def _with_undecided(
    con: duckdb.DuckDBPyConnection,
    files: Sequence[LandedFile],
    reading: Reading,
    texts: Mapping[str, Iterable[str]],
    choices: ReadingChoices,
) -> Reading:
    """A reading with what another one would fit as well."""
    undecided = []
    if choices.date_order is None:
        undecided += _undecided_dates(con, files, reading, texts)
    if choices.decimal is None:
        undecided += _undecided_signs(con, files, reading, texts)
    return replace(reading, undecided=tuple(undecided))


def _undecided_dates(
    con: duckdb.DuckDBPyConnection,
    files: Sequence[LandedFile],
    reading: Reading,
    texts: Mapping[str, Iterable[str]],
) -> list[Undecided]:
    """Whether the first number of dates is the day or the month, if no date tells."""
    columns = []
    for column, kind in reading.kinds.items():
        formats = reading.text_format.dates_of(column)
        other = tuple(swapped(f) for f in formats)
        usual = any("." in f.partition("%Y")[0] for f in formats)  # no one writes the month first with points
        is_open = kind in ("date", "timestamp") and other != formats and not usual
        if is_open and _fits(con, files, reading, column, other):
            columns.append(column)
    if not columns:
        return []
    column = columns[0]
    formats = reading.text_format.dates_of(column)
    orders = (formats, tuple(swapped(f) for f in formats))
    written = [t for t in texts[column] if t not in NULL_TEXTS]
    # One whose day is not its month shows the difference.
    shown = next((t for t in written if len({m for o in orders for m in moments([t], o)}) > 1), written[0])
    previews = {}
    for order in orders:
        word = "day" if day_precedes(order[0]) else "month"
        dates = moments(written, order)
        previews[word] = f"{shown} is {moments([shown], order)[0]:%-d %B %Y}" + (
            f", dates are from {min(dates):%Y-%m-%d} to {max(dates):%Y-%m-%d}" if len(dates) > 1 else ""
        )
    names = ", ".join(columns)
    used = "day" if day_precedes(formats[0]) else "month"
    return [Undecided("date_order", f"dates of {names} do not tell the day from the month", used, previews)]


def _fits(
    con: duckdb.DuckDBPyConnection,
    files: Sequence[LandedFile],
    reading: Reading,
    column: str,
    formats: tuple[str, ...],
) -> bool:
    """Whether all cells of a column can be read in other date formats."""
    other = replace(reading.text_format, date_formats={column: formats})
    cell = quote_identifier(column)
    value = text_casts.cast_sql(cell, reading.kinds[column], other, column)
    missing = text_casts.missing_sql(cell, other)
    return not _columns_where(con, _paths(files), {column: f"{value} IS NULL AND NOT {missing}"})


def _undecided_signs(
    con: duckdb.DuckDBPyConnection,
    files: Sequence[LandedFile],
    reading: Reading,
    texts: Mapping[str, Iterable[str]],
) -> list[Undecided]:
    """Whether a sign separates thousands, or is the decimal sign, if all numbers that have it look like 1,234."""
    text_format = reading.text_format
    signs = (text_format.decimal, text_format.thousands)
    others = {
        (".", ","): (",", "none"), (",", "."): (".", "none"),
        (",", "none"): (".", ","), (".", "none"): (",", "."),
    }  # fmt: skip
    if signs not in others:
        return []
    other = replace(text_format, decimal=others[signs][0], thousands=others[signs][1])
    sign = next(
        s
        for s in (text_format.thousands, text_format.decimal)
        if s in ",." and s in other.decimal + other.thousands
    )
    shown = {c: next((t for t in some if sign in t), None) for c, some in texts.items()}
    columns = [c for c, kind in reading.kinds.items() if kind in ("integer", "number") and shown[c]]
    missing = {c: text_casts.missing_sql(quote_identifier(c), other) for c in columns}
    unread = {
        # no thousands begin with a zero
        c: f"({text_casts.cast_sql(quote_identifier(c), 'number', other)} IS NULL AND NOT {missing[c]})"
        f" OR regexp_matches({quote_identifier(c)}, '^[^0-9]*0[.,]')"
        for c in columns
    }
    if not columns or _columns_where(con, _paths(files), unread):
        return []
    text = shown[columns[0]] or ""
    question = (
        f"in numbers such as those of {columns[0]}, {sign!r} may be the decimal sign or separate thousands"
    )
    previews = {
        format_.decimal: f"{text} is {_plain_text(text, format_)}" for format_ in (text_format, other)
    }
    return [Undecided("decimal", question, text_format.decimal, previews)]


def _plain_text(text: str, text_format: TextFormat) -> str:
    """A number with a decimal point and without separators."""
    return text.replace(text_format.thousands, "").replace(text_format.decimal, ".")
