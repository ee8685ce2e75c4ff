"""Generations of a table: what its columns mean and which types they have, and how that changes.

A property of the table holds the definition of its rows, such as the task and the label. A change that keeps every
stored value is a rewrite in one commit (`widen`). Any other begins a new generation (`start`): one commit that empties
the table and gives it its new columns. In both cases the versions before stay readable for trainings that pinned them.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from perennial.core.errors import StorageError
from perennial.storage import delta_tables, file_digests, object_store, storage_errors
from perennial.storage._column_types import ColumnChange, changes

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, RemoveAction

__all__ = [
    "ColumnChange",
    "InexactError",
    "add_properties",
    "adopt",
    "changes",
    "definition",
    "exact",
    "lasting_properties",
    "number",
    "properties",
    "start",
    "widen",
]

#: Property of a table: the number of its generation.
_NUMBER = "perennial.generation"
#: Attempts at a commit while other writers write to the table.
_ATTEMPTS = 3


def properties(definition: Mapping[str, Any], number: int = 1) -> dict[str, str]:
    """The properties of a table of one generation.

    Args:
        definition: what its rows mean; JSON-serialisable.
        number: number of the generation, from 1.
    """
    return {delta_tables.DEFINITION: json.dumps(definition, sort_keys=True), _NUMBER: str(number)}


def lasting_properties(present: Mapping[str, str], age: timedelta = timedelta(0)) -> dict[str, str]:
    """The properties of every table, with intervals that are not shorter than those of a table.

    Args:
        present: the table's properties; those of an earlier release have none.
        age: how long its versions are kept at least.
    """
    wanted = dict(delta_tables.TABLE_PROPERTIES)
    for name in (n for n, value in wanted.items() if value.startswith("interval")):
        days = [re.findall(r"\d+", text) for text in (wanted[name], present.get(name, ""))]
        wanted[name] = f"interval {max(age.days, *(int(numbers[0]) for numbers in days if numbers))} days"
    return wanted


def add_properties(uri: str, table: DeltaTable, age: timedelta = timedelta(0)) -> None:
    """Give a table the properties of `lasting_properties` that it lacks.

    Raises:
        StorageError: the lake cannot be written.
    """
    present = table.metadata().configuration
    missing = {k: v for k, v in lasting_properties(present, age).items() if present.get(k) != v}
    if missing:
        with storage_errors.writing(uri):
            table.alter.set_table_properties(missing, raise_if_not_exists=False)


def number(table: DeltaTable | None) -> int:
    """The number of a table's generation, from 1; 1 for a table that does not exist."""
    return int(table.metadata().configuration.get(_NUMBER, 1)) if table else 1


def definition(table: DeltaTable) -> dict[str, Any] | None:
    """What the rows of a table mean; None if that was not recorded when it was created."""
    text = table.metadata().configuration.get(delta_tables.DEFINITION)
    return None if text is None else dict(json.loads(text))


def adopt(uri: str, definition: Mapping[str, Any]) -> None:
    """Record what the rows of a table mean that was created without a definition.

    Raises:
        StorageError: the lake cannot be written.
    """

    def commit() -> int:
        table = _open(uri)
        table.alter.set_table_properties(properties(definition, number(table)), raise_if_not_exists=False)
        return int(table.version())

    _retry(uri, commit)


def start(uri: str, schema: pa.Schema, definition: Mapping[str, Any], reason: str) -> int:
    """Begin a new generation of a table: it is empty and has the columns of ``schema``.

    Args:
        uri: the table.
        schema: its columns, with ``partition_date``.
        definition: what its rows will mean.
        reason: why, for the table's history.

    Returns:
        The number of the generation.

    Raises:
        StorageError: the lake cannot be written; nothing was changed.
    """

    def commit() -> int:
        table = _open(uri)
        following = number(table) + 1
        lasting = lasting_properties(table.metadata().configuration)
        delta_tables.create(uri, schema, {**lasting, **properties(definition, following)}, reason=reason)
        return following

    return _retry(uri, commit)


def widen(uri: str, schema: pa.Schema, columns: Collection[str], reason: str) -> int:
    """Convert columns of a table to the types of ``schema`` in one commit, without changing a value.

    The files are rewritten one row group at a time.

    Args:
        uri: the table.
        schema: has the new types of these columns.
        columns: the columns to convert.
        reason: why, for the table's history.

    Returns:
        The version that has the new types.

    Raises:
        InexactError: a stored value does not exist in the new type; nothing was changed.
        StorageError: the lake cannot be written; nothing was changed.
    """
    return _retry(uri, lambda: _rewrite(uri, {c: schema.field(c).type for c in columns}, reason))


