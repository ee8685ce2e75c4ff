"""Reference tables: landed files that features join, copied to the lake with the time at which they were there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from perennial.core import file_formats
from perennial.core.errors import DataError, DataReplacedError
from perennial.core.redaction import error_text
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier, same_identifier, text_literal
from perennial.feeds import compressed_files
from perennial.feeds.compressed_files import DamagedFileError
from perennial.spec.model_spec import ModelSpec, ReferenceTable
from perennial.storage import (
    delta_tables,
    duckdb_session,
    file_digests,
    generations,
    landing,
    locks,
    object_store,
    part_folders,
    storage_errors,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable

#: Key of a commit's metadata: the digest of the file that the version was copied from.
_SOURCE_DIGEST = "perennial.source_digest"
#: Keys of a commit's metadata: when the file was there, and the versions before it, each with the same of its file.
_LANDED_AT, _EARLIER = "perennial.landed_at", "perennial.earlier_copies"
#: Names of the rows of copies that Arrow reads for DuckDB.
_ARROW_NAMES = ("__reference", "__newest_reference")


class Copy(NamedTuple):
    """A copy of a landed file.

    Attributes:
        version: version of the table in the lake.
        landed_at: when the file was there, in UTC.
    """

    version: int
    landed_at: datetime


def uri(reference: ReferenceTable) -> str:
    """The lake table of a reference table: one per source, shared by all models that use it."""
    return f"{settings().lake}/references/{reference.name}-{hashlib.sha256(reference.source.encode()).hexdigest()[:8]}"


def sync_to_lake(spec: ModelSpec) -> dict[str, int]:
    """Copy each reference table whose file has changed to the lake.

    Returns:
        The current version of each table in the lake, by name.

    Raises:
        DataError: a file is missing or cannot be read, and the lake has no copy of it.
    """
    return {reference.name: _sync(spec, reference) for reference in spec.references}


def _sync(spec: ModelSpec, reference: ReferenceTable) -> int:
    from deltalake import CommitProperties, write_deltalake

    source, target = landing.source_uri(reference.source), uri(reference)
    table = delta_tables.open_table(target)
    landed = landing.fingerprint(source)
    if landed is None:
        if table is not None:
            return int(table.version())
        raise DataError(
            f"reference table {reference.name}: {source} is missing",
            "land the file, or correct the source of the reference table in the spec",
            model=spec.name,
        )
    digest, landed_at = landed.digest, _landed_at(landed)
    if table is not None and _is_copy(table, target, digest):
        return int(table.version())
    content = _read_whole(spec, reference, source, table)
    again = landing.fingerprint(source)
    if again is None or again.digest != digest:
        raise DataReplacedError(
            f"reference table {reference.name}: {source} was replaced while it was read",
            "run it again when the feed has delivered the file; feeds should rename a complete file to its place",
            model=spec.name,
        )
    with locks.hold(f"reference-{target.rsplit('/', 1)[1]}"):
        table = delta_tables.open_table(target)
        if table is None or not _is_copy(table, target, digest):
            earlier = copies(table) if table else []
            if earlier:  # a clock that is wrong does not put a copy before those that it replaces
                landed_at = max(landed_at, earlier[-1].landed_at)
            metadata = {
                _SOURCE_DIGEST: digest,
                _LANDED_AT: landed_at.isoformat(),
                _EARLIER: json.dumps([(copy.version, copy.landed_at.isoformat()) for copy in earlier]),
            }
            with storage_errors.writing(target, model=spec.name):
                write_deltalake(
                    target,
                    content,
                    mode="overwrite",
                    schema_mode="overwrite" if table else None,
                    configuration=None if table else delta_tables.TABLE_PROPERTIES,
                    commit_properties=CommitProperties(custom_metadata=metadata),
                    storage_options=settings().storage_options,
                )
            table = delta_tables.open_table(target)
            assert table is not None
            file_digests.record_commit(table, target)
        return int(table.version())


def _landed_at(landed: landing.Fingerprint) -> datetime:
    """When a landed file got there, as far as is known: not later than now."""
    latest = datetime.now(UTC)
    return min(latest, datetime.fromtimestamp(landed.stat.modified_ns / 1e9, UTC)) if landed.stat else latest


def copies(table: DeltaTable) -> list[Copy]:
    """The copies that a table holds up to the version at which it was opened, oldest first."""
    newest = table.history(1)[0]
    if _LANDED_AT in newest:
        listed = [*json.loads(newest[_EARLIER]), (table.version(), newest[_LANDED_AT])]
        return [Copy(int(version), datetime.fromisoformat(at)) for version, at in listed]
    # Copied by an earlier release, which recorded no times: those of the commits are not earlier.
    commits = sorted(
        (int(c["version"]), datetime.fromtimestamp(c["timestamp"] / 1e3, UTC)) for c in table.history()
    )
    return [Copy(*commit) for commit in commits if commit[0] <= table.version()]


def _is_copy(table: DeltaTable, target: str, digest: str) -> bool:
    """Whether a table holds the landed file of this digest, and the digests of its own files are recorded."""
    if table.history(1)[0].get(_SOURCE_DIGEST) != digest:
        return False
    return not file_digests.unrecorded(target, _paths(table))


def _paths(table: DeltaTable) -> list[str]:
    """The files of a table that is not partitioned, by path in the table."""
    return sorted(unquote(file.rsplit("/", 1)[-1]) for file in table.file_uris())


def _read_whole(spec: ModelSpec, reference: ReferenceTable, source: str, copy: DeltaTable | None) -> pa.Table:
    try:
        content = _read_as(source, copy)
        if same := same_identifier(content.column_names, str.lower):
            raise DataError(
                f"reference table {reference.name}: {source} has two columns called {same[0]!r} and {same[1]!r}, and "
                "the lake's tables ignore case",
                "rename one of them in the feed, or leave it out",
                model=spec.name,
            )
        changed = [c for c in generations.changes(copy, content.schema) if not c.lossless] if copy else []
        if changed:
            raise DataError(
                f"reference table {reference.name}: the types of {source} are not those of the lake's copy: "
                f"{'; '.join(map(str, changed))}",
                "correct the file; or land it under another path and name that in the spec: it then begins a new table",
                model=spec.name,
            )
        return content
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"reference table {reference.name}: {source} cannot be read: {error_text(error, hide=spec.hides_values)}",
            "land a complete file; until then, no step of a model that uses it runs",
            model=spec.name,
        ) from error


def _read_as(source: str, copy: DeltaTable | None) -> pa.Table:
    """Read a file with the types of the lake's copy where its values have them.

    The types of a CSV file's columns are those that its values suggest, and change with them: codes such as 007 are
    integers until one of them is X07.
    """
    if copy is None:
        return read_file(source)
    types = {f.name: f.type for f in pa.schema(cast(Any, copy.schema().to_arrow()))}
    if file_formats.ending(source) != ".parquet":
        try:
            return read_file(source, types=types)
        except pa.ArrowInvalid:  # not all values have these types, or the file is damaged
            pass
    content = read_file(source)
    for i, field in enumerate(content.schema):
        wider = pa.types.is_integer(field.type) and pa.types.is_floating(types.get(field.name, field.type))
        if wider or pa.types.is_null(field.type):
            content = content.set_column(
                i, field.name, content.column(i).cast(types.get(field.name, field.type))
            )
    return content


def read_file(
    source: str, max_rows: int | None = None, types: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """Read a landed file, Parquet or CSV, compressed or not (`file_formats`), or a folder of part files.

    Args:
        source: path or S3 URI.
        max_rows: if a Parquet file has more rows, or a file is on S3, only its columns are read: the result has no
            rows. None: the whole file is read.
        types: types of columns of a CSV file; by default those that its values suggest.

    Raises:
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    folder = part_folders.find_complete(source)
    if folder is None:
        return _read_single(source, file_formats.is_text(source), max_rows, types)
    if folder.fault:
        raise pa.ArrowInvalid(folder.fault)
    parts = [
        _read_single(f"{source}/{part}", file_formats.is_text(folder.format_name(part)), max_rows, types)
        for part in folder.parts
    ]
    return pa.concat_tables(parts, promote_options="permissive")


