"""The step that writes predictions to a table of a database, besides the lake (``predictions`` of the spec)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import DatabaseError, DataError, PerennialError, SpecError
from perennial.databases import connections, tables
from perennial.features import scan_units
from perennial.lifecycle import backlog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests
from perennial.storage.delta_tables import PARTITION, File
from perennial.storage.manifests import Manifest

#: Name of the step in manifests.
STEP = "publish_predictions"
#: Rows that are read and written at a time.
CHUNK_ROWS = 50_000
log = logging.getLogger("perennial")


class PublishedPredictions(TypedDict):
    """What the step wrote.

    Attributes:
        partitions: dates that the table has, in order.
        rows: predictions of these partitions.
        table: name of the table.
        status: ``published``, or ``unchanged`` if the same predictions were written before.
        late: earlier partitions that were written in addition.
    """

    partitions: list[str]
    rows: int
    table: str
    status: str
    late: list[str]


def publish_predictions(
    spec: ModelSpec,
    *,
    start: str,
    end: str | None = None,
    force: bool = False,
    run_id: str = "",
    catch_up: bool = False,
) -> PublishedPredictions:
    """Write the predictions of a range of partitions to the table that the spec names.

    A partition is replaced whole. One whose predictions were written before is skipped.

    Args:
        spec: the model.
        start: first partition date.
        end: last partition date; ``start`` when not given.
        force: write again even if the same predictions were written before.
        run_id: id of the Airflow run.
        catch_up: also write earlier partitions whose predictions were not written, at most `backlog.most_per_run`;
            their failures are only logged.

    Raises:
        SpecError: the spec names no table.
        DataError: nothing is scored in the range.
        DatabaseError: the database does not answer, or refuses to be written.
    """
    started = time.monotonic()
    target = spec.predictions
    if target.table is None or target.connection is None:
        raise SpecError("predictions.table is not given", "name a connection and a table", model=spec.name)
    files = delta_tables.files_by_partition(delta_tables.table_uri("predictions", spec.name))
    requested = [day for day in spec.cadence.keys(start, end) if day in files]
    if not requested:
        span = start if end in (None, start) else f"{start}..{end}"
        raise DataError("nothing is scored", "score these dates first", model=spec.name, partition=span)
    pending = [day for day in requested if force or not _is_written(spec, day, files[day])]
    for day in pending:
        _write(spec, day, files[day], run_id, started)

    def write_one(day: str) -> None:
        _write(spec, day, files[day], run_id, started)

    late = _overdue(spec, files, start) if catch_up else []
    return PublishedPredictions(
        partitions=requested,
        rows=sum(file.rows for day in requested for file in files[day]),
        table=target.table,
        status="published" if pending else "unchanged",
        late=backlog.work_off(spec, "score", late, write_one, started),
    )


def replace_written(
    spec: ModelSpec, partitions: Iterable[str], run_id: str = "", *, emptied: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Write partitions again that the table has, after rows of them were erased from the lake.

    One that the lake does not have any more is left as it is, since its retention may be shorter than the table's.

    Args:
        spec: the model.
        partitions: their dates.
        run_id: id of the Airflow run.
        emptied: those of which every prediction was erased.

    Returns:
        Those that were written; and what the table may still have, in words.

    Raises:
        DatabaseError: the database does not answer, or refuses to be written.
    """
    started, written = time.monotonic(), manifests.finished(spec.name, STEP)
    days = [day for day in partitions if day in written] if spec.predictions.table else []
    uri = delta_tables.table_uri("predictions", spec.name)
    files = delta_tables.files_by_partition(uri) if days else {}
    replaced = [day for day in days if day in files or day in emptied]
    for day in replaced:
        _write(spec, day, files.get(day, []), run_id, started)
    others = [day for day in days if day not in replaced]
    return replaced, [
        f"table {spec.predictions.table} of the database, {day}: delete there, as the lake has nothing of it any more"
        for day in others
    ]


def _inputs(spec: ModelSpec, files: list[File]) -> dict[str, Any]:
    """What the table's rows of a partition depend on; only the name of the connection, never its URI."""
    return {"predictions": delta_tables.files_digest(files), "target": spec.predictions.model_dump()}


