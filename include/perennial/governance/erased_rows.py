"""Removal of rows from a Delta table, from its older versions, and from its log.

A partition with such rows is written again without them. A file of an older version that has one is deleted, so that
versions whose partitions have none stay readable. Logs of earlier releases hold the least and the greatest value of
each column of each file: these statistics are removed.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from perennial.core.errors import StorageError
from perennial.core.sql import quote_identifier, row_group_rows, text_literal
from perennial.ingestion import erasure_requests
from perennial.storage import (
    delta_tables,
    duckdb_session,
    file_digests,
    generations,
    object_store,
    storage_errors,
)

if TYPE_CHECKING:
    import duckdb

#: SQL of the rows that go, given the columns of a file; empty if it can have none.
Condition = Callable[[Collection[str]], str]
#: Rows that are read and written at a time.
_BATCH_ROWS = 65_536
#: Times that a table is searched: another run may publish a partition while it is written again.
_ROUNDS = 3
#: Seconds after which a file that no version has belongs to a run that was killed.
_ABANDONED_SECONDS = 3600.0


class RemovedRows(NamedTuple):
    """What was removed from a table.

    Attributes:
        rows: number of rows by partition and the values that they were counted by.
        remaining: files that may have such rows and were not deleted, in words: a run may be about to commit them.
    """

    rows: Counter[tuple[str, ...]]
    remaining: list[str]


class MatchingRows(NamedTuple):
    """The rows of a table that match.

    Attributes:
        rows: number of rows of the latest version by partition and the values that they were counted by.
        files: number of data files that have such rows, in all versions; without those that `remove` leaves.
        partitions: the partitions of these files.
    """

    rows: Counter[tuple[str, ...]]
    files: int
    partitions: set[str]


def search(uri: str, condition: Condition, count_by: Sequence[str] = ()) -> MatchingRows:
    """Find the rows that match, in all versions of a table.

    Args:
        uri: the table.
        condition: which rows.
        count_by: columns by whose values the rows are counted.

    Raises:
        StorageError: the table cannot be read.
    """
    if delta_tables.open_table(uri) is None:
        return MatchingRows(Counter(), 0, set())
    with _connect() as con:
        pending = _pending(uri)
        paths = list(_matching_files(con, uri, condition, (p for p in _data_files(uri) if p not in pending)))
        return MatchingRows(_count(con, uri, condition, count_by), len(paths), set(map(_partition, paths)))


def remove(uri: str, condition: Condition, count_by: Sequence[str] = ()) -> RemovedRows:
    """Remove rows from a table, and the files of its older versions that have any.

    It is repeated if that was interrupted.

    Args:
        uri: the table.
        condition: which rows.
        count_by: columns by whose values the rows are counted.

    Raises:
        StorageError: the table cannot be read or written, or another run publishes such rows again and again.
    """
    removed: Counter[tuple[str, ...]] = Counter()
    if delta_tables.open_table(uri) is None:
        return RemovedRows(removed, [])
    with _connect() as con:
        for _ in range(_ROUNDS):
            matches = _count(con, uri, condition, count_by)
            for day in sorted({group[0] for group in matches}):
                _write_without(con, uri, day, condition)
            removed += matches
            if not matches:
                break
        else:
            raise StorageError(
                f"{uri}: other runs write rows that are to be erased", "run it again when they have ended"
            )
        remaining = _delete_old_files(con, uri, condition)
    _remove_statistics(uri)
    return RemovedRows(removed, remaining)


def record_unrecorded(uri: str, partitions: Collection[str]) -> None:
    """Record the digests of files of partitions that have none: their writer was killed after its commit.

    Without a record nobody could read the partitions.
    """
    paths = [path for path in delta_tables.file_paths(uri) if _partition(path) in partitions]
    file_digests.record(uri, file_digests.unrecorded(uri, paths))


def matching(
    uri: str,
    condition: Condition,
    expression: str,
    *,
    needs: Collection[str] = (),
    latest: bool = False,
    unreadable: list[str] | None = None,
) -> set[str]:
    """The values of an expression in the rows that match, in all versions of a table.

    Args:
        uri: the table.
        condition: which rows.
        expression: SQL of a text.
        needs: the columns that it reads; a file without one of them, as of an earlier generation, has no value.
        latest: only in the latest version.
        unreadable: gets the paths of such files that have a row that matches.
    """
    values: set[str] = set()
    if delta_tables.open_table(uri) is None:
        return values
    with _connect() as con, storage_errors.reading(uri):
        for path in delta_tables.file_paths(uri) if latest else _data_files(uri):
            source, columns = _relation(con, uri, path)
            sql = condition(columns)
            if not set(needs) <= set(columns):
                if (
                    sql
                    and unreadable is not None
                    and con.sql(f"SELECT 1 FROM {source} WHERE {sql} LIMIT 1").fetchall()
                ):
                    unreadable.append(f"{uri}/{path}")
            elif sql:
                rows = con.sql(f"SELECT DISTINCT {expression} FROM {source} WHERE {sql}").fetchall()
                values |= {str(value) for (value,) in rows if value is not None}
    return values


def _connect() -> duckdb.DuckDBPyConnection:
    con = duckdb_session.connect()
    erasure_requests.provide_secret(con)
    return con


def _matching_files(
    con: duckdb.DuckDBPyConnection, uri: str, condition: Condition, paths: Iterable[str]
) -> Iterator[str]:
    """The data files that have a row that matches."""
    with storage_errors.reading(uri):
        for path in paths:
            source, columns = _relation(con, uri, path)
            sql = condition(columns)
            if sql and con.sql(f"SELECT 1 FROM {source} WHERE {sql} LIMIT 1").fetchall():
                yield path


def _partition(path: str) -> str:
    """The partition of a data file."""
    folder = path.rpartition("/")[0]
    return unquote(folder.removeprefix(f"{delta_tables.PARTITION}="))


def _data_files(uri: str) -> list[str]:
    """The data files of all versions of a table, by path in it, in order."""
    files = object_store.list_files(uri, recursive=True)
    return sorted(path for path in files if path.endswith(".parquet") and not path.startswith("_delta_log/"))


def _relation(con: duckdb.DuckDBPyConnection, uri: str, path: str) -> tuple[str, list[str]]:
    """SQL of a data file, and its columns, the partition's among them."""
    if object_store.is_remote(uri) or set("*?[") & set(f"{uri}/{path}"):
        name = f"{uri.removeprefix('s3://')}/{path}"
        filesystem = object_store.filesystem() if object_store.is_remote(uri) else None
        con.register("__data_file", ds.dataset(name, filesystem=filesystem, format="parquet"))
        source = "__data_file"
    else:
        source = f"read_parquet({text_literal(f'{uri}/{path}')}, hive_partitioning=false)"
    source = f"(SELECT *, {text_literal(_partition(path))} AS {delta_tables.PARTITION} FROM {source})"
    return source, con.sql(f"SELECT * FROM {source} LIMIT 0").columns