def _read_single(
    source: str, is_text: bool, max_rows: int | None, types: Mapping[str, pa.DataType] | None
) -> pa.Table:
    """As `read_file`, of one file."""
    remote = object_store.is_remote(source)
    path, filesystem = source.removeprefix("s3://"), object_store.filesystem() if remote else None
    if not is_text:
        with pyarrow.parquet.ParquetFile(path, filesystem=filesystem) as file:
            if max_rows is not None and (remote or file.metadata.num_rows > max_rows):
                return file.schema_arrow.empty_table()
            return file.read()
    landed = filesystem.open_input_file(path) if filesystem else pa.OSFile(path, "r")
    with landed, _content(landed, source) as stream:
        if max_rows is not None and remote:
            with pyarrow.csv.open_csv(stream) as reader:
                return reader.schema.empty_table()
        options = pyarrow.csv.ConvertOptions(column_types=dict(types or {}))
        return pyarrow.csv.read_csv(stream, convert_options=options)


def _content(file: Any, source: str) -> Any:
    """The text of a landed file, in memory if it is compressed: its checksum stands at the end."""
    method = file_formats.compression(source)
    if method is None:
        return file
    try:
        return pa.BufferReader(b"".join(compressed_files.blocks(file, method)))
    except DamagedFileError as error:
        raise pa.ArrowInvalid(str(error)) from error


