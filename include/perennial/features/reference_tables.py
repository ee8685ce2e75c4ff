"""Reference tables: landed files that features join, copied to the lake to pin their versions."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier, text_literal
from perennial.spec.model_spec import ModelSpec, ReferenceTable
from perennial.storage import delta_tables, duckdb_session, landing, locks, object_store

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
    try:
        digest = object_store.digest(source)
    except FileNotFoundError:
        if table is not None:
            return int(table.version())
        raise DataError(
            f"reference table {reference.name}: {source} is missing",
            "land the file, or correct the source of the reference table in the spec",
            model=spec.name,
        ) from None
    if table is not None and table.history(1)[0].get(_SOURCE_DIGEST) == digest:
        return int(table.version())
    content = _read_whole(spec, reference, source)
    with locks.hold(f"reference-{target.rsplit('/', 1)[1]}"):
        table = delta_tables.open_table(target)
        if table is None or table.history(1)[0].get(_SOURCE_DIGEST) != digest:
            write_deltalake(
                target,
                content,
                mode="overwrite",
                schema_mode="overwrite" if table else None,
                commit_properties=CommitProperties(custom_metadata={_SOURCE_DIGEST: digest}),
                storage_options=settings().storage_options,
            )
        return int(delta_tables.open_table(target).version())  # type: ignore[union-attr]


def _read_whole(spec: ModelSpec, reference: ReferenceTable, source: str) -> pa.Table:
    try:
        return read_file(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"reference table {reference.name}: {source} cannot be read: {error}",
            "land a complete file; until then, models use the last copy in the lake",
            model=spec.name,
        ) from error


def read_file(source: str, max_rows: int | None = None) -> pa.Table:
    """Read a landed file, Parquet or CSV, compressed or not.

    Args:
        source: path or S3 URI.
        max_rows: if a Parquet file has more rows, or a file is on S3, only its columns are read: the result has no
            rows. None: the whole file is read.

    Raises:
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    remote = object_store.is_remote(source)
    path, filesystem = source.removeprefix("s3://"), object_store.filesystem() if remote else None
    if source.endswith(".parquet"):
        with pyarrow.parquet.ParquetFile(path, filesystem=filesystem) as file:
            if max_rows is not None and (remote or file.metadata.num_rows > max_rows):
                return file.schema_arrow.empty_table()
            return file.read()
    # Both ways decompress a file whose name says that it is compressed.
    file_stream: Any = filesystem.open_input_stream(path) if filesystem else pa.input_stream(path)
    with file_stream as stream:
        if max_rows is not None and remote:
            with pyarrow.csv.open_csv(stream) as reader:
                return reader.schema.empty_table()
        return pyarrow.csv.read_csv(stream)


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
    if object_store.exists(source):
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
                "run the model's data step first",
                model=spec.name,
            )
        name, remote = quote_identifier(reference.name), object_store.is_remote(source)
        paths = [unquote(p.removeprefix("file://")) for p in sorted(table.file_uris())]
        if paths and not remote and not set("*?[") & set(source):
            # Without Arrow's datasets, whose import and threads need 60 MB.
            listed = ", ".join(map(text_literal, paths))
            con.execute(
                f"CREATE OR REPLACE TEMP TABLE {name} AS "
                f"SELECT * FROM read_parquet([{listed}], hive_partitioning=false)"
            )
            continue
        load_table(
            con,
            reference.name,
            table.to_pyarrow_table(filesystem=duckdb_session.table_filesystem(source) if remote else None),
        )


def load_table(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy rows into a temporary table of DuckDB, replacing one of the same name."""
    con.register("_reference", rows)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {quote_identifier(name)} AS SELECT * FROM _reference")
    con.unregister("_reference")
