"""What a sample suggests: the key, the label and its task, columns of personal data. A guess is never silent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from perennial.cli.new.partitioning import Partitions
from perennial.cli.new.samples.event_times import on_clock
from perennial.cli.new.samples.sample_reader import COLUMNS_PER_QUERY, Sample, SampleColumn
from perennial.core.errors import SpecError
from perennial.core.sql import quote_identifier, text_literal
from perennial.feeds.parquet_columns import divide

__all__ = [
    "amount_in_text", "duplicate_rows", "find_column", "identifies", "is_identifier", "looks_personal",
    "named_personal", "number_in_text", "suggest_key", "suggest_label", "suggest_task", "time_parts",
]  # fmt: skip

#: Columns of which a combination is tried as the key.
KEY_CANDIDATES = 8
#: Columns that one query hashes.
COLUMNS_OF_HASH = 100
#: Partitions in each of which a column identifies the rows, so that it does not by chance.
MANY_PARTITIONS = 5
#: Mean length above which a text is no id.
MAX_ID_LENGTH = 64
#: A whole number with more values than this is not taken for classes.
MAX_INTEGER_CLASSES = 10
_ID = re.compile(
    r"(?i)(^|[^a-z])(id|ids|key|uuid|guid|no|nr|num|number|code|index|idx|rowid|serial|ref|reference|sku|pk)([^a-z]|$)"
)
#: Those of whole numbers: a `number` or `no` may be an amount.
_INTEGER_ID = re.compile(r"(?i)(^|[^a-z])(id|ids|key|uuid|pk|rowid|code|ref|reference|sku|serial)([^a-z]|$)")
#: Names of columns that tell rows of one entity apart.
_SEQUENCE = re.compile(
    r"(?i)(^|[^a-z])(line|row|item|seq|sequence|position|rank|step|hour|day|week|month|quarter|year|period|visit|round|lap|"
    r"trial|replicate|t|time)([^a-z]|$)"
)
#: Names of columns that suggest personal data.
_PERSONAL = re.compile(
    r"(^|_)(e?_?mail|phone|mobile|fax|(first|last|full|sur|maiden|nick|given|family|customer|passenger|patient|user)_?"
    r"name|name|surname|street|address|addr|zip|zipcode|postal|postcode|birth\w*|dob|ssn|passport|iban|bic|card|ip|login|username|"
    r"tail|tailnum|plate|licen[cs]e|latitude|longitude|lat|lon|lng|gender|religion|ethnicity)(_|$|\d)",
    re.IGNORECASE,
)
#: Names of columns that suggest a label, the likeliest first.
_LABELS = (
    "label", "target", "y", "class", "outcome", "grade", "relevance", "response", "result", "converted", "churn",
    "churned", "default", "defaulted", "fraud", "late", "survived", "income", "quality", "species", "diagnosis",
    "price", "amount", "sales", "demand", "count", "cnt",
)  # fmt: skip
#: Names of numbers that are classes, and of whole numbers that are not.
_CLASSES = re.compile(
    r"(?i)(^|[^a-z])(class|label|target|species|type|kind|category|cluster|group|cultivar|code|segment)([^a-z]|$)"
)
_AMOUNTS = re.compile(
    r"(?i)(^|[^a-z])(count|cnt|n|num|number|rating|score|quality|age|years?|days?|hours?|minutes?|price|amount|total|quantity|qty|"
    r"visits?|kids|children|level|grade|rank|size)([^a-z]|$)"
)


def words(name: str) -> str:
    """A name with its words apart: ``orderId`` and ``order_id`` become ``order Id`` and ``order id``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")


def find_column(given: str, columns: Iterable[str], option: str) -> str:
    """The column that an option names: exactly, or in another case if only one does.

    Raises:
        SpecError: there is none, or there are several.
    """
    names = list(columns)
    if given in names:
        return given
    same = [n for n in names if n.strip().casefold() == given.strip().casefold()]
    if len(same) == 1:
        return same[0]
    if same:
        raise SpecError(
            f"{option} is {given!r}, which is in several columns' names", f"one of: {', '.join(same)}"
        )
    raise SpecError(
        f"{option} is {given!r}: the sample has no column {given!r}", f"it has: {', '.join(names)}"
    )


