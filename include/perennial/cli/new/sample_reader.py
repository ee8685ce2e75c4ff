"""Read a sample of a feed: types and statistics of its columns, and the partitions of its files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.dates import MAX_DAYS
from perennial.core.errors import DataError, PerennialError
from perennial.core.sql import MISSING_MARKERS, quote_identifier, text_literal
from perennial.spec.sections import ColumnType
from perennial.storage import duckdb_session, landing, object_store
from perennial.storage.landing import LandedFile

__all__ = ["Sample", "SampleColumn", "counts_by_day", "land", "read_sample"]

#: Columns with more distinct values than this have no list of values.
MAX_VALUES = 50
SUFFIXES = (".parquet", ".csv", ".csv.gz")
#: Column types by the types that DuckDB detects in text.
_DETECTED_TYPES: dict[str, ColumnType] = {
    # DuckDB detects text if a cell is an infinity; `_widen_types` finds the columns that must be text.
    "VARCHAR": "number",
    "BIGINT": "integer",
    "INTEGER": "integer",
    "DOUBLE": "number",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
}
#: Dates in the names of files, and the placeholders of a path template that stand for them.
_DATES = (
    (r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)", "{date}"),
    (r"year=(\d{4})/month=(\d{2})/day=(\d{2})", "year={year}/month={month}/day={day}"),
    (r"(?<!\d)(\d{4})/(\d{2})/(\d{2})(?!\d)", "{year}/{month}/{day}"),
    (r"(?<!\d)(\d{4})_(\d{2})_(\d{2})(?!\d)", "{year}_{month}_{day}"),
    (r"(?<!\d)(\d{4})(\d{2})(\d{2})(?!\d)", "{year}{month}{day}"),
)


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
        unique: whether it has a value in each row, and no value twice in one file.
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


@dataclass(frozen=True)
class Sample:
    """The files of a sample, and what they contain.

    Attributes:
        paths: the files.
        columns: the columns, by name.
        left_out: columns that a spec cannot declare, with the reason.
        days: partition date of each file, from its name; empty if the names contain no dates.
        template: path template of the files below the landing area; None if the names contain no dates.
        landed: whether the files are in the landing area.
        rows: number of rows of each file.
        key_pair: two columns that identify a row together, if no single column does.
    """

    paths: tuple[Path, ...]
    columns: dict[str, SampleColumn]
    left_out: dict[str, str]
    days: tuple[str, ...]
    template: str | None
    landed: bool
    rows: tuple[int, ...]
    key_pair: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """The suffix of the files: one of `SUFFIXES`."""
        return next(s for s in reversed(SUFFIXES) if self.paths[0].name.endswith(s))


def read_sample(paths: Sequence[Path], landing_area: str) -> Sample:
    """Read the files of a sample, all of one format and with the same columns.

    Args:
        paths: the files.
        landing_area: folder or ``s3://`` URI of the landing area.

    Raises:
        PerennialError: a file is missing, empty, malformed or of an unknown format, or they are of different feeds.
    """
    files = tuple(Path(p).expanduser().absolute() for p in paths)
    _check_files(files)
    days, template, landed = _partitions(files, landing_area)
    with tempfile.TemporaryDirectory(prefix="perennial-sample-") as folder, duckdb_session.connect() as con:
        kinds, left_out = _infer_types(con, files[0])
        feed = landing.FeedSchema("the sample", "rows", kinds)
        fetched = []
        for i, path in enumerate(files):
            target = Path(folder) / str(i)
            target.mkdir()
            day = days[i] if days else "2000-01-01"
            fetched.append(landing.fetch_file(feed, day, str(path), target, con))
        kinds = _widen_types(con, kinds, fetched)
        landing.create_landed_view(con, landing.FeedSchema("the sample", "rows", kinds), fetched)
        rows = dict(con.execute("SELECT __file, count(*) FROM rows GROUP BY 1").fetchall())
        columns = {name: _summarise(con, name, kind) for name, kind in kinds.items()}
        has_key = any(c.unique and c.kind in ("string", "integer") for c in columns.values())
        key_pair = () if has_key else _find_key_pair(con, columns)
    if not sum(rows.values()):
        raise DataError(f"{files[0]} has no rows", "give a sample with rows")
    for name in [c.name for c in columns.values() if c.distinct == 0]:
        left_out[name] = "it has no value in the sample"
        del columns[name]
    counts = tuple(int(rows.get(i, 0)) for i in range(len(files)))
    return Sample(files, columns, left_out, days, template, landed, counts, key_pair)


def _check_files(paths: tuple[Path, ...]) -> None:
    if not paths:
        raise PerennialError("no sample file is given", "give one with --sample")
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise PerennialError(f"{path} is not {', '.join(SUFFIXES)}", "convert it, or give another sample")
        if not path.is_file():
            raise PerennialError(f"{path} does not exist", "correct the path of the sample")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: zero bytes", "give a sample with rows")


def _partitions(paths: tuple[Path, ...], landing_area: str) -> tuple[tuple[str, ...], str | None, bool]:
    """Partition dates and path template of the files, and whether they are in the landing area."""
    home = Path(landing_area) if not object_store.is_remote(landing_area) else None
    landed = home is not None and all(p.is_relative_to(home) for p in paths)
    days, templates = [], set()
    for path in paths:
        name = path.relative_to(home).as_posix() if landed and home else path.name
        for pattern, placeholder in _DATES:
            match = re.search(pattern, name)
            if match and _is_date("-".join(match.groups())):
                days.append("-".join(match.groups()))
                templates.add(name[: match.start()] + placeholder + name[match.end() :])
                break
    if not days:
        return (), None, False
    if len(days) < len(paths) or len(templates) > 1:
        raise PerennialError(
            "the names of the sample's files differ in more than a date: " + ", ".join(p.name for p in paths),
            "give files of one feed",
        )
    if len(set(days)) < len(days):
        raise PerennialError("two of the sample's files have the same date", "give one file per date")
    return tuple(days), templates.pop(), landed


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _infer_types(con: duckdb.DuckDBPyConnection, path: Path) -> tuple[dict[str, ColumnType], dict[str, str]]:
    """Types of a file's columns, and the reason why other columns are not supported."""
    if not path.name.endswith(".parquet"):
        return _types_of_text(con, path), {}
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a parquet file: {str(error).splitlines()[0][:160]}", "give another sample"
        ) from error
    order: tuple[ColumnType, ...] = ("string", "boolean", "integer", "number", "date", "timestamp")
    kinds: dict[str, ColumnType] = {}
    left_out: dict[str, str] = {}
    for item in schema:
        kind = next((k for k in order if landing.type_matches(item.type, k)), None)
        if kind is None:
            left_out[item.name] = f"columns of type {item.type} are not supported"
        else:
            kinds[item.name] = kind
    return kinds, left_out