def _is_written(spec: ModelSpec, day: str, files: list[File]) -> bool:
    return manifests.find_completed(spec.name, STEP, day, _inputs(spec, files)) is not None


def _overdue(spec: ModelSpec, files: dict[str, list[File]], before: str) -> list[str]:
    """Scored partitions before a date that were not written since, the earliest first."""
    written = manifests.finished(spec.name, STEP)
    if not written:
        return []  # a new target: a run of a range writes what was scored before
    scored = manifests.finished(spec.name, "score")
    first = min(written)
    late = [day for day in files if first <= day < before and scored.get(day, 0) > written.get(day, 0)]
    return [day for day in late if not _is_written(spec, day, files[day])][
        : backlog.most_per_run(spec, "scored")
    ]


def _write(spec: ModelSpec, day: str, files: list[File], run_id: str, started: float) -> None:
    """Replace one partition of the table, and write its manifest."""
    target = spec.predictions
    key = [PARTITION, *spec.data.key]
    batches = _batches(spec, day, files)
    try:
        first = next(batches)
        rows = tables.replace_partition(
            target.connection or "",
            tables.TablePartition(target.table or "", key, PARTITION, day, first.schema),
            _chain(first, batches),
        )
    except DatabaseError as error:
        raise type(error)(error.cause, error.remedy, model=spec.name, partition=day) from None
    expected = sum(file.rows for file in files)
    if rows != expected:
        raise PerennialError(
            f"{expected} predictions are in the lake, {rows} were written to {target.table}",
            "run it again with --force",
            model=spec.name,
            partition=day,
        )
    log.info("Wrote %d predictions of %s to %s.", rows, day, target.table)
    address = connections.find(target.connection or "").address
    result = {"partition": day, "rows": rows, "table": target.table, "database": address, "run_id": run_id}
    manifest = Manifest(
        spec.name, STEP, day, _inputs(spec, files), result, rows_in=rows, rows_out=rows, run_id=run_id
    )
    manifests.write_all([manifest], started)


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _batches(spec: ModelSpec, day: str, files: list[File]) -> Iterator[pa.RecordBatch]:
    """The predictions of a partition as the table's columns."""
    names = map(spec.lake_column, ("prediction", "probabilities", "model_version", "run_id", "scored_at"))
    stored = [*spec.data.key, *names]
    if not files:  # all of its rows were erased
        yield _no_rows(spec, stored)
    for unit in scan_units.plan_units({day: files}, CHUNK_ROWS, CHUNK_ROWS):
        rows = unit.read(stored)
        columns: dict[str, pa.Array[Any]] = {PARTITION: pa.repeat(pa.scalar(day, pa.string()), len(rows))}
        for name in stored:
            if name in rows.column_names:
                columns[name] = _plain(rows.column(name).combine_chunks())
        yield pa.RecordBatch.from_pydict(columns)


def _no_rows(spec: ModelSpec, stored: list[str]) -> pa.RecordBatch:
    """No rows, with the columns of the predictions."""
    table = delta_tables.open_table(delta_tables.table_uri("predictions", spec.name))
    assert table is not None, spec.name
    schema = pa.schema(cast(Any, table.schema().to_arrow()))
    columns = {PARTITION: pa.array([], pa.string())}
    columns |= {n: _plain(pa.array([], schema.field(n).type)) for n in stored if n in schema.names}
    return pa.RecordBatch.from_pydict(columns)


def _plain(column: Any) -> Any:
    """A column of a type that every database has: lists, as of probabilities, become JSON."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(pc.cast(column, kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.array([None if v is None else json.dumps(v) for v in column.to_pylist()], pa.string())
    if pa.types.is_floating(kind):
        return pc.cast(column, pa.float64())
    if pa.types.is_integer(kind):
        return pc.cast(column, pa.int64())
    if pa.types.is_timestamp(kind):
        return pc.cast(column, pa.timestamp("us", kind.tz))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pc.cast(column, pa.string())
    return column