def identifies(sample: Sample, key: Sequence[str], *, dated: bool = True) -> bool:
    """Whether columns identify a row, and have no missing value.

    Args:
        sample: the sample, divided into partitions.
        key: the columns.
        dated: whether partitions have their own dates: then within a partition, otherwise in the whole sample.
    """
    cells = ", ".join([*(["__day"] if dated else []), *(quote_identifier(c) for c in key)])
    filled = " AND ".join(f"{quote_identifier(c)} IS NOT NULL" for c in key)
    ((unique, complete),) = sample.query(
        f"SELECT count(*) = count(DISTINCT row({cells})), coalesce(bool_and({filled}), TRUE) FROM __dated"
    )
    return bool(unique and complete)


def suggest_key(
    sample: Sample, partitions: Partitions, without: Iterable[str], times: Sequence[str]
) -> list[str]:
    """The columns that identify a row within its partition by their meaning, not by chance; empty if none do.

    Args:
        sample: the sample.
        partitions: how it is divided.
        without: columns that cannot be in the key: the label, and what is personal.
        times: columns of times, the likeliest first.
    """
    excluded = {*without}
    columns = [
        c for c in sample.columns.values() if c.name not in excluded and not c.nulls and c.distinct > 1
    ]
    columns = [c for c in columns if not amount_in_text(sample, c)]
    single = [c for c in columns if is_identifier(c, sample.row_count)]
    single.sort(key=lambda c: (not _ID.search(words(c.name)), not c.unique))
    many_rows = partitions.dated and sample.row_count >= 5 * len(partitions.counts)
    for column in single:
        if column.kind == "integer" and not _ID.search(words(column.name)):
            continue
        if column.unique or (many_rows and identifies(sample, [column.name])):
            return [column.name]
    dated = partitions.dated
    if times and times[0] not in excluded and identifies(sample, times[:1], dated=dated):
        return [times[0]]
    if single and single[0].unique:
        return [single[0].name]
    most = max(partitions.counts.values())
    for column in columns if many_rows and len(partitions.counts) >= MANY_PARTITIONS else ():
        # The same few values, each once in each of many partitions: that is no chance.
        repeats = column.kind in ("string", "integer") and most <= column.distinct <= sample.row_count / 3
        if repeats and identifies(sample, [column.name]):
            return [column.name]
    eligible = [c for c in columns if _may_be_part(c) or c.name in times]
    eligible.sort(key=lambda c: (c.name not in times[:1], -c.distinct))
    return _combination(sample, [c.name for c in eligible[:KEY_CANDIDATES]], dated)


def is_identifier(column: SampleColumn, rows: int) -> bool:
    """Whether a column can identify rows by itself: an id by its name, distinct texts, or a running number."""
    if column.kind == "string":
        return column.length <= MAX_ID_LENGTH and (column.unique or bool(_ID.search(words(column.name))))
    return column.kind == "integer" and (
        is_running_number(column, rows) or bool(_INTEGER_ID.search(words(column.name)))
    )


def is_running_number(column: SampleColumn, rows: int) -> bool:
    """Whether a column numbers the rows without a gap."""
    return (
        column.kind == "integer" and column.unique and column.low is not None and column.high is not None
        and column.high - column.low + 1 == rows and not re.search(r"(?i)year|jahr|yr$", column.name)
    )  # fmt: skip


def _may_be_part(column: SampleColumn) -> bool:
    """Whether a column may be a part of a key: a text, a date, or a whole number that counts something."""
    if column.kind in ("string", "date", "timestamp"):
        return column.length <= MAX_ID_LENGTH
    if column.kind != "integer" or column.low is None or column.high is None:
        return False
    name = words(column.name)
    consecutive = column.low in (0, 1) and column.distinct == column.high - column.low + 1
    return bool(_ID.search(name) or (_SEQUENCE.search(name) and (consecutive or column.low > 1000)))


