"""A sample of a feed, looked at: column types, what they hold, which partitions the files are."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError, PerennialError
from perennial.core.sql import MISSING_MARKERS, quote_identifier, text_literal
from perennial.spec.sections import ColumnType
from perennial.storage import duckdb_session, landing, object_store

if TYPE_CHECKING:
    import duckdb

    from perennial.storage.landing import LandedFile

#: Columns with more values than this are not listed value by value.
LISTED = 50
SUFFIXES = (".parquet", ".csv", ".csv.gz")
_SNIFFED: dict[str, ColumnType] = {
    # an infinity is text to the engine; what is text to the data step too is found out by `_settle`
    "VARCHAR": "number",
    "BIGINT": "integer",
    "INTEGER": "integer",
    "DOUBLE": "number",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
}
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
        distinct: how many different values. low, high: numbers: the least and the greatest finite one.
        values: the values in order, where they are few. length: mean length of a text.
        unique: it has a value in each row, and no value twice in one file.
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
    """What was read.

    Attributes:
        left_out: columns that cannot be declared, and why.
        days: partition date of each file by its name; empty where names hold none.
        template: the files' path template, below the landing area or to be; none where names hold no date.
        landed: the files lie in the landing area.
        rows: in each file.
    """

    paths: tuple[Path, ...]
    columns: dict[str, SampleColumn]
    left_out: dict[str, str]
    days: tuple[str, ...]
    template: str | None
    landed: bool
    rows: tuple[int, ...]
    pairs: list[tuple[str, str]] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        """The files' kind."""
        return next(s for s in reversed(SUFFIXES) if self.paths[0].name.endswith(s))


def read(paths: Sequence[Path], landing: str) -> Sample:
    """Read a sample's files, all of one kind and with the same columns.

    Raises:
        PerennialError: a file is missing, empty, malformed or of an unknown kind, or they do not belong together.
    """
    from perennial.storage.landing import FeedSchema, create_landed_view, fetch_file

    found = tuple(Path(p).expanduser().absolute() for p in paths)
    days, template, landed = _places(found, landing)
    with tempfile.TemporaryDirectory(prefix="perennial-sample-") as folder:
        con = duckdb_session.connect()
        kinds, left_out = _kinds(con, found)
        files_ = []
        for i, path in enumerate(found):
            feed = FeedSchema("the sample", "rows", kinds)
            day = days[i] if days else "2000-01-01"
            inner = Path(folder) / str(i)
            inner.mkdir()
            files_.append(fetch_file(feed, day, str(path), inner, con))
        kinds = _widen_types(con, kinds, files_)
        create_landed_view(con, FeedSchema("the sample", "rows", kinds), files_)
        rows = dict(con.execute("SELECT __file, count(*) FROM rows GROUP BY 1").fetchall())
        columns = {name: _look(con, name, kind) for name, kind in kinds.items()}
        alone = [c for c in columns.values() if c.unique and c.kind in ("string", "integer")]
        pairs = [] if alone else _pairs(con, columns)
        con.close()
    if not sum(rows.values()):
        raise DataError(f"{found[0]} holds no rows", "give a sample with rows")
    for name in [c.name for c in columns.values() if c.distinct == 0]:
        left_out[name] = "it has no value in the sample"
        del columns[name]
    counts = tuple(int(rows.get(i, 0)) for i in range(len(found)))
    return Sample(found, columns, left_out, days, template, landed, counts, pairs)