def _count(
    con: duckdb.DuckDBPyConnection, uri: str, condition: Condition, count_by: Sequence[str]
) -> Counter[tuple[str, ...]]:
    """The rows of the latest version that match, by partition and the values of some columns."""
    counts: Counter[tuple[str, ...]] = Counter()
    groups = "".join(f", {quote_identifier(c)}::VARCHAR" for c in count_by)
    with storage_errors.reading(uri):
        for day, files in delta_tables.files_by_partition(uri).items():
            for file in files:
                source, columns = _relation(con, uri, file.path.removeprefix(f"{uri}/"))
                if sql := condition(columns):
                    rows = con.sql(f"SELECT count(*){groups} FROM {source} WHERE {sql} GROUP BY ALL")
                    counts.update({(day, *group): int(n) for n, *group in rows.fetchall() if n})
    return counts


def _write_without(con: duckdb.DuckDBPyConnection, uri: str, day: str, condition: Condition) -> None:
    """Write a partition again without the rows that match."""

    writer = delta_tables.Writer(uri)

    def rows() -> pa.RecordBatchReader:
        table = writer.open()  # the version that the commit follows: another run's rows are not lost
        assert table is not None, uri
        if not duckdb_session.create_view(con, "__partition", uri, table.version(), day, day):
            return delta_tables.arrow_schema(table).empty_table().to_reader()
        columns = con.sql("SELECT * FROM __partition LIMIT 0").columns
        sql = condition(columns)
        relation = con.sql(f"SELECT * FROM __partition WHERE NOT ({sql or 'FALSE'})")
        reader = relation.to_arrow_reader(min(_BATCH_ROWS, row_group_rows(len(columns))))
        return cast("pa.RecordBatchReader", reader)

    writer.replace(rows, day)


