"""Scan units: published rows whose features are computed by one DuckDB statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from perennial.core.sql import text_literal
from perennial.storage import file_digests, object_store, storage_errors
from perennial.storage.delta_tables import PARTITION, File


class ParameterisedQuery(NamedTuple):
    """SQL with variables that reads rows; all units of a kind share the SQL, so DuckDB plans it once.

    Attributes:
        text: the SQL, which reads DuckDB variables.
        variables: SQL of each variable's value, by name.
    """

    text: str
    variables: dict[str, str]


_WHOLE_FILES = (
    "SELECT * FROM read_parquet(getvariable('__files'), hive_partitioning=false, union_by_name=true{options})"
)
_RANGE = " WHERE file_row_number >= getvariable('__first') AND file_row_number < getvariable('__last')"
#: The rows of a query with the date of their partition, from the folder of their file.
_WITH_PARTITION = (
    f"SELECT * EXCLUDE (__path), regexp_extract(__path, '.*/{PARTITION}=([^/]*)/', 1) AS {PARTITION} FROM "
)


@dataclass(frozen=True)
class ScanUnit:
    """Whole files of consecutive partitions, or a range of the rows of one large file.

    Attributes:
        files: each file with the date of its partition, in the order of their rows.
        first: the first row of a range; None if files are read whole.
        rows: number of rows.
    """

    files: tuple[tuple[str, File], ...]
    first: int | None
    rows: int

    @property
    def partitions(self) -> list[tuple[str, int]]:
        """The date of each partition and the number of its rows in this unit, in the order of the rows."""
        if self.first is not None:
            return [(self.files[0][0], self.rows)]
        return [(day, sum(f.rows for _, f in files)) for day, files in groupby(self.files, lambda f: f[0])]

    def split_by_partition(self) -> list[ScanUnit]:
        """The same rows as one unit per partition."""
        if self.first is not None:
            return [self]
        return [_whole_files(list(files)) for _, files in groupby(self.files, lambda f: f[0])]

    def source(self, columns: list[str]) -> ParameterisedQuery | pa.Table:
        """The source of the rows for DuckDB: SQL over the files, or the rows if it cannot read the files.

        DuckDB would download an extension to read S3, and treats * and ? in paths as wildcards.

        Args:
            columns: the columns that are needed, perhaps with ``partition_date``; those that the files do not have
                are omitted.

        Raises:
            StorageError: a file is not what was written.
        """
        self._verify()
        paths = [file.path for _, file in self.files]
        if object_store.is_remote(paths[0]) or set("*?") & set("".join(paths)):
            return self.read(columns)
        variables = {"__files": f"[{', '.join(map(text_literal, paths))}]"}
        options = ", filename='__path'" if PARTITION in columns else ""
        if self.first is None:
            text = _WHOLE_FILES.format(options=options)
        else:
            text = _WHOLE_FILES.format(options=f"{options}, file_row_number=true") + _RANGE
            variables |= {"__first": str(self.first), "__last": str(self.first + self.rows)}
        return ParameterisedQuery(f"{_WITH_PARTITION}({text})" if options else text, variables)

    def _verify(self) -> None:
        """Compare the files with their digests, here and not for all units at once, so that they are still cached."""
        table, *_ = self.files[0][1].path.rsplit("/", 2)
        file_digests.verify(table, [file.path for _, file in self.files])

    def read(self, columns: list[str]) -> pa.Table:
        """Read the rows, with those of ``columns`` that the files have; raises what `source` does."""
        self._verify()
        parts = []
        for day, (path, _) in self.files:
            remote = object_store.is_remote(path)
            with (
                storage_errors.reading(path),
                pyarrow.parquet.ParquetFile(
                    path.removeprefix("s3://"), filesystem=object_store.filesystem() if remote else None
                ) as file,
            ):
                present = [c for c in columns if c in file.schema_arrow.names]
                if self.first is None:
                    part = file.read(present, use_threads=False)
                else:
                    groups, skip = _row_groups(file.metadata, self.first, self.first + self.rows)
                    part = file.read_row_groups(groups, present, use_threads=False).slice(skip, self.rows)
            if PARTITION in columns:
                part = part.append_column(PARTITION, pa.repeat(pa.scalar(day, pa.string()), len(part)))
            parts.append(part)
        return pa.concat_tables(parts, promote_options="default")


def _row_groups(metadata: pyarrow.parquet.FileMetaData, first: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold the rows ``first`` to ``stop`` - 1, and how many rows precede these."""
    groups, skip, start = [], first, 0
    for i in range(metadata.num_row_groups):
        rows = metadata.row_group(i).num_rows
        if start + rows <= first:
            skip = first - start - rows
        elif start < stop:
            groups.append(i)
        start += rows
    return groups, skip


def plan_units(
    partitions: Mapping[str, Sequence[File]], unit_rows: int, range_rows: int, unit_files: int | None = None
) -> Iterator[ScanUnit]:
    """Divide the rows of partitions into units.

    Args:
        partitions: the files of each partition, by date, in order.
        unit_rows: rows that a unit of several files has at most.
        range_rows: files of more rows are divided into ranges of that many.
        unit_files: files that a unit has at most; any number when None.
    """
    files: list[tuple[str, File]] = []
    rows = 0
    for day, listed in partitions.items():
        for file in listed:
            if files and (rows + file.rows > unit_rows or len(files) == unit_files):
                yield _whole_files(files)
                files, rows = [], 0
            if file.rows <= range_rows:
                files.append((day, file))
                rows += file.rows
                continue
            for first in range(0, file.rows, range_rows):
                yield ScanUnit(((day, file),), first, min(range_rows, file.rows - first))
    if files:
        yield _whole_files(files)


def _whole_files(files: list[tuple[str, File]]) -> ScanUnit:
    return ScanUnit(tuple(files), None, sum(f.rows for _, f in files))
