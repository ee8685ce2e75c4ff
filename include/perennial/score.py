"""The score step: the champion's prediction for every published row of a partition, or of a range in one go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import pairwise
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from perennial import files, lake, manifest, references, registry
from perennial.errors import DataError, PerennialError, StorageError
from perennial.features import Features
from perennial.manifest import Manifest
from perennial.settings import settings
from perennial.spec import ModelSpec
from perennial.train import prediction

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.model import Model

#: Rows scored at a time, and rows a commit: what the memory of the step depends on, beside 240 MiB of libraries.
BATCH = 49_152
COMMIT_ROWS = 250_000
Item = TypeVar("Item")
Made = TypeVar("Made")


def score(
    spec: ModelSpec, *, start: str, end: str | None = None, force: bool = False, run_id: str = ""
) -> dict[str, Any]:
    """Score the published partitions from ``start`` to ``end`` (both included) with the champion.

    Each partition is replaced whole; one that was scored by the same champion from the same rows is left as it is.

    Returns:
        partitions (those scored now), rows_in, rows_out, missing, model_version and status (``scored``, ``unchanged``
        or ``no champion``).

    Raises:
        DataError: nothing was published in the range. ArtifactError: the champion's file is not what was registered.
    """
    started = time.monotonic()
    wanted = files.dates(start, end)
    published = lake.table("published", spec.name)
    version = lake.version(published)  # what is published while this runs is for the next run
    here = set(lake.partitions(published, version))
    present = [d for d in wanted if d in here]
    where = start if len(wanted) == 1 else f"{start}..{end}"
    if not present:
        raise DataError(
            "no published rows", "run the data DAG for it first", model=spec.name, partition=where
        )
    champion = registry.champion(spec)
    result: dict[str, Any] = {
        "partitions": [],
        "missing": [d for d in wanted if d not in here],
        "rows_in": 0,
        "rows_out": 0,
        "model_version": champion.version if champion else None,
        "status": "no champion",
    }
    if champion is None:
        return result
    trained = registry.spec(champion)
    versions = references.refresh(trained)
    prints, sizes = lake.fingerprints(published, version), lake.sizes(published, version)
    inputs = {
        day: {
            "rows": prints[day],
            "champion": champion.digest,
            "version": champion.version,
            "references": versions,
        }
        for day in present
    }
    todo = [d for d in present if force or not manifest.finished(spec.name, "score", d, inputs[d])]
    if not todo:
        return result | {"status": "unchanged"}
    model, free = registry.load(champion, threads=1), SimpleQueue[Features]()
    # Made here and not in the threads: a table cannot be opened while the lake's writer waits for its rows.
    for _ in range(settings().threads):
        free.put(Features(trained, versions))
    counts: dict[str, int] = {}
    failed: list[PerennialError] = []
    with ThreadPoolExecutor(settings().threads, thread_name_prefix="score") as pool:
        for first, last in _runs(todo, present, sizes):

            def batches(first: str = first, last: str = last) -> pa.RecordBatchReader:
                counts.update({d: 0 for d in todo if first <= d <= last})
                source = lake.stream(
                    published, version, first, last, [*trained.data.columns, lake.PARTITION], rows=BATCH
                )
                return _predictions(trained, pool, free, model, champion, run_id, source, counts, failed)

            try:
                lake.replace(
                    lake.table("predictions", spec.name),
                    batches,
                    first,
                    last,
                    distinct=[*spec.data.key, "prediction"],
                )
            except StorageError as error:
                if not failed:
                    raise
                # It is not the lake that failed: rows could not be scored.
                raise type(failed[0])(
                    failed[0].cause, failed[0].remedy, model=spec.name, partition=where
                ) from error
    done = [
        Manifest(
            spec.name,
            "score",
            day,
            inputs[day],
            {"partition": day, "rows": counts[day], "model_version": champion.version, "run_id": run_id},
            rows_in=sizes[day],
            rows_out=counts[day],
            model_version=champion.version,
            run_id=run_id,
        )
        for day in todo
    ]
    manifest.write_all(done, started)
    return result | {
        "partitions": todo,
        "rows_in": sum(sizes[day] for day in todo),
        "rows_out": sum(counts.values()),
        "status": "scored",
    }


def _runs(todo: list[str], present: list[str], rows: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Stretches of ``todo`` with no other published partition between, as first and last date: one commit each.

    A stretch has `COMMIT_ROWS` rows, more only where a single partition has: the lake's writer holds what it writes
    to a partition until all of them are done.
    """
    index = {d: i for i, d in enumerate(present)}
    start, size = todo[0], 0
    for day, after in pairwise([*todo, ""]):
        size += rows.get(day, 0)
        if not after or index[after] != index[day] + 1 or size + rows.get(after, 0) > COMMIT_ROWS:
            yield start, day
            start, size = after, 0


def _predictions(
    spec: ModelSpec,
    pool: Executor,
    free: SimpleQueue[Features],
    model: Model,
    champion: registry.Version,
    run_id: str,
    source: pa.RecordBatchReader | None,
    counts: dict[str, int],
    failed: list[PerennialError],
) -> pa.RecordBatchReader:
    """The rows of `predictions`: key, prediction, (probabilities,) model_version, run_id, scored_at, partition_date.

    Each thread takes whole batches through features and prediction: no step waits for another's threads.

    Args:
        free: one for each thread of ``pool``.
        counts: gets the rows of each partition added.
        failed: gets the error that ended the stream: the lake's writer, which reads it, passes on no more than a text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert source is not None

    def table(batch: pa.RecordBatch) -> pa.Table:
        rows = pa.Table.from_batches([batch])
        features = free.get()
        try:
            predicted = model.predict(features.apply(rows))
        finally:
            free.put(features)
        columns: dict[str, Any] = {k: rows.column(k) for k in spec.data.key}
        columns["prediction"] = prediction(model, predicted)
        if model.classes:
            values = pa.array(predicted.reshape(-1))
            columns["probabilities"] = pa.FixedSizeListArray.from_arrays(values, len(model.classes)).cast(
                pa.list_(pa.float32())
            )
        for name, value in (("model_version", champion.version), ("run_id", run_id), ("scored_at", now)):
            columns[name] = pa.DictionaryArray.from_arrays(
                pa.repeat(pa.scalar(0, pa.int8()), len(rows)), pa.array([value], pa.string())
            )
        columns[lake.PARTITION] = rows.column(lake.PARTITION)
        return pa.table(columns)

    def rows() -> Iterator[pa.RecordBatch]:
        try:
            for found in _in_order(pool, table, source, settings().threads):
                for item in pc.value_counts(found.column(lake.PARTITION)).to_pylist():
                    counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
                yield from found.combine_chunks().to_batches()
        except PerennialError as error:
            failed.append(error)
            raise

    nothing = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in source.schema], schema=source.schema)
    return pa.RecordBatchReader.from_batches(table(nothing).schema, rows())


def _in_order(
    pool: Executor, work: Callable[[Item], Made], source: Iterable[Item], ahead: int
) -> Iterator[Made]:
    """``map(work, source)`` in the threads of ``pool``, in order, at most ``ahead`` items beyond the one in use."""
    coming: deque[Future[Made]] = deque()
    try:
        for item in source:
            coming.append(pool.submit(work, item))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for late in coming:
            late.cancel()