def _delete_old_files(con: duckdb.DuckDBPyConnection, uri: str, condition: Condition) -> list[str]:
    """Delete the files of older versions that have such rows.

    Returns:
        Files that may have such rows and stay, in words.
    """
    pending, current = _pending(uri), set(delta_tables.file_paths(uri))
    older = (path for path in _data_files(uri) if path not in current and path not in pending)
    for path in list(_matching_files(con, uri, condition, older)):
        object_store.delete_file(f"{uri}/{path}")
        file_digests.forget(uri, path)
    return [
        f"{uri}/{path}, which a run may be writing: repeat this from {pending[path]} on"
        for path in pending
        if _may_match(con, uri, condition, path)
    ]


def _may_match(con: duckdb.DuckDBPyConnection, uri: str, condition: Condition, path: str) -> bool:
    """Whether a file that may not be complete has a row that matches, or cannot be read."""
    try:
        return any(_matching_files(con, uri, condition, [path]))
    except StorageError:
        return True


def _pending(uri: str) -> dict[str, str]:
    """The young files that no commit added or removed, which a run may be about to commit: until when that may be."""
    current, files = set(delta_tables.file_paths(uri)), object_store.list_files(uri, recursive=True)
    begin = (time.time() - _ABANDONED_SECONDS) * 1e9
    young = {p for p in _data_files(uri) if p not in current and p in files and files[p].modified_ns > begin}
    return {
        path: f"{datetime.fromtimestamp(files[path].modified_ns / 1e9 + _ABANDONED_SECONDS, UTC):%Y-%m-%d %H:%M} UTC"
        for path in sorted(young - _removed_files(uri, begin) if young else ())
    }


def _log_files(uri: str, ending: str) -> list[str]:
    """The files of a table's log with an ending, by name, in order."""
    return sorted(name for name in object_store.list_files(f"{uri}/_delta_log") if name.endswith(ending))


def _removed_files(uri: str, begin: float) -> set[str]:
    """The files that the log says were removed.

    Args:
        uri: the table.
        begin: only the log since this moment is read, in nanoseconds since 1970.
    """
    log = object_store.list_files(f"{uri}/_delta_log")
    return {
        unquote(action["remove"]["path"])
        for name in sorted(log)
        if name.endswith(".json") and log[name].modified_ns > begin
        for action in _actions(object_store.read_text(f"{uri}/_delta_log/{name}"))
        if "remove" in action
    }


def _actions(text: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def _remove_statistics(uri: str) -> None:
    """Remove the values of columns from a table's log, and let it have none from now on."""
    table = delta_tables.open_table(uri)
    assert table is not None, uri
    generations.add_properties(uri, table)
    for name in _log_files(uri, ".json"):
        file = f"{uri}/_delta_log/{name}"
        text = object_store.read_text(file)
        plain = "".join(json.dumps(_without_values(action)) + "\n" for action in _actions(text))
        if plain != "".join(json.dumps(action) + "\n" for action in _actions(text)):
            object_store.write_text(file, plain)
    for name in _log_files(uri, ".checkpoint.parquet"):
        _remove_from_checkpoint(f"{uri}/_delta_log/{name}")


def _without_values(action: dict[str, Any]) -> dict[str, Any]:
    """An action of the log whose statistics have the number of rows only."""
    if "add" not in action or not action["add"].get("stats"):
        return action
    return {**action, "add": {**action["add"], "stats": _rows_only(action["add"]["stats"])}}


def _rows_only(statistics: str) -> str:
    content = json.loads(statistics)
    if not any(content.get(name) for name in ("minValues", "maxValues")):
        return statistics
    return json.dumps({"numRecords": content.get("numRecords", 0)})


def _remove_from_checkpoint(file: str) -> None:
    """Remove the values of columns from a checkpoint of a log."""
    content = pq.read_table(io.BytesIO(object_store.read_bytes(file)))
    added: Any = content.column("add").combine_chunks()
    fields = [added.type.field(i) for i in range(added.type.num_fields)]
    index = next((i for i, field in enumerate(fields) if field.name == "stats"), None)
    if index is None:
        return
    values = [added.field(i) for i in range(len(fields))]
    stored = values[index].to_pylist()
    plain = [text and _rows_only(text) for text in stored]
    if plain == stored:
        return
    values[index] = pa.array(plain, fields[index].type)
    changed = pa.StructArray.from_arrays(values, fields=fields, mask=added.is_null())
    position = content.schema.get_field_index("add")
    content = content.set_column(position, content.schema.field(position), changed)
    target = io.BytesIO()
    pq.write_table(content, target)
    object_store.write_bytes(file, target.getvalue())