def _types_of_text(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, ColumnType]:
    markers = ", ".join(text_literal(marker) for marker in MISSING_MARKERS)
    try:
        rows = con.execute(
            f"DESCRIBE SELECT * FROM read_csv({text_literal(str(path))}, header=true, delim=',', sample_size=-1, "
            f"nullstr=[{markers}])"
        ).fetchall()
    except duckdb.Error as error:
        raise DataError(
            f"{path} is not comma-separated text with a header line: {str(error).splitlines()[0][:160]}",
            "save it as UTF-8 text, comma-separated, with a header line",
        ) from error
    return {name: _DETECTED_TYPES.get(kind, "string") for name, kind, *_ in rows}


def _widen_types(
    con: duckdb.DuckDBPyConnection, kinds: dict[str, ColumnType], fetched: list[LandedFile]
) -> dict[str, ColumnType]:
    """Widen types until the data step can read every cell of the sample."""
    wider: dict[ColumnType, ColumnType] = {"integer": "number", "number": "string", "date": "timestamp"}
    for _ in range(len(wider) + 1):
        cast_failures = landing.create_landed_view(
            con, landing.FeedSchema("the sample", "rows", kinds), fetched
        )
        changed: dict[str, ColumnType] = {}
        for column, failed in cast_failures.items():
            is_code = "FALSE"
            if kinds[column] in ("integer", "number") and fetched[0].path.name.endswith(".staged.parquet"):
                # A leading zero, as in 01234, marks a code.
                is_code = f"regexp_full_match({quote_identifier('__text_' + column)}, '0[0-9]+')"
            row = con.execute(f"SELECT bool_or({failed}), bool_or({is_code}) FROM rows").fetchone()
            if row and row[1]:
                changed[column] = "string"
            elif row and row[0]:
                changed[column] = wider.get(kinds[column], "string")
        if not changed:
            break
        kinds = kinds | changed
    return kinds


def _summarise(con: duckdb.DuckDBPyConnection, name: str, kind: ColumnType) -> SampleColumn:
    cell = quote_identifier(name)
    number = f"min({cell}) FILTER (isfinite({cell}::DOUBLE)), max({cell}) FILTER (isfinite({cell}::DOUBLE))"
    row = con.execute(
        f"SELECT count(*), count({cell}), count(DISTINCT {cell}), count(DISTINCT (__file, {cell})), "
        f"{f'avg(length({cell}))' if kind == 'string' else '0'}, "
        f"{number if kind in ('integer', 'number') else 'NULL, NULL'} FROM rows"
    ).fetchone()
    assert row is not None
    rows, filled, distinct, in_files, length, low, high = row
    values: list[Any] = []
    if distinct <= MAX_VALUES and kind in ("string", "integer", "boolean", "number"):
        select = f"SELECT DISTINCT {cell} FROM rows WHERE {cell} IS NOT NULL ORDER BY 1"
        values = [v for (v,) in con.execute(select).fetchall()]
    unique = filled == rows == in_files
    return SampleColumn(name, kind, rows - filled, distinct, low, high, values, float(length or 0), unique)


