"""Units of work: published rows that go through features and prediction together, as one statement of DuckDB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from perennial.core.sql import text_literal
from perennial.storage import object_store
from perennial.storage.delta_tables import File

if TYPE_CHECKING:
    import pyarrow as pa


class ParameterisedQuery(NamedTuple):
    """SQL that reads rows: the same text for all units of a kind, which is planned once, and the variables it reads by.

    Attributes:
        variables: the SQL of each value, by name.
    """

    text: str
    variables: dict[str, str]


_WHOLE = "SELECT * FROM read_parquet(getvariable('files'), hive_partitioning=false, union_by_name=true{more})"
_STRETCH = (
    _WHOLE.format(more=", file_row_number=true")
    + " WHERE file_row_number >= getvariable('first') AND file_row_number < getvariable('last')"
)


@dataclass(frozen=True)
class ScanUnit:
    """Whole files of partitions that follow one another, or a stretch of one large file.

    Attributes:
        held: the files, each with the partition that it is of, in the order of their rows.
        first: the row that a stretch begins with; None where files are read whole.
        rows: how many rows there are.
    """

    held: tuple[tuple[str, File], ...]
    first: int | None
    rows: int

    @property
    def nights(self) -> list[tuple[str, int]]:
        """Each partition and its rows here, in the order of the rows."""
        if self.first is not None:
            return [(self.held[0][0], self.rows)]
        return [(d, sum(f.rows for _, f in found)) for d, found in groupby(self.held, lambda h: h[0])]

    def by_night(self) -> list[ScanUnit]:
        """The same rows, a unit for each partition."""
        if self.first is not None:
            return [self]
        return [_whole(list(found)) for _, found in groupby(self.held, lambda h: h[0])]

    def source(self, columns: list[str]) -> ParameterisedQuery | pa.Table:
        """Where DuckDB finds the rows: SQL that reads the files, or the rows themselves where it cannot.

        DuckDB's own S3 reader is an extension that it would download, and it takes paths for patterns.

        Args:
            columns: those that are needed; one that the files do not have yet may be missing in what is found.
        """
        paths = [f.path for _, f in self.held]
        if object_store.is_remote(paths[0]) or set("*?") & set("".join(paths)):
            return self.read(columns)
        listed = {"files": f"[{', '.join(map(text_literal, paths))}]"}
        if self.first is None:
            return ParameterisedQuery(_WHOLE.format(more=""), listed)
        return ParameterisedQuery(
            _STRETCH, listed | {"first": str(self.first), "last": str(self.first + self.rows)}
        )

    def read(self, columns: list[str]) -> pa.Table:
        """The rows, with those of ``columns`` that the files have."""
        import pyarrow as pa
        import pyarrow.parquet

        parts = []
        for _, (path, _) in self.held:
            remote = object_store.is_remote(path)
            with pyarrow.parquet.ParquetFile(
                path.removeprefix("s3://"), filesystem=object_store.filesystem() if remote else None
            ) as file:
                here = [c for c in columns if c in file.schema_arrow.names]
                if self.first is None:
                    parts.append(file.read(here, use_threads=False))
                    continue
                groups, before = [], 0
                skipped = self.first
                for i in range(file.num_row_groups):
                    rows = file.metadata.row_group(i).num_rows
                    if before + rows <= self.first:
                        skipped = self.first - before - rows
                    elif before < self.first + self.rows:
                        groups.append(i)
                    before += rows
                found = file.read_row_groups(groups, here, use_threads=False)
                parts.append(found.slice(skipped, self.rows))
        return pa.concat_tables(parts, promote_options="default")


def plan_units(partitions: Mapping[str, list[File]], size: int, cut: int) -> Iterator[ScanUnit]:
    """The rows of partitions in units of up to ``size`` rows; files of more than ``cut`` rows in stretches of that."""
    held: list[tuple[str, File]] = []
    for day, found in partitions.items():
        for file in found:
            if held and sum(f.rows for _, f in held) + file.rows > size:
                yield _whole(held)
                held = []
            if file.rows <= cut:
                held.append((day, file))
                continue
            for first in range(0, file.rows, cut):
                yield ScanUnit(((day, file),), first, min(cut, file.rows - first))
    if held:
        yield _whole(held)


def _whole(held: list[tuple[str, File]]) -> ScanUnit:
    return ScanUnit(tuple(held), None, sum(f.rows for _, f in held))
