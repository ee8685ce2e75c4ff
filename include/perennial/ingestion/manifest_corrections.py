"""Manifests after rows were erased: they say what the tables hold, or else what is finished would be done again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from perennial.features import serving_log
from perennial.ingestion.run import LABELS_STEP, STEP
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, manifests
from perennial.storage.delta_tables import File
from perennial.storage.manifests import Manifest

#: Files of each partition of a table, by partition.
_Files = Mapping[str, list[File]]


def correct(spec: ModelSpec, days: Collection[str], before: Mapping[str, str]) -> None:
    """Let the manifests of partitions, and their logged features, say what the tables hold; it is safe to repeat.

    Args:
        spec: the model.
        days: the partitions.
        before: `delta_tables.files_digest` of their published rows before some were erased.

    Raises:
        StorageError: the lake cannot be read or written.
    """
    files = {
        kind: delta_tables.files_by_partition(delta_tables.table_uri(kind, spec.name))
        for kind in ("published", "labels", "predictions")
    }
    quarantined = _quarantined(spec)
    for step, kind in ((STEP, "published"), (LABELS_STEP, "labels")):
        for day, manifest in manifests.read_all(spec.name, step, sorted(days)).items():
            rows = sum(file.rows for file in files[kind].get(day, ()))
            manifests.rewrite(_as_stored(spec, manifest, rows, quarantined.get((step, day), 0), files))
    for day, manifest in manifests.read_all(spec.name, "score", sorted(days)).items():
        after = delta_tables.files_digest(files["published"].get(day, ()))
        if manifest.inputs.get("rows") not in (before.get(day, ""), after):
            continue  # scored from other rows: it is scored again
        rows = sum(file.rows for file in files["predictions"].get(day, ()))
        inputs = {**manifest.inputs, "rows": after}
        result = {**manifest.result, "rows": rows}
        manifests.rewrite(replace(manifest, inputs=inputs, rows_in=rows, rows_out=rows, result=result))
        _relabel_log(spec, day, serving_log.inputs_digest(inputs))


def digests(uri: str) -> dict[str, str]:
    """The `delta_tables.files_digest` of each partition of a table."""
    files = delta_tables.files_by_partition(uri)
    return {day: delta_tables.files_digest(listed) for day, listed in files.items()}


def _quarantined(spec: ModelSpec) -> dict[tuple[str, str], int]:
    """The number of rows in quarantine, by step and the partition of their file."""
    feed, day, cells = (spec.lake_column(name) for name in ("feed", "feed_date", "row_values"))
    with duckdb_session.connect(threads=1) as con:
        uri = delta_tables.table_uri("quarantine", spec.name)
        if not duckdb_session.create_view(con, "__quarantine", uri):
            return {}
        rows = con.sql(
            f"SELECT CASE {feed} WHEN 'labels' THEN '{LABELS_STEP}' ELSE '{STEP}' END, {day}, count({cells}) "
            "FROM __quarantine GROUP BY ALL"
        ).fetchall()
    return {(step, str(partition)): int(n) for step, partition, n in rows}


def _as_stored(
    spec: ModelSpec, manifest: Manifest, rows: int, quarantined: int, files: Mapping[str, _Files]
) -> Manifest:
    """The manifest of the rows, or labels, of a partition as the tables hold them."""
    labels = 0 if manifest.step == STEP and spec.label.source else rows
    counts: dict[str, Any] = {
        "rows_in": rows + quarantined, "rows_out": rows, "quarantined": quarantined, "labels": labels,
        "labels_quarantined": quarantined,
    }  # fmt: skip
    recorded = manifest.outputs.get("files") or {}
    present = {
        kind: delta_tables.files_digest(files[kind].get(manifest.key, ()))
        for kind in recorded
        if kind in files
    }
    return replace(
        manifest,
        rows_in=rows + quarantined,
        rows_out=rows,
        quarantined=quarantined,
        result={**manifest.result, **{k: n for k, n in counts.items() if k in manifest.result}},
        outputs={**manifest.outputs, "files": {**recorded, **present}},
    )


def _relabel_log(spec: ModelSpec, day: str, digest: str) -> None:
    """Let the logged features of a partition name the scoring as its manifest has it now."""
    writer, name = delta_tables.Writer(serving_log.uri(spec.name)), spec.lake_column("scored_from")
    if day not in delta_tables.partitions(writer.uri):
        return

    def rows() -> pa.RecordBatchReader:
        table = writer.open()  # the version that the commit follows: another run's rows are not lost
        assert table is not None, writer.uri
        with duckdb_session.connect(threads=1) as con:
            if not duckdb_session.create_view(con, "__log", writer.uri, table.version(), day, day):
                return delta_tables.arrow_schema(table).empty_table().to_reader()
            logged: pa.Table = con.sql("SELECT * FROM __log").to_arrow_table()
        column = pa.array([digest] * len(logged), logged.schema.field(name).type)
        return logged.set_column(logged.schema.get_field_index(name), name, column).to_reader()

    writer.replace(rows, day)