def _combination(sample: Sample, names: list[str], dated: bool) -> list[str]:
    """The first two or three columns that identify a row together."""
    if not names or not identifies(sample, names, dated=dated):
        return []
    if dated:
        names = [name for name in names if not _is_partition(sample, name)]
    pairs = [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]]
    triples = [[*pair, c] for pair in pairs for c in names[names.index(pair[1]) + 1 :]]
    return next((key for key in (*pairs, *triples) if identifies(sample, key, dated=dated)), [])


def _is_partition(sample: Sample, name: str) -> bool:
    """Whether a column has one value in each partition, so that it cannot tell rows of a partition apart."""
    pairs = f"count(DISTINCT row(__day, {quote_identifier(name)}))"
    return bool(sample.query(f"SELECT {pairs} = count(DISTINCT __day) FROM __dated")[0][0])


def duplicate_rows(sample: Sample, *, dated: bool) -> int:
    """The number of rows that repeat another row in all columns.

    Args:
        sample: the sample, divided into partitions.
        dated: whether partitions have their own dates: then a row of the same partition.
    """
    if any(column.unique for column in sample.columns.values()):
        return 0
    # Some columns at a time, and of the rows that may still be repeated: a join of all of them needs too much memory.
    con, day = sample.con, "__day" if dated else "0"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE __repeated AS SELECT __file, __row, hash({day}) AS __hash FROM __days"
    )
    for some in divide([*sample.columns], COLUMNS_OF_HASH):
        cells = ", ".join(["__hash", *map(quote_identifier, some)])
        con.execute(sample.resolve(
            f"CREATE OR REPLACE TEMP TABLE __hashed AS SELECT __file, __row, hash({cells}) AS __hash "
            "FROM __rows JOIN __repeated USING (__file, __row)"
        ))  # fmt: skip
        con.execute(
            "CREATE OR REPLACE TEMP TABLE __repeated AS FROM __hashed "
            "WHERE __hash IN (SELECT __hash FROM __hashed GROUP BY 1 HAVING count(*) > 1)"
        )
    ((rows,),) = con.execute("SELECT count(*) - count(DISTINCT __hash) FROM __repeated").fetchall()
    return int(rows)


def suggest_label(sample: Sample, key: Iterable[str], times: Iterable[str]) -> str | None:
    """The column that may be the label: by its name, or else the last one."""
    excluded = {*key, *times}
    columns = [
        c for c in sample.columns.values()
        if c.name not in excluded and c.kind not in ("date", "timestamp") and c.distinct > 1
    ]  # fmt: skip
    for name in _LABELS:
        for column in columns:
            if words(column.name).lower().strip(" ?").removeprefix("is ").removeprefix("has ") == name:
                return column.name
    columns = [c for c in columns if not is_identifier(c, sample.row_count)] or columns
    return columns[-1].name if columns else None


def suggest_task(label: SampleColumn, rows: int) -> tuple[str, str]:
    """The task of a label, and a remark if it may be another one."""
    if label.kind == "boolean" or label.distinct == 2:
        return "binary", ""
    if label.kind == "string":
        return "multiclass", ""
    if not is_whole(label) or label.distinct > 2 * MAX_INTEGER_CLASSES:
        return "regression", ""
    name, taken_for = words(label.name), f"{label.name} has {label.distinct} whole numbers, taken for"
    consecutive = label.distinct == (label.high or 0) - (label.low or 0) + 1
    few = label.distinct <= MAX_INTEGER_CLASSES and rows >= 5 * label.distinct and consecutive
    if _CLASSES.search(name) or (few and not _AMOUNTS.search(name)):
        return "multiclass", f"{taken_for} classes; --task regression predicts a number"
    return "regression", f"{taken_for} amounts; --task multiclass predicts classes"


def is_whole(column: SampleColumn) -> bool:
    """Whether a column has whole numbers only: integers, or numbers if they are few."""
    few = column.kind == "number" and bool(column.values)
    return column.kind == "integer" or (few and all(float(value).is_integer() for value in column.values))


