"""Reference tables: landed files that features join to, kept in the lake so that a version can be pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier, text_literal
from perennial.spec.model_spec import ModelSpec, ReferenceTable
from perennial.storage import delta_tables, duckdb_session, landing, locks, object_store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_KEY = "perennial.source_digest"


def uri(reference: ReferenceTable) -> str:
    """The lake table of a reference: one a source, whichever models name it."""
    return f"{settings().lake}/references/{reference.name}-{hashlib.sha256(reference.source.encode()).hexdigest()[:8]}"


def sync_to_lake(spec: ModelSpec) -> dict[str, int]:
    """Bring the lake's copy of each reference table up to its file, and return the version of each by name.

    Raises:
        DataError: a file is missing or cannot be read, and the lake has no copy of it.
    """
    return {reference.name: _refresh(spec, reference) for reference in spec.references}


def _refresh(spec: ModelSpec, reference: ReferenceTable) -> int:
    from deltalake import CommitProperties, write_deltalake

    source, place = landing.source_uri(reference.source), uri(reference)
    table = delta_tables.open_table(place)
    try:
        digest = object_store.digest(source)
    except FileNotFoundError:
        if table is not None:
            return int(table.version())
        raise DataError(
            f"reference table {reference.name}: {source} is missing",
            "land the file, or mend the reference's source in the spec",
            model=spec.name,
        ) from None
    if table is not None and table.history(1)[0].get(_KEY) == digest:
        return int(table.version())
    content = _read(spec, reference, source)
    with locks.hold(f"reference-{place.rsplit('/', 1)[1]}"):
        table = delta_tables.open_table(place)
        if table is None or table.history(1)[0].get(_KEY) != digest:
            write_deltalake(
                place,
                content,
                mode="overwrite",
                schema_mode="overwrite" if table else None,
                commit_properties=CommitProperties(custom_metadata={_KEY: digest}),
                storage_options=settings().storage_options,
            )
        return int(delta_tables.open_table(place).version())  # type: ignore[union-attr]


def _read(spec: ModelSpec, reference: ReferenceTable, source: str) -> pa.Table:
    import pyarrow.csv
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    remote = object_store.is_remote(source)
    path, filesystem = source.removeprefix("s3://"), object_store.filesystem() if remote else None
    try:
        if source.endswith(".parquet"):
            return pyarrow.parquet.ParquetFile(path, filesystem=filesystem).read()
        with filesystem.open_input_stream(path) if filesystem else Path(path).open("rb") as file:
            return pyarrow.csv.read_csv(file)
    except (ArrowException, OSError) as error:
        raise DataError(
            f"reference table {reference.name}: {source} cannot be read: {error}",
            "land a whole file; models go on with the last good copy until then",
            model=spec.name,
        ) from error


def load_into(con: duckdb.DuckDBPyConnection, spec: ModelSpec, versions: dict[str, int]) -> None:
    """Load each reference table into ``con``, under its name, at the version pinned.

    Raises:
        DataError: a version is not there.
    """
    for reference in spec.references:
        table = delta_tables.open_table(uri(reference), versions[reference.name])
        if table is None:
            raise DataError(
                f"reference table {reference.name} is not in the lake",
                "run the model's data step first",
                model=spec.name,
            )
        place, target = uri(reference), quote_identifier(reference.name)
        paths = [unquote(p.removeprefix("file://")) for p in sorted(table.file_uris())]
        if paths and not object_store.is_remote(place) and not set("*?[") & set(place):
            # Not by way of Arrow's datasets, which take 60 MB to import and to start their threads.
            listed = ", ".join(map(text_literal, paths))
            con.execute(
                f"CREATE OR REPLACE TEMP TABLE {target} AS "
                f"SELECT * FROM read_parquet([{listed}], hive_partitioning=false)"
            )
            continue
        filesystem = duckdb_session.table_filesystem(place) if object_store.is_remote(place) else None
        con.register("_reference", table.to_pyarrow_table(filesystem=filesystem))
        con.execute(f"CREATE OR REPLACE TEMP TABLE {target} AS SELECT * FROM _reference")
        con.unregister("_reference")