def _places(paths: tuple[Path, ...], landing: str) -> tuple[tuple[str, ...], str | None, bool]:
    """Partition dates and template of the files, and whether they lie in the landing area."""
    if not paths:
        raise PerennialError("no sample file is named", "give one with --sample")
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise PerennialError(f"{path} is not {', '.join(SUFFIXES)}", "convert it, or give another sample")
        if not path.is_file():
            raise PerennialError(f"{path} is not there", "mend the path of the sample")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: zero bytes", "give a sample with rows")
    home = Path(landing) if not object_store.is_remote(landing) else None
    landed = home is not None and all(p.is_relative_to(home) for p in paths)
    days, templates = [], set()
    for path in paths:
        name = path.relative_to(home).as_posix() if landed and home else path.name
        for pattern, holder in _DATES:
            match = re.search(pattern, name)
            if match and _is_date("-".join(match.groups())):
                days.append("-".join(match.groups()))
                templates.add(name[: match.start()] + holder + name[match.end() :])
                break
    if not days:
        return (), None, False
    if len(days) < len(paths) or len(templates) > 1:
        raise PerennialError(
            "the sample's files are not named alike, but for a date: " + ", ".join(p.name for p in paths),
            "give files of one feed",
        )
    if len(set(days)) < len(days):
        raise PerennialError("two of the sample's files are of the same date", "give one file a date")
    return tuple(days), templates.pop(), landed


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _kinds(
    con: duckdb.DuckDBPyConnection, paths: tuple[Path, ...]
) -> tuple[dict[str, ColumnType], dict[str, str]]:
    """Type of each column of the first file, as far as its schema or its text says; and those that have none."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    from perennial.storage.landing import type_matches

    path = paths[0]
    left_out: dict[str, str] = {}
    if not path.name.endswith(".parquet"):
        try:
            rows = con.execute(
                f"DESCRIBE SELECT * FROM read_csv({text_literal(str(path))}, header=true, delim=',', sample_size=-1, "
                f"nullstr=[{', '.join(text_literal(marker) for marker in MISSING_MARKERS)}])"
            ).fetchall()
        except duckdb.Error as error:
            raise DataError(
                f"{path} is not comma-separated text with a header line: {str(error).splitlines()[0][:160]}",
                "save it as UTF-8 text, comma-separated, with a header line",
            ) from error
        return {name: _SNIFFED.get(kind, "string") for name, kind, *_ in rows}, left_out
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a parquet file: {str(error).splitlines()[0][:160]}", "give another sample"
        ) from error
    order: tuple[ColumnType, ...] = ("string", "boolean", "integer", "number", "date", "timestamp")
    kinds: dict[str, ColumnType] = {}
    for item in schema:
        kind = next((k for k in order if type_matches(item.type, k)), None)
        if kind is None:
            left_out[item.name] = f"columns of type {item.type} are not supported"
        else:
            kinds[item.name] = kind
    return kinds, left_out


def _widen_types(
    con: duckdb.DuckDBPyConnection, kinds: dict[str, ColumnType], landed: list[LandedFile]
) -> dict[str, ColumnType]:
    """The types by which the data step will be able to read every cell of the sample."""
    from perennial.storage.landing import FeedSchema, create_landed_view

    wider: dict[ColumnType, ColumnType] = {"integer": "number", "number": "string", "date": "timestamp"}
    for _ in range(len(wider) + 1):
        unread = create_landed_view(con, FeedSchema("the sample", "rows", kinds), landed)
        changed: dict[str, ColumnType] = {}
        for column, flag in unread.items():
            zeros = "FALSE"
            if kinds[column] in ("integer", "number") and landed[0].path.name.endswith(".staged.parquet"):
                # 01234 is a code, not a number
                zeros = f"regexp_full_match({quote_identifier(landing.TEXT_PREFIX + column)}, '0[0-9]+')"
            row = con.execute(f"SELECT bool_or({flag}), bool_or({zeros}) FROM rows").fetchone()
            if row and row[1]:
                changed[column] = "string"
            elif row and row[0]:
                changed[column] = wider.get(kinds[column], "string")
        if not changed:
            break
        kinds = kinds | changed
    return kinds


def _look(con: duckdb.DuckDBPyConnection, name: str, kind: ColumnType) -> SampleColumn:
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
    if distinct <= LISTED and kind in ("string", "integer", "boolean", "number"):
        values = [
            v
            for (v,) in con.execute(
                f"SELECT DISTINCT {cell} FROM rows WHERE {cell} IS NOT NULL ORDER BY 1"
            ).fetchall()
        ]
    return SampleColumn(
        name, kind, rows - filled, distinct, low, high, values, float(length or 0), filled == rows == in_files
    )


def _pairs(con: duckdb.DuckDBPyConnection, columns: dict[str, SampleColumn]) -> list[tuple[str, str]]:
    """Two columns that name a row together, where no column does alone."""
    able = [c for c in columns.values() if c.kind != "number" and not c.nulls and c.distinct > 1]
    able = sorted(able, key=lambda c: -c.distinct)[:8]
    for i, a in enumerate(able):
        for b in able[i + 1 :]:
            key = f"(__file, {quote_identifier(a.name)}, {quote_identifier(b.name)})"
            row = con.execute(f"SELECT count(*) = count(DISTINCT {key}) FROM rows")
            if (row.fetchone() or (False,))[0]:
                return [(a.name, b.name)]
    return []


def copy(sample: Sample, template: str, event_time: str) -> list[str]:
    """Land a sample under a template: files as they are where their names hold the date, split by event time else.

    Returns:
        The partition dates that landed.

    Raises:
        PerennialError: another file is there already.
    """
    if sample.days:
        for path, day in zip(sample.paths, sample.days, strict=True):
            _put(path, landing.source_uri(template, day))
        return sorted(sample.days)
    with tempfile.TemporaryDirectory(prefix="perennial-sample-") as folder, duckdb_session.connect() as con:
        listed = ", ".join(text_literal(str(p)) for p in sample.paths)
        text = sample.suffix != ".parquet"
        source = (
            f"read_csv([{listed}], header=true, delim=',', all_varchar=true)"
            if text
            else f"read_parquet([{listed}])"
        )
        moment = f"try_cast({quote_identifier(event_time)} AS {'TIMESTAMPTZ' if text else 'TIMESTAMP'})"
        con.execute(
            f"CREATE TEMP TABLE sample AS SELECT *, coalesce({moment}::DATE, (SELECT min({moment})::DATE FROM "
            f"{source})) AS __day FROM {source}"
        )
        days = [str(d) for (d,) in con.execute("SELECT DISTINCT __day FROM sample ORDER BY 1").fetchall()]
        if len(days) > 3660:
            raise PerennialError(f"{event_time} has {len(days)} different dates", "choose another event time")
        kind = (
            "parquet"
            if not text
            else "csv, HEADER true" + (", COMPRESSION gzip" if sample.suffix.endswith("gz") else "")
        )
        for day in days:
            path = Path(folder) / f"{day}{sample.suffix}"
            con.execute(
                f"COPY (SELECT * EXCLUDE __day FROM sample WHERE __day = DATE '{day}') TO "
                f"{text_literal(str(path))} "
                f"(FORMAT {kind})"
            )
            _put(path, landing.source_uri(template, day))
    return days


def counts_by_day(sample: Sample, event_time: str) -> dict[str, int]:
    """Rows of each partition, by the files' names or else by event time."""
    if sample.days:
        return dict(zip(sample.days, sample.rows, strict=True))
    listed = ", ".join(text_literal(str(p)) for p in sample.paths)
    text = sample.suffix != ".parquet"
    source = (
        f"read_csv([{listed}], header=true, delim=',', all_varchar=true)"
        if text
        else f"read_parquet([{listed}])"
    )
    moment = f"try_cast({quote_identifier(event_time)} AS {'TIMESTAMPTZ' if text else 'TIMESTAMP'})"
    with duckdb_session.connect() as con:
        found = con.execute(
            f"SELECT {moment}::DATE, count(*) FROM {source} GROUP BY 1 ORDER BY 1 NULLS LAST"
        ).fetchall()
    days = {str(day): int(n) for day, n in found if day is not None}
    lost = sum(int(n) for day, n in found if day is None)
    if days and lost:
        days[min(days)] += lost
    return days


def _put(path: Path, uri: str) -> None:
    if object_store.exists(uri):
        if object_store.digest(uri) == object_store.digest(str(path)):
            return
        raise PerennialError(
            f"{uri} is there already, with other content", "choose another name, or --no-land"
        )
    object_store.write_bytes(uri, path.read_bytes())
