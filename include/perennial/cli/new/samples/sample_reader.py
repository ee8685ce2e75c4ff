"""Read a sample of a feed: types and statistics of its columns, and the partitions of its files."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from perennial.cli.new.samples import _cell_sniffer, _format_sniffer, _sample_folders
from perennial.cli.new.samples.choices import ReadingChoices, Undecided
from perennial.cli.new.samples.file_names import FileDates, file_dates
from perennial.core import file_formats
from perennial.core.errors import DataError, PerennialError
from perennial.core.redaction import redacted_text
from perennial.core.sql import MAX_GROUP_CELLS, quote_identifier, text_literal
from perennial.feeds import column_casts, parquet_columns
from perennial.feeds.feed_schema import FeedSchema, translate_read_error
from perennial.feeds.text_casts import TextFormat
from perennial.ingestion import typed_rows
from perennial.spec.constraints import check_columns
from perennial.spec.sections import Column, ColumnType
from perennial.storage import duckdb_session, landing, leftovers
from perennial.storage.landing import LandedFile

__all__ = ["Sample", "SampleColumn", "open_sample"]

#: Columns with more distinct values than this have no list of values.
MAX_VALUES = 50
SUFFIXES = file_formats.ENDINGS
#: In the place of a model and a partition, which a sample does not have.
_MODEL, _ANY_DAY = "the sample", "2000-01-01"
#: Columns whose statistics one query computes: its time grows with the square of its aggregates.
COLUMNS_PER_QUERY = 25
#: What the texts of a column look like if it is personal data; this share of its texts match.
PERSONAL_PATTERNS = {
    "e-mail addresses": r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}",
    "telephone numbers": r"(\+|00)\d{1,3}[ ()/.-]*(\d[ ()/.-]*){6,12}|\(\d{2,5}\)[ -]?(\d[ -]?){5,9}|\d{3}-\d{3}-\d{4}",
    "account numbers": r"[A-Z]{2}\d{2} ?([A-Z0-9]{4} ?){2,7}[A-Z0-9]{1,4}",
    "card numbers": r"\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}",
    "social security numbers": r"\d{3}-\d{2}-\d{4}",
    "IP addresses": r"(\d{1,3}\.){3}\d{1,3}|([0-9a-f]{0,4}:){4,7}[0-9a-f]{1,4}",
}
PERSONAL_SHARE = 0.8
#: File of the typed rows in the working folder, and columns of one query that writes it.
TYPED_ROWS, COLUMNS_PER_COPY = "rows.parquet", 250
#: Texts of a column that are compared with these patterns.
PATTERN_ROWS = 2000
#: Types of columns whose values are listed if they are few.
_LISTED = ("string", "integer", "boolean", "number")


@dataclass(frozen=True)
class SampleColumn:
    """One column of a sample.

    Attributes:
        name: its name.
        kind: its type.
        nulls: number of missing values.
        distinct: number of distinct values.
        low: the smallest finite number.
        high: the largest finite number.
        values: the distinct values, in order, if they are few.
        length: mean length of the texts.
        unique: whether each row has a value, and no two rows the same.
        personal: what its texts look like, if that is personal data, such as ``e-mail addresses``.
        infinite: number of infinite numbers.
    """

    name: str
    kind: ColumnType
    nulls: int
    distinct: int
    low: float | None
    high: float | None
    values: list[Any]
    length: float
    unique: bool
    personal: str = ""
    infinite: int = 0


@dataclass(frozen=True)
class Sample:
    """The files of a sample, and what they contain.

    Attributes:
        paths: the files.
        columns: the columns, by name.
        left_out: columns that a spec cannot declare, with the reason.
        names: the dates in the names of the files; None if not each has one.
        rows: number of rows of each file.
        con: connection for queries of the rows.
        typed: the file of the rows, in this order: the typed columns, ``__file`` (index into ``paths``), and ``__row``
            (the row's number in its file).
        files: the files as they were read, in the same order.
        text_format: how text files are written.
        remarks: what may be wrong about that.
        undecided: what could be read in another way.
    """

    paths: tuple[Path, ...]
    columns: dict[str, SampleColumn]
    left_out: dict[str, str]
    names: FileDates | None
    rows: tuple[int, ...]
    con: duckdb.DuckDBPyConnection
    typed: Path
    files: tuple[LandedFile, ...]
    text_format: TextFormat = field(default_factory=TextFormat)
    remarks: tuple[str, ...] = ()
    undecided: tuple[Undecided, ...] = ()

    @property
    def row_count(self) -> int:
        """The number of rows of all files."""
        return sum(self.rows)

    @property
    def suffix(self) -> str:
        """The suffix of the files: one of `SUFFIXES`."""
        return file_formats.ending(self.paths[0].name)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Query the rows, as ``__rows``; with the partition of each, ``__day``, as ``__dated``."""
        return self.con.execute(self.resolve(sql)).fetchall()

    def resolve(self, sql: str) -> str:
        """SQL with the file in place of ``__rows`` and ``__dated``; of a view each query would bind all columns."""
        source = _relation(self.typed)
        with_days = f"{source} JOIN __days USING (__file, __row)"
        return re.sub(r"(?<=FROM )__(rows|dated)\b", lambda m: source if m[1] == "rows" else with_days, sql)


@contextmanager
def open_sample(
    paths: Sequence[Path], landing_area: str, choices: ReadingChoices | None = None
) -> Iterator[Sample]:
    """Read the files of a sample, all of one format and with the same columns.

    Args:
        paths: the files, or folders of part files.
        landing_area: folder or ``s3://`` URI of the landing area.
        choices: how it is read where its text leaves it open.

    Yields:
        The sample, whose rows can be queried until the block ends.

    Raises:
        PerennialError: a file is missing, empty, malformed or of an unknown format, or they are of different feeds.
    """
    given = tuple(Path(p).expanduser().absolute() for p in paths)
    _check_files(given)
    names = file_dates(given, landing_area)
    with (
        leftovers.temporary_folder("perennial-sample-", Path(tempfile.gettempdir())) as folder,
        duckdb_session.connect() as con,
    ):
        try:
            yield _read(con, given, names, folder, choices or ReadingChoices())
        except duckdb.Error as error:  # of a later question about the sample, too
            translated = translate_read_error(_feed({}, TextFormat()), _ANY_DAY, str(given[0]), error)
            raise type(translated)(translated.cause, translated.remedy) from error
        except PerennialError as error:  # it is of no model and no partition yet
            if error.model != _MODEL:
                raise
            raise type(error)(error.cause, error.remedy) from error


def _read(
    con: duckdb.DuckDBPyConnection, given: tuple[Path, ...], names: FileDates | None, folder: Path,
    choices: ReadingChoices,
) -> Sample:  # fmt: skip
    """Read the files, and store their typed rows."""
    files = tuple(_sample_folders.as_file(con, path, folder / f"part-{i}") for i, path in enumerate(given))
    kinds: dict[str, ColumnType] = {}
    left_out: dict[str, str] = {}
    text_format, remarks, undecided = TextFormat(), list[str](), list[Undecided]()
    if is_text := file_formats.is_text(files[0].name):
        text_format, remarks, undecided = _format_sniffer.sniff_dialect(con, files, folder, choices)
    else:
        kinds, left_out = _infer_types(files[0])
    fetched: list[LandedFile] = []
    for i, path in enumerate(files):
        target = folder / str(i)
        target.mkdir()
        file = landing.fetch_file(_feed(kinds, text_format), _ANY_DAY, str(path), target, con)
        if is_text and not fetched:
            left_out = unusable_names(file.columns)
            kinds = dict.fromkeys((c for c in file.columns if c not in left_out), "string")
            file = replace(file, types=("string",) * len(kinds))
        fetched.append(file)
    if is_text:
        days = names.days if names else ()
        reading = _cell_sniffer.sniff_cells(con, fetched, list(kinds), text_format, folder, choices, days)
        kinds, text_format = reading.kinds, reading.text_format
        undecided += reading.undecided
    kinds = _widen_types(con, _feed(kinds, text_format), fetched, folder / "typed.parquet")
    typed = _store_typed_rows(con, folder / TYPED_ROWS, [*kinds])
    rows = dict(con.execute(f"SELECT __file, count(*) FROM {_relation(typed)} GROUP BY 1").fetchall())
    if not sum(rows.values()):
        raise DataError(f"{files[0]} has no rows", "give a sample with rows")
    columns = {c.name: c for c in _summarise(con, kinds, _relation(typed), sum(rows.values()))}
    if zero_one := [c for c in columns.values() if c.kind == "integer" and c.values == [0, 1]]:
        if choices.zero_one == "booleans":
            columns |= {
                c.name: replace(c, kind="boolean", values=[False, True], low=None, high=None)
                for c in zero_one
            }
            booleans = {c.name: f"{quote_identifier(c.name)}::BOOLEAN" for c in zero_one}
            typed = _store_typed_rows(con, folder / "booleans.parquet", [*kinds], _relation(typed), booleans)
        elif choices.zero_one is None:
            undecided.append(_zero_one(zero_one))
    for name in [c.name for c in columns.values() if c.distinct == 0]:
        left_out[name] = "it has no value in the sample"
        del columns[name]
    counts = tuple(int(rows.get(i, 0)) for i in range(len(files)))
    return Sample(
        files, columns, left_out, names, counts, con, typed, tuple(fetched), text_format, tuple(remarks),
        tuple(undecided),
    )  # fmt: skip


def _zero_one(columns: Sequence[SampleColumn]) -> Undecided:
    names = [c.name for c in columns]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
    previews = {"numbers": "read as numbers", "booleans": "read as false and true; another value is refused"}
    return Undecided("zero_one", f"only 0 and 1 are in {shown}", "numbers", previews)


def _store_typed_rows(
    con: duckdb.DuckDBPyConnection, target: Path, columns: Sequence[str], source: str = "__rows",
    casts: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Store the typed rows once: each question about them would repeat their casts."""
    cells = {c: quote_identifier(c) for c in (*columns, "__file", "__row")} | dict(casts or {})
    selected = [f"{cell} AS {quote_identifier(c)}" for c, cell in cells.items()]
    queries = [
        f"SELECT {', '.join(some)} FROM {source}"
        for some in parquet_columns.divide(selected, COLUMNS_PER_COPY)
    ]
    parquet_columns.copy_columns(con, queries, target, len(cells))
    return target


def _relation(path: Path) -> str:
    return f"read_parquet({text_literal(str(path))}, hive_partitioning=false)"


def _feed(kinds: Mapping[str, ColumnType], text_format: TextFormat) -> FeedSchema:
    return FeedSchema(_MODEL, "rows", kinds, hides_values=True, text_format=text_format)


def _check_files(paths: tuple[Path, ...]) -> None:
    if not paths:
        raise PerennialError("no sample file is given", "give one with --sample")
    for path in paths:
        if path.is_dir():
            _sample_folders.check(path)
            continue
        if not file_formats.ending(path.name):
            remedy = _format_sniffer.unsupported_remedy(path.suffix.lower())
            raise PerennialError(f"{path} is not {', '.join(SUFFIXES)}", remedy)
        if not path.is_file():
            raise PerennialError(f"{path} does not exist", "correct the path of the sample")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: zero bytes", "give a sample with rows")


def _infer_types(path: Path) -> tuple[dict[str, ColumnType], dict[str, str]]:
    """Types of a Parquet file's columns, and the reason why other columns are not supported."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a parquet file: {redacted_text(error)}", "give another sample"
        ) from error
    kinds: dict[str, ColumnType] = {}
    left_out = unusable_names(schema.names)
    for item in schema:
        if item.name in left_out:
            continue
        if readable := column_casts.readable_types(item.type):
            kinds[item.name] = cast(ColumnType, readable[0])
        else:
            left_out[item.name] = f"columns of type {item.type} are not supported"
    return kinds, left_out


def unusable_names(names: Sequence[str]) -> dict[str, str]:
    """The names that a spec cannot declare, with the reason."""
    counts = Counter(name.lower() for name in names)
    reasons: dict[str, str] = {}
    for name in names:
        if counts[name.lower()] > 1:
            reasons[name] = "another column's name differs from it only in case"
            continue
        try:
            check_columns([name])
            TypeAdapter(Column).validate_python(name)
        except ValueError:
            reasons[name] = "a column of a model cannot have this name"
    return reasons


def _widen_types(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, fetched: list[LandedFile], typed: Path
) -> dict[str, ColumnType]:
    """Widen types until the data step can read every cell of the sample, whose typed rows are left in a view."""
    wider: dict[str, ColumnType] = {"integer": "number", "number": "string", "date": "timestamp"}
    kinds = cast(dict[str, ColumnType], dict(feed.columns))
    while True:
        cast_failures = typed_rows.create_landed_view(con, replace(feed, columns=kinds), fetched, typed=typed)
        failed = _columns_where(con, "__rows", cast_failures)
        if not failed:
            return kinds
        kinds = kinds | {column: wider.get(kinds[column], "string") for column in failed}


def _columns_where(con: duckdb.DuckDBPyConnection, source: str, conditions: Mapping[str, str]) -> list[str]:
    """The columns whose condition is true of some row."""
    if not conditions:
        return []
    selected = ", ".join(f"bool_or({condition})" for condition in conditions.values())
    (row,) = con.execute(f"SELECT {selected} FROM {source}").fetchall()
    return [column for column, value in zip(conditions, row, strict=True) if value]


def _summarise(
    con: duckdb.DuckDBPyConnection, kinds: Mapping[str, ColumnType], rows: str, row_count: int
) -> Iterator[SampleColumn]:
    """Statistics of the columns, each query for some of them."""
    names = list(kinds)
    for i in range(0, len(names), COLUMNS_PER_QUERY):
        some = names[i : i + COLUMNS_PER_QUERY]
        aggregates = ", ".join(
            sql for name in some for sql in _statistics(quote_identifier(name), kinds[name])
        )
        source = _some_columns(con, some, rows, row_count)
        (row,) = con.execute(f"SELECT count(*), {aggregates} FROM {source}").fetchall()
        for j, name in enumerate(some):
            filled, length, low, high, infinite = row[1 + 5 * j : 6 + 5 * j]
            # one query for each: it needs memory for all values
            ((distinct,),) = con.execute(
                f"SELECT count(DISTINCT {quote_identifier(name)}) FROM {source}"
            ).fetchall()
            yield SampleColumn(
                name=name,
                kind=kinds[name],
                nulls=row[0] - filled,
                distinct=distinct,
                low=low,
                high=high,
                values=_few_values(con, source, name)
                if 0 < distinct <= MAX_VALUES and kinds[name] in _LISTED
                else [],
                length=float(length or 0),
                unique=filled == row[0] == distinct,
                personal=_personal_pattern(con, source, name) if distinct and kinds[name] == "string" else "",
                infinite=infinite,
            )


def _some_columns(con: duckdb.DuckDBPyConnection, names: list[str], rows: str, row_count: int) -> str:
    """A relation of some columns; a table, if they are few cells: a query of the file takes longer to plan."""
    if row_count * len(names) > MAX_GROUP_CELLS:
        return rows
    selected = ", ".join(map(quote_identifier, names))
    con.execute(f"CREATE OR REPLACE TEMP TABLE __some_columns AS SELECT {selected} FROM {rows}")
    return "__some_columns"


def _statistics(cell: str, kind: ColumnType) -> list[str]:
    """SQL aggregates of one column: filled cells, mean length, lowest and highest number, infinite ones."""
    bounds, infinite = ["NULL", "NULL"], f"count(*) FILTER (isinf({cell}))" if kind == "number" else "0"
    if kind in ("integer", "number"):
        bounds = [f"{bound}({cell}) FILTER (isfinite({cell}::DOUBLE))" for bound in ("min", "max")]
    return [f"count({cell})", f"avg(length({cell}))" if kind == "string" else "0", *bounds, infinite]


def _personal_pattern(con: duckdb.DuckDBPyConnection, source: str, name: str) -> str:
    """Which of `PERSONAL_PATTERNS` the first texts of a column match; empty if none."""
    counts = ", ".join(
        f"count(*) FILTER (regexp_full_match(__text, {text_literal(pattern)}))"
        for pattern in PERSONAL_PATTERNS.values()
    )
    cell = quote_identifier(name)
    (row,) = con.execute(
        f"SELECT count(*), {counts} FROM (SELECT trim({cell}) AS __text FROM {source} WHERE {cell} IS NOT NULL "
        f"LIMIT {PATTERN_ROWS})"
    ).fetchall()
    return next(
        (kind for kind, n in zip(PERSONAL_PATTERNS, row[1:], strict=True) if n >= PERSONAL_SHARE * row[0]), ""
    )


def _few_values(con: duckdb.DuckDBPyConnection, source: str, name: str) -> list[Any]:
    cell = quote_identifier(name)
    select = f"SELECT DISTINCT {cell} FROM {source} WHERE {cell} IS NOT NULL ORDER BY 1"
    return [v for (v,) in con.execute(select).fetchall()]