def exact(uri: str, schema: pa.Schema, columns: Collection[str]) -> bool:
    """Whether `widen` could convert these columns: every stored value exists in its new type.

    Args:
        uri: the table.
        schema: has the new types of these columns.
        columns: the columns to convert.
    """
    import pyarrow.parquet as pq

    types = {c: schema.field(c).type for c in columns}
    filesystem = object_store.filesystem() if object_store.is_remote(uri) else None
    for path, _ in _files(_open(uri)):
        with pq.ParquetFile(f"{uri.removeprefix('s3://')}/{path}", filesystem=filesystem) as file:
            present = [c for c in columns if c in file.schema_arrow.names]
            for group in range(file.metadata.num_row_groups):
                rows = file.read_row_group(group, present)
                try:
                    _cast(rows, _with_types(rows.schema, types))
                except InexactError:
                    return False
    return True


class InexactError(Exception):
    """A column has a value that does not exist in its new type; the message is the column's name."""


def _rewrite(uri: str, types: Mapping[str, pa.DataType], reason: str) -> int:
    import pyarrow as pa
    from deltalake import CommitProperties, Schema, TableFeatures
    from deltalake.exceptions import CommitFailedError

    table = _open(uri)
    fields = list(pa.schema(cast(Any, table.schema().to_arrow())))
    schema = pa.schema([field.with_type(types.get(field.name, field.type)) for field in fields])
    if list(schema) == fields:  # another run has converted it
        return int(table.version())
    written: list[str] = []
    file_digests.verify(uri, [path for path, _ in _files(table)])
    try:
        actions: list[AddAction | RemoveAction] = [
            _convert(uri, path, day, types, written) for path, day in _files(table)
        ]
        file_digests.record(uri, written)
        features = table.protocol().writer_features or []
        if any(t == pa.timestamp("us") for t in types.values()) and "timestampNtz" not in features:
            ntz = TableFeatures.TimestampWithoutTimezone
            table.alter.add_feature(ntz, allow_protocol_versions_increase=True)
    except BaseException:
        _delete(uri, written)
        raise
    try:
        table.create_write_transaction(
            actions,
            "overwrite",
            Schema.from_arrow(schema),
            [delta_tables.PARTITION],
            commit_properties=CommitProperties({"perennial.reason": reason}, 0),
        )
    except CommitFailedError:
        _delete(uri, written)
        raise
    # After any other error the commit may have been made, and the table then needs the files.
    table.update_incremental()
    return int(table.version())


def _delete(uri: str, paths: Iterable[str]) -> None:
    for path in paths:
        object_store.delete_file(f"{uri}/{path}")


def _files(table: DeltaTable) -> list[tuple[str, str]]:
    """Path and partition date of each file."""
    actions = table.get_add_actions(flatten=True)
    days = actions[f"partition.{delta_tables.PARTITION}"].to_pylist()
    return [(unquote(path), day) for path, day in zip(actions["path"].to_pylist(), days, strict=True)]


def _convert(
    uri: str, file: str, day: str, types: Mapping[str, pa.DataType], written: list[str]
) -> AddAction:
    """Write a file again with other types; its new path is added to ``written`` first."""
    import pyarrow.parquet as pq
    from deltalake.transaction import AddAction

    filesystem = object_store.filesystem() if object_store.is_remote(uri) else None
    root = uri.removeprefix("s3://")
    path = f"{file.rpartition('/')[0]}/part-00000-{uuid.uuid4()}-c000.snappy.parquet"
    written.append(path)
    rows = 0
    with pq.ParquetFile(f"{root}/{file}", filesystem=filesystem) as source:
        schema = _with_types(source.schema_arrow, types)
        with pq.ParquetWriter(f"{root}/{path}", schema, filesystem=filesystem) as writer:
            for group in range(source.metadata.num_row_groups):
                part = _cast(source.read_row_group(group), schema)
                writer.write_table(part)
                rows += len(part)
    size = filesystem.get_file_info(f"{root}/{path}").size if filesystem else Path(root, path).stat().st_size
    stats = json.dumps({"numRecords": rows})
    return AddAction(path, size, {delta_tables.PARTITION: day}, int(time.time() * 1000), True, stats)


def _with_types(schema: pa.Schema, types: Mapping[str, pa.DataType]) -> pa.Schema:
    for i, field in enumerate(schema):
        schema = schema.set(i, field.with_type(types.get(field.name, field.type)))
    return schema


def _cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    for i, field in enumerate(schema):
        try:
            rows = rows.set_column(i, field, rows.column(i).cast(field.type))
        except pa.ArrowInvalid:  # its message has the value
            raise InexactError(field.name) from None
    return rows


def _open(uri: str) -> DeltaTable:
    table = delta_tables.open_table(uri)
    assert table is not None, uri
    return table


def _retry(uri: str, commit: Callable[[], int]) -> int:
    """Commit; again with the latest version if another writer was faster."""
    from deltalake.exceptions import CommitFailedError

    for attempt in range(_ATTEMPTS):
        try:
            return commit()
        except CommitFailedError:
            time.sleep(0.1 * attempt)
        except BaseException as error:
            if not storage_errors.is_storage_failure(error):
                raise
            raise storage_errors.write_error(uri, error) from error
    raise StorageError(
        f"{uri}: the commit conflicted with other writers {_ATTEMPTS} times",
        "run it again when the other runs have ended",
    )