def named_personal(name: str) -> bool:
    """Whether a column's name suggests personal data."""
    return bool(_PERSONAL.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace(" ", "_")))


def looks_personal(column: SampleColumn, rows: int) -> bool:
    """Whether a column is personal data by its values, or by its name and its values: many different texts."""
    if column.personal:
        return True
    many = column.kind == "string" and column.distinct > 20 and column.distinct > rows / 20
    return many and named_personal(column.name)


def time_parts(sample: Sample, zones: Mapping[str, str]) -> dict[str, list[str]]:
    """The parts of each date or time that differ between rows, as DuckDB's functions that give them.

    Args:
        sample: the sample.
        zones: the columns of dates and times, with the zone of the clock that parts are read from.
    """
    columns = [sample.columns[name] for name in zones]
    parts, result = ("dayofweek", "month", "hour", "day"), dict[str, list[str]]()
    for i in range(0, len(columns), COLUMNS_PER_QUERY):
        some = columns[i : i + COLUMNS_PER_QUERY]
        # as bits: distinct values need memory for each
        counts = [
            f"bit_count(bit_or(1::BIGINT << {part}({on_clock(f'{cell}::TIMESTAMP', zones[c.name])})::INTEGER) "
            f"FILTER (isfinite({cell})))"
            for c, cell in ((c, quote_identifier(c.name)) for c in some)
            for part in parts
        ]
        (row,) = sample.query(f"SELECT {', '.join(counts)} FROM __rows")
        for j, column in enumerate(some):
            weekdays, months, hours, days = (n or 0 for n in row[4 * j : 4 * j + 4])
            # The weekday of the first day of a month or a quarter says nothing, and fewer months than these say which
            # period it was, not which season.
            used = (weekdays > 1 and days > 1, months > 6, hours > 1 and column.kind == "timestamp", False)
            result[column.name] = [part for part, is_used in zip(parts, used, strict=True) if is_used]
    return result


#: A number with what may stand around it: a currency, a unit, thousands separators.
_NUMBER_IN_TEXT = (
    r"([^0-9A-Za-z.,+-]{1,3}|[A-Z]{2,3} )?[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?"
    r"( ?[A-Za-z]{1,6}| ?[^0-9A-Za-z.,+-]{1,3})?"
)


#: Different texts up to which they are categories, whatever they contain.
MIN_AMOUNTS = 20
#: What amounts have, and numbers of orders or persons have not.
_AMOUNT_IN_TEXT = r"[$€£¥₹%]|[0-9][.,][0-9]"


def amount_in_text(sample: Sample, column: SampleColumn) -> str | None:
    """SQL of the amount that the texts of a column contain, such as ``$1,200`` or ``3.5 km``; None if they do not."""
    number = number_in_text(sample, column) if column.distinct > MIN_AMOUNTS else None
    if number is None:
        return None
    cell = quote_identifier(column.name)
    ((amounts,),) = sample.query(
        f"SELECT bool_or(regexp_matches({cell}, {text_literal(_AMOUNT_IN_TEXT)})) FROM __rows WHERE {cell} IS NOT NULL"
    )
    return number if amounts else None


def number_in_text(sample: Sample, column: SampleColumn) -> str | None:
    """SQL of the number that the texts of a column contain, such as ``$1,200``; None if some contain none."""
    cell = quote_identifier(column.name)
    if column.kind != "string":
        return None
    ((matching, forms),) = sample.query(
        f"SELECT bool_and(regexp_full_match(trim({cell}), {text_literal(_NUMBER_IN_TEXT)})), "
        f"count(DISTINCT regexp_replace(trim({cell}), '[0-9.,+-]', '', 'g')) FROM __rows WHERE {cell} IS NOT NULL"
    )
    # one currency or unit: several would be other amounts
    return (
        f"TRY_CAST(regexp_replace({cell}, '[^0-9.+-]', '', 'g') AS DOUBLE)"
        if matching and forms == 1
        else None
    )
