"""Reference tables: landed files that features join, copied to the lake to pin their versions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
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
    digest = _digest(source)
    if digest is None:
        if table is not None:
            return int(table.version())
        raise DataError(
            f"reference table {reference.name}: {source} is missing",
            "land the file, or correct the source of the reference table in the spec",
            model=spec.name,
        )
    if table is not None and _is_copy(table, target, digest):
        return int(table.version())
    content = _read_whole(spec, reference, source, table)
    if _digest(source) != digest:
        raise DataReplacedError(
            f"reference table {reference.name}: {source} was replaced while it was read",
            "run it again when the feed has delivered the file; feeds should rename a complete file to its place",
            model=spec.name,
        )
    with locks.hold(f"reference-{target.rsplit('/', 1)[1]}"):
        table = delta_tables.open_table(target)
        if table is None or not _is_copy(table, target, digest):
            with storage_errors.writing(target, model=spec.name):
                write_deltalake(
                    target,
                    content,
                    mode="overwrite",
                    schema_mode="overwrite" if table else None,
                    commit_properties=CommitProperties(custom_metadata={_SOURCE_DIGEST: digest}),
                    storage_options=settings().storage_options,
                )
            table = delta_tables.open_table(target)
            assert table is not None
            file_digests.record_commit(table, target)
        return int(table.version())


def _digest(source: str) -> str | None:
    """The digest of a landed file, or of a complete folder of part files; None if there is none."""
    fingerprint = landing.fingerprint(source)
    return fingerprint.digest if fingerprint else None


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


def load_into(con: duckdb.DuckDBPyConnection, spec: ModelSpec, versions: dict[str, int]) -> None:
    """Load the model's reference tables into a DuckDB connection.

    Args:
        con: the connection; each reference table becomes a temporary table with the same name.
        spec: the model.
        versions: version of each reference table in the lake, by name.

    Raises:
        DataError: a table is not in the lake.
    """
    for reference in spec.references:
        source = uri(reference)
        table = delta_tables.open_table(source, versions[reference.name])
        if table is None:
            raise DataError(
                f"reference table {reference.name} is not in the lake",
                "run the score or train step: it copies the landed file",
                model=spec.name,
            )
        with storage_errors.reading(source, model=spec.name):
            _load(con, reference.name, source, table)


def _load(con: duckdb.DuckDBPyConnection, reference: str, source: str, table: DeltaTable) -> None:
    """Load one reference table from its table in the lake."""
    name, remote = quote_identifier(reference), object_store.is_remote(source)
    file_digests.verify(source, _paths(table))
    paths = [f"{source}/{path}" for path in _paths(table)]
    if paths and not remote and not set("*?[") & set(source):
        # Without Arrow's datasets, whose import and threads need 60 MB.
        listed = ", ".join(map(text_literal, paths))
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {name} AS "
            f"SELECT * FROM read_parquet([{listed}], hive_partitioning=false)"
        )
        return
    filesystem = duckdb_session.table_filesystem(source) if remote else None
    load_table(con, reference, table.to_pyarrow_table(filesystem=filesystem))


def load_table(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy rows into a temporary table of DuckDB, replacing one of the same name."""
    con.register("__reference", rows)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {quote_identifier(name)} AS SELECT * FROM __reference")
    con.unregister("__reference")