def _find_key_pair(con: duckdb.DuckDBPyConnection, columns: dict[str, SampleColumn]) -> tuple[str, ...]:
    """Two columns that identify a row together; empty if there are none."""
    eligible = [c for c in columns.values() if c.kind != "number" and not c.nulls and c.distinct > 1]
    eligible = sorted(eligible, key=lambda c: -c.distinct)[:8]
    for i, a in enumerate(eligible):
        for b in eligible[i + 1 :]:
            key = f"(__file, {quote_identifier(a.name)}, {quote_identifier(b.name)})"
            row = con.execute(f"SELECT count(*) = count(DISTINCT {key}) FROM rows")
            if (row.fetchone() or (False,))[0]:
                return a.name, b.name
    return ()


def land(sample: Sample, template: str, event_time: str) -> list[str]:
    """Copy a sample to the landing area.

    Files whose names have dates are copied as they are; others are split by the date of the event.

    Args:
        sample: the sample.
        template: path template of the feed.
        event_time: column with the time of the event.

    Returns:
        The partition dates that landed.

    Raises:
        PerennialError: another file is there already, or there are too many dates.
    """
    if sample.days:
        for path, day in zip(sample.paths, sample.days, strict=True):
            _copy_file(path, landing.source_uri(template, day))
        return sorted(sample.days)
    source, day_of_event = _scan(sample, event_time)
    file_format = "parquet"
    if sample.suffix != ".parquet":
        compression = ", COMPRESSION gzip" if sample.suffix.endswith("gz") else ""
        file_format = f"csv, HEADER true{compression}"
    with tempfile.TemporaryDirectory(prefix="perennial-sample-") as folder, duckdb_session.connect() as con:
        con.execute(
            f"CREATE TEMP TABLE sample AS SELECT *, coalesce({day_of_event}, (SELECT min({day_of_event}) FROM "
            f"{source})) AS __day FROM {source}"
        )
        days = [str(d) for (d,) in con.execute("SELECT DISTINCT __day FROM sample ORDER BY 1").fetchall()]
        if len(days) > MAX_DAYS:
            raise PerennialError(f"{event_time} has {len(days)} different dates", "choose another event time")
        for day in days:
            path = Path(folder) / f"{day}{sample.suffix}"
            con.execute(
                f"COPY (SELECT * EXCLUDE __day FROM sample WHERE __day = DATE '{day}') TO "
                f"{text_literal(str(path))} (FORMAT {file_format})"
            )
            _copy_file(path, landing.source_uri(template, day))
    return days


def counts_by_day(sample: Sample, event_time: str) -> dict[str, int]:
    """The number of rows of each partition, by the dates in the file names, or else of the events.

    Args:
        sample: the sample.
        event_time: column with the time of the event.
    """
    if sample.days:
        return dict(zip(sample.days, sample.rows, strict=True))
    source, day_of_event = _scan(sample, event_time)
    with duckdb_session.connect() as con:
        counts = con.execute(
            f"SELECT {day_of_event}, count(*) FROM {source} GROUP BY 1 ORDER BY 1 NULLS LAST"
        ).fetchall()
    days = {str(day): int(n) for day, n in counts if day is not None}
    undated = sum(int(n) for day, n in counts if day is None)
    if days and undated:
        days[min(days)] += undated
    return days


def _scan(sample: Sample, event_time: str) -> tuple[str, str]:
    """SQL of the rows in the sample's files, and of the date of a row's event."""
    paths = ", ".join(text_literal(str(p)) for p in sample.paths)
    if sample.suffix == ".parquet":
        return f"read_parquet([{paths}])", f"try_cast({quote_identifier(event_time)} AS TIMESTAMP)::DATE"
    source = f"read_csv([{paths}], header=true, delim=',', all_varchar=true)"
    return source, f"try_cast({quote_identifier(event_time)} AS TIMESTAMPTZ)::DATE"


def _copy_file(path: Path, uri: str) -> None:
    if object_store.exists(uri):
        if object_store.digest(uri) == object_store.digest(str(path)):
            return
        raise PerennialError(f"{uri} exists already, with other content", "choose another name, or --no-land")
    object_store.write_bytes(uri, path.read_bytes())