def preview(reference: ReferenceTable, max_rows: int) -> pa.Table | None:
    """Read a reference table without writing to the lake: its landed file, or else the lake's copy.

    Args:
        reference: the table.
        max_rows: if the file has more rows, only its columns are read, as in `read_file`; of the lake's copy, at most
            this many rows are read.

    Returns:
        Its rows, or an empty table with its columns; None if it has not landed and the lake has no copy.

    Raises:
        PerennialError, pyarrow.ArrowException, OSError: it cannot be read.
    """
    source = landing.source_uri(reference.source)
    if landing.has_landed(source):
        return read_file(source, max_rows)
    target = uri(reference)
    table = delta_tables.open_table(target)
    if table is None:
        return None
    remote = object_store.is_remote(target)
    rows = table.to_pyarrow_dataset(filesystem=duckdb_session.table_filesystem(target) if remote else None)
    return rows.schema.empty_table() if remote else rows.head(max_rows)


def open_copy(spec: ModelSpec, reference: ReferenceTable, version: int) -> DeltaTable:
    """Open a reference table of a model.

    Args:
        spec: the model.
        reference: the table.
        version: its version in the lake.

    Raises:
        DataError: it is not in the lake.
        StorageError: the version is gone.
    """
    table = delta_tables.open_table(uri(reference), version)
    if table is None:
        raise DataError(
            f"reference table {reference.name} is not in the lake",
            "run the score or train step: it copies the landed file",
            model=spec.name,
        )
    return table


def load_copy(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    reference: ReferenceTable,
    table: DeltaTable,
    newest: DeltaTable | None = None,
) -> None:
    """Load one version of a reference table into a DuckDB connection, as a temporary table of its name.

    Args:
        con: the connection, which may read the files.
        spec: the model.
        reference: the reference table.
        table: the version of it, as returned by `open_copy`.
        newest: a later version, whose columns and types the loaded rows get: columns that came later are null.
    """
    source = uri(reference)
    with storage_errors.reading(source, model=spec.name):
        file_digests.verify(source, _paths(table))
        if newest is None:
            text = _rows_sql(con, _ARROW_NAMES[0], source, table)
        else:
            file_digests.verify(source, _paths(newest))
            old, new = (
                _rows_sql(con, n, source, t) for n, t in zip(_ARROW_NAMES, (table, newest), strict=True)
            )
            text = f"({old}) UNION ALL BY NAME ({new} LIMIT 0)"
        con.execute(f"CREATE OR REPLACE TEMP TABLE {quote_identifier(reference.name)} AS {text}")
        for name in _ARROW_NAMES:
            con.unregister(name)


def _rows_sql(con: duckdb.DuckDBPyConnection, name: str, source: str, table: DeltaTable) -> str:
    """SQL of the rows of a version; registers them by a name where DuckDB cannot read the files."""
    remote = object_store.is_remote(source)
    paths = [f"{source}/{path}" for path in _paths(table)]
    if paths and not remote and not set("*?[") & set(source):
        # Without Arrow's datasets, whose import and threads need 60 MB.
        listed = ", ".join(map(text_literal, paths))
        return f"SELECT * FROM read_parquet([{listed}], hive_partitioning=false)"
    filesystem = duckdb_session.table_filesystem(source) if remote else None
    con.register(name, table.to_pyarrow_table(filesystem=filesystem))
    return f"SELECT * FROM {name}"


def load_table(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy rows into a temporary table of DuckDB, replacing one of the same name."""
    con.register("__reference", rows)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {quote_identifier(name)} AS SELECT * FROM __reference")
    con.unregister("__reference")
