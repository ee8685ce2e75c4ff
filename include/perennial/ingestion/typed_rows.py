"""Landed files as one typed, streaming relation.

Types are those that the spec declares: a Parquet column of a type that never holds such values is refused when it is
fetched, and a row with a cell that cannot be cast to its type goes to quarantine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from perennial.core.sql import fold_identifier, quote_identifier, text_literal
from perennial.feeds import column_casts, parquet_columns, text_casts, text_files
from perennial.feeds.column_casts import Cast
from perennial.feeds.feed_schema import FeedSchema
from perennial.storage.landing import LandedFile

if TYPE_CHECKING:
    import duckdb

#: The text of a cell that cannot be cast is in a column named by this prefix and the column's name.
UNCAST_PREFIX = "__uncast_"
_RAW_PREFIX = "__raw_"
_ROW_COLUMNS = ("__file", "__row", "__future")
#: Columns that one query casts: each thread has memory for every column of its query.
COLUMNS_PER_CAST = 250


def create_landed_view(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    landed: list[LandedFile],
    name: str = "__rows",
    typed: Path | None = None,
    erased: str = "",
) -> dict[str, str]:
    """Create a view of landed files with their columns cast to the declared types.

    The view has three more columns: ``__file`` (index into ``landed``), ``__row`` (the row's number in its file) and
    ``__future`` (the first moment that is too late for a row of the partition).

    Args:
        con: DuckDB connection.
        feed: the declared columns.
        landed: files of one format.
        name: name of the view.
        typed: the file that takes the rows after their casts, if text has to be cast. Every expression over the view
            repeats the casts otherwise, once for each column that it reads, in each query.
        erased: SQL condition of rows that the view does not have, because they were erased; of none when empty.

    Returns:
        The cast failures: by column, the SQL condition that a cell has a value that cannot be cast to the declared
        type. Only columns where that can happen; with typed rows, where it happens.
    """
    sources = [_source(con, feed, landed, pieces) for pieces in _group_by_types(landed)]
    if typed and any(source.casts_text for source in sources):
        failing = _write_typed(con, sources, list(feed.columns), typed)
        rows = f"SELECT * FROM read_parquet({text_literal(str(typed))}, hive_partitioning=false)"
    else:
        rows, failing = _cast_rows(sources, [*_ROW_COLUMNS, *feed.columns])
    if erased:
        rows = f"SELECT * FROM ({rows}) WHERE NOT ({erased})"
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {rows}")
    return {c: f"{quote_identifier(UNCAST_PREFIX + c)} IS NOT NULL" for c in failing}


def _write_typed(
    con: duckdb.DuckDBPyConnection, sources: list[_Source], columns: list[str], typed: Path
) -> list[str]:
    """Write the typed rows to a file; returns the columns with cells that cannot be cast."""
    first, *others = parquet_columns.divide(columns, COLUMNS_PER_CAST)
    blocks = [_cast_rows(sources, block) for block in ([*_ROW_COLUMNS, *first], *others)]
    queries = [query for query, _ in blocks]
    empty = parquet_columns.copy_columns(con, queries, typed, len(columns), UNCAST_PREFIX)
    return [column for _, castable in blocks for column in castable if UNCAST_PREFIX + column not in empty]


class _Piece(NamedTuple):
    """A file that is read, of which a partition may have several: the partition's index, and the rows before it."""

    file_index: int
    rows_before: int
    file: LandedFile


def _group_by_types(landed: list[LandedFile]) -> list[list[_Piece]]:
    """The files and parts that one relation can read: of different types DuckDB would make one, and lose values."""
    pieces = []
    for index, file in enumerate(landed):
        offset = 0
        for part in file.parts or (file,):
            pieces.append(_Piece(index, offset, part))
            offset += part.rows or 0
    groups: dict[tuple[bool, tuple[str, ...]], list[_Piece]] = {}
    for piece in [p for p in pieces if p.file.rows != 0] or pieces[:1]:
        groups.setdefault((piece.file.is_text, piece.file.types), []).append(piece)
    return list(groups.values())


@dataclass(frozen=True)
class _Source:
    """SQL of some files, and of their columns cast to the declared types.

    Attributes:
        relation: the files.
        cells: SQL of the typed cells, by column.
        missing: SQL of the condition that a file's cell, with `_RAW_PREFIX` in its name, is missing; of columns that
            may have cells that cannot be cast.
        casts_text: whether cells of text are cast, which takes long.
    """

    relation: str
    cells: dict[str, str]
    missing: dict[str, str]
    casts_text: bool

    def select(self, columns: list[str], castable: list[str]) -> str:
        """The query of columns, and of the texts of cells that cannot be cast."""
        inner = [f"{self.cells[c]} AS {quote_identifier(c)}" for c in columns]
        outer = [quote_identifier(c) for c in columns]
        for column in castable:
            cell, raw, text = map(quote_identifier, (column, _RAW_PREFIX + column, UNCAST_PREFIX + column))
            if missing := self.missing.get(column):
                inner.append(f"{cell} AS {raw}")
                outer.append(f"CASE WHEN {cell} IS NULL AND NOT {missing} THEN {raw}::VARCHAR END AS {text}")
            else:
                outer.append(f"NULL::VARCHAR AS {text}")
        # In two steps: DuckDB's search for equal expressions takes longer than the casts if they stand here twice.
        return f"SELECT {', '.join(outer)} FROM (SELECT {', '.join(inner)} FROM {self.relation})"


def _cast_rows(sources: list[_Source], columns: list[str]) -> tuple[str, list[str]]:
    """The query of the rows with some typed columns, and which of these may have cells that cannot be cast."""
    castable = [c for c in columns if any(c in source.missing for source in sources)]
    return " UNION ALL ".join(source.select(columns, castable) for source in sources), castable


def _source(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, landed: list[LandedFile], pieces: list[_Piece]
) -> _Source:
    """Cast the columns of files that have the same types."""
    relation, file_types, file_index, row_number = _scan(con, pieces)
    file = pieces[0].file
    cells = {
        "__file": file_index,
        "__row": row_number,
        "__future": _future(feed, landed, file_index),
    }
    missing, casts_text = {}, file.is_text
    for column, declared in feed.columns.items():
        if column == feed.row_number:
            cells[column] = f"({row_number} + 1)::BIGINT"
            continue
        cell, raw = quote_identifier(column), quote_identifier(_RAW_PREFIX + column)
        cells[column] = _cast(feed, file, column, cell, file_types[column]).value
        if condition := _cast(feed, file, column, raw, file_types[column]).missing:
            missing[column] = condition
        casts_text |= file_types[column] == "VARCHAR" and declared != "string"
    return _Source(relation, cells, missing, casts_text)


def _cast(feed: FeedSchema, file: LandedFile, column: str, cell: str, file_type: str) -> Cast:
    """SQL of a cell of a landed file as its declared type."""
    declared, text_format = feed.columns[column], text_files.cell_format(feed, file.uri)
    if file.is_text and declared == "string":
        return Cast(text_casts.cast_sql(cell, declared, text_format, column))
    return column_casts.cast_sql(cell, declared, file_type, text_format, column)


def _scan(con: duckdb.DuckDBPyConnection, pieces: list[_Piece]) -> tuple[str, dict[str, str], str, str]:
    """SQL of files: the relation, the types of its columns, the index of a row's partition, the row's number in it.

    The last two are from virtual columns of DuckDB's reader, which a column of the files with their name hides.
    """
    paths = ", ".join(text_literal(str(piece.file.path)) for piece in pieces)
    options = f"union_by_name={str(len(pieces) > 1).lower()}, hive_partitioning=false"
    source = f"read_parquet([{paths}], {options})"
    types = dict(
        con.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall()
    )
    taken = {fold_identifier(column) for column in types}
    position, row_number = "file_index::BIGINT", "file_row_number"
    if "file_index" in taken:
        path = "__path"
        while path in taken:
            path += "_"
        source = f"read_parquet([{paths}], {options}, filename={text_literal(path)})"
        position = f"list_position([{paths}], {path})::BIGINT - 1"
    offsets = [piece.rows_before for piece in pieces]
    if "file_row_number" in taken:
        # Across all files, in their order: less the rows of the files before.
        row_number = "row_number() OVER () - 1"
        sizes = [piece.file.rows or 0 for piece in pieces]
        offsets = [offset - sum(sizes[:i]) for i, offset in enumerate(offsets)]
    if any(offsets):
        row_number += f" + {_by_position(position, offsets)}"
    indices = [piece.file_index for piece in pieces]
    file_index = (
        position if indices == [*range(len(pieces))] else f"{_by_position(position, indices)}::BIGINT"
    )
    return source, types, file_index, row_number


def _by_position(position: str, values: list[int]) -> str:
    """SQL of the value for the file of a row."""
    return f"([{', '.join(map(str, values))}])[{position} + 1]" if len(values) > 1 else f"({values[0]})"


def _future(feed: FeedSchema, landed: list[LandedFile], file_index: str) -> str:
    """SQL of the first moment that is too late for a row of its partition."""
    limits = ", ".join(f"TIMESTAMP '{feed.cadence.event_limit(file.day)}'" for file in landed)
    return f"({limits})" if len(landed) == 1 else f"([{limits}])[{file_index} + 1]"
