"""Wide Parquet files, written some columns at a time.

Each thread of DuckDB has memory for every column of its query. So some columns are written at a time, to a file each,
and the files are joined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.core.sql import copy_to_parquet, row_group_rows

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq


def divide(columns: Sequence[str], most: int) -> list[list[str]]:
    """The columns in groups of this many, in order; at least one group."""
    return [list(columns[i : i + most]) for i in range(0, max(1, len(columns)), most)]


def copy_columns(
    con: duckdb.DuckDBPyConnection, queries: Sequence[str], target: Path, columns: int, optional: str = ""
) -> set[str]:
    """Write the columns of queries, which all give the same rows in the same order, to one Parquet file.

    Args:
        con: DuckDB connection.
        queries: the queries; each begins with SELECT.
        target: the file.
        columns: number of columns of all queries.
        optional: columns whose names begin with this may be left out where they have no value; empty: none.

    Returns:
        The columns without values.
    """
    if len(queries) == 1:
        con.execute(copy_to_parquet(queries[0], str(target), columns))
        return _without_values(target)
    paths = [target.with_suffix(f".{i}.parquet") for i in range(len(queries))]
    for query, path in zip(queries, paths, strict=True):
        # Row groups as in the joined file, so that no more than one of each file is read at a time.
        con.execute(copy_to_parquet(query, str(path), columns))
    empty = {name for path in paths for name in _without_values(path)}
    omitted = {name for name in empty if optional and name.startswith(optional)}
    _join(paths, target, row_group_rows(columns), omitted)
    for path in paths:
        path.unlink()
    return empty


def _without_values(path: Path) -> set[str]:
    """The columns of which every cell is null, as the file's footer has it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        names = metadata.schema.names
        empty = set(range(len(names)))
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            for j in list(empty):
                statistics = group.column(j).statistics
                if statistics is None or statistics.num_values:
                    empty.discard(j)
    return {names[j] for j in empty}


def _join(paths: list[Path], target: Path, rows: int, omitted: Collection[str]) -> None:
    """Write the columns of files side by side, in row groups of this many rows, without the columns omitted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        files = [stack.enter_context(pq.ParquetFile(path)) for path in paths]
        schema = pa.schema(
            [field for file in files for field in file.schema_arrow if field.name not in omitted]
        )
        writer = stack.enter_context(
            pq.ParquetWriter(target, schema, compression="snappy", store_schema=False)
        )
        for tables in zip(*(read_tables(file, rows, omitted) for file in files), strict=True):
            columns = [column for table in tables for column in table.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    # DuckDB is next, and cannot use what Arrow holds back
    pa.default_memory_pool().release_unused()


def read_tables(file: pq.ParquetFile, rows: int, omitted: Collection[str] = ()) -> Iterator[pa.Table]:
    """The rows of a file in tables of this many rows, the last of which has the rest."""
    import pyarrow as pa

    names = [name for name in file.schema_arrow.names if name not in omitted]
    pending, count = list[pa.Table](), 0
    for group in range(file.num_row_groups):
        # Not iter_batches(), which needs 250 KB more for each column, and three times as long.
        table = file.read_row_group(group, use_threads=False).select(names)
        pending.append(table)
        count += len(table)
        while count >= rows:
            table = pa.concat_tables(pending)
            yield table.slice(0, rows)
            pending, count = [table.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(pending)
