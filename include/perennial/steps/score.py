"""The score step: the champion's prediction for every published row of a partition, or of a range in one go.

Where a challenger is on trial in a split, it predicts its share of the rows.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from perennial.core import dates
from perennial.core.errors import ArtifactError, DataError, PerennialError, StorageError
from perennial.core.settings import settings
from perennial.features import serving_log
from perennial.features.scan_units import plan_units
from perennial.lifecycle import ab_test
from perennial.modeling import registry
from perennial.scoring.planning import UNIT_ROWS, find_unscored_partitions, group_into_commits, split_at_date
from perennial.scoring.scorer import Scorer, ServingVersion
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests
from perennial.storage.manifests import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.scoring.scorer import ScoredPartition
    from perennial.storage.delta_tables import File

#: Nights whose log is written together: a commit for each would cost a tenth of the time, and the lake's writer takes
#: a tenth of a MiB for each night that it has open.
LOG_NIGHTS = 32
log = logging.getLogger("perennial")
Item = TypeVar("Item")
Made = TypeVar("Made")


def score(
    spec: ModelSpec,
    *,
    start: str,
    end: str | None = None,
    force: bool = False,
    run_id: str = "",
    catch_up: bool = False,
) -> dict[str, Any]:
    """Score the published partitions from ``start`` to ``end`` (both included) with the champion.

    Each partition is replaced whole; one that was scored by the same champion from the same rows is left as it is, so
    that a range that was interrupted goes on where it was.

    Args:
        catch_up: also score the nights that `left_behind` finds; one that cannot be is logged, and fails nothing.

    Returns:
        partitions (those scored now), rows_in, rows_out, missing, model_version and status (``scored``, ``unchanged``
        or ``no champion``); ``challenger``, the version that served a share of the rows, where there was one; ``late``,
        the partitions that were caught up with, where there were any.

    Raises:
        DataError: nothing was published in the range. ArtifactError: the champion's file is not what was registered.
    """
    result = _score(spec, start, end, force, run_id)
    late: list[str] = []
    for day in find_unscored_partitions(spec, start) if catch_up and result["model_version"] else ():
        try:
            late += _score(spec, day, None, False, run_id)["partitions"]
        except DataError as error:
            log.warning("%s was published and not scored, and cannot be: %s", day, error)
    if late:
        log.info("Published earlier and not scored until now: %s.", ", ".join(late))
        result["late"] = late
    return result


def _score(spec: ModelSpec, start: str, end: str | None, force: bool, run_id: str) -> dict[str, Any]:
    """As `score`, of the partitions asked for alone."""
    started = time.monotonic()
    wanted = dates.dates(start, end)
    published = delta_tables.table_uri("published", spec.name)
    version = delta_tables.version(published)  # what is published while this runs is for the next run
    held = delta_tables.files_by_partition(published, version)
    present = [d for d in wanted if d in held]
    where = start if len(wanted) == 1 else f"{start}..{end}"
    if not present:
        raise DataError(
            "no published rows", "run the data DAG for it first", model=spec.name, partition=where
        )
    champion = registry.champion(spec)
    result: dict[str, Any] = {
        "partitions": [],
        "missing": [d for d in wanted if d not in held],
        "rows_in": 0,
        "rows_out": 0,
        "model_version": champion.version if champion else None,
        "status": "no champion",
    }
    if champion is None:
        return result
    arm = ServingVersion.of(champion)
    shared = ab_test.standing(spec, champion)
    challenger = _challenger(spec, arm, shared) if shared and present[-1] > shared.since else None
    inputs = {day: _inputs(day, held[day], arm, challenger, shared) for day in present}
    if shared and challenger:
        result["challenger"] = shared.version
    todo = [d for d in present if force or not manifests.find_completed(spec.name, "score", d, inputs[d])]
    if not todo:
        return result | {"status": "unchanged"}
    sizes = {day: sum(f.rows for f in held[day]) for day in present}
    most = UNIT_ROWS // 2 if challenger else UNIT_ROWS  # rows that are shared are held, not streamed
    size = max(UNIT_ROWS // 4, min(most, sum(sizes[d] for d in todo) // (2 * settings().threads)))
    commits = [
        (days, list(plan_units({d: held[d] for d in days}, size, most)))
        for alike in split_at_date(todo, shared.since if shared else "")
        for days in group_into_commits(alike, present, sizes, size)
    ]
    work = [unit for _, found in commits for unit in found]
    threads = min(settings().threads, len(work))
    sampling = serving_log.LogSampling({day: held[day] for day in todo})
    scorer = Scorer(arm, challenger, shared, published, sampling, run_id, threads, work)
    table = delta_tables.Writer(
        delta_tables.table_uri("predictions", spec.name), distinct=[*spec.data.key, "prediction"]
    )
    counts = dict.fromkeys(todo, 0)
    logged: dict[str, list[pa.RecordBatch]] = {}
    written: list[str] = []

    def settle() -> None:
        """Log what the nights that are written were given, and mark them as done: what follows may fail."""
        if wrong := [d for d in written if counts[d] != sizes[d]]:
            raise DataError(
                f"{sizes[wrong[0]]} rows were published, {counts[wrong[0]]} were scored",
                "run it again: it was not marked as done",
                model=spec.name,
                partition=wrong[0],
            )
        _log(spec, logged, present, inputs)
        done = [
            _manifest(spec, day, inputs[day], sizes[day], counts[day], champion.version, run_id)
            for day in written
        ]
        manifests.write_all(done, started)
        written.clear()

    with (
        _system_memory(),
        ThreadPoolExecutor(threads, thread_name_prefix="score") as pool,
        # Looks ahead beyond the commit that is being written, so that no thread waits for it.
        closing(_in_order(pool, scorer.score, work, threads + 1)) as scored,
    ):
        for days, found in commits:
            for day, few in _commit(table, scorer, days, islice(scored, len(found)), counts):
                logged.setdefault(day, []).append(few)
            written += days
            if len(written) >= LOG_NIGHTS:
                settle()
    settle()
    return result | {
        "partitions": todo,
        "rows_in": sum(sizes[day] for day in todo),
        "rows_out": sum(counts.values()),
        "status": "scored",
    }


def _manifest(
    spec: ModelSpec, day: str, inputs: dict[str, Any], rows: int, scored: int, version: str, run_id: str
) -> Manifest:
    result = {"partition": day, "rows": scored, "model_version": version, "run_id": run_id}
    if "split" in inputs:
        result["challenger"] = inputs["split"]["version"]
    return Manifest(
        spec.name,
        "score",
        day,
        inputs,
        result,
        rows_in=rows,
        rows_out=scored,
        model_version=version,
        run_id=run_id,
    )


def _inputs(
    day: str,
    held: list[File],
    champion: ServingVersion,
    challenger: ServingVersion | None,
    shared: ab_test.ABSplit | None,
) -> dict[str, Any]:
    """What the predictions of a night depend on."""
    found = {
        "rows": delta_tables.files_digest(held),
        "champion": champion.version.digest,
        "version": champion.version.version,
        "references": champion.references,
    }
    if not challenger or not shared or day <= shared.since:
        return found
    part = {"version": shared.version, "digest": challenger.version.digest, "share": shared.share}
    return found | {"split": part | {"references": challenger.references}}


def _challenger(spec: ModelSpec, champion: ServingVersion, shared: ab_test.ABSplit) -> ServingVersion:
    """The challenger of a split.

    Raises:
        ArtifactError, DataError: it cannot serve rows; with what to do to go on without it.
    """
    remedy = "set retraining.split to 0, and the champion goes on alone"
    try:
        found = ServingVersion.of(registry.version(spec.name, shared.version))
        registry.load(found.version, threads=1)
    except ArtifactError as error:
        raise ArtifactError(
            f"version {shared.version} is to serve {shared.share:.0%} of the rows: {error.cause}",
            remedy,
            model=spec.name,
        ) from error
    if found.spec.data.key != champion.spec.data.key:
        raise DataError(
            f"version {shared.version} is to serve {shared.share:.0%} of the rows, but it has the key "
            f"{', '.join(found.spec.data.key)} and the champion {', '.join(champion.spec.data.key)}",
            remedy,
            model=spec.name,
        )
    return found


def _commit(
    table: delta_tables.Writer,
    scorer: Scorer,
    days: list[str],
    scored: Iterator[list[ScoredPartition]],
    counts: dict[str, int],
) -> list[tuple[str, pa.RecordBatch]]:
    """Replace the partitions ``days`` of a model by what was scored, in one commit; returns what is logged of each.

    Args:
        counts: gets the rows of each partition added.
    """
    import pyarrow as pa

    failed: list[PerennialError] = []
    kept: list[ScoredPartition] = []

    def nights() -> Iterator[ScoredPartition]:
        yield from list(kept)  # where another writer won, all of it is written once more
        try:
            for found in scored:
                kept.extend(found)
                for night in found:
                    counts[night.day] += len(night.rows)
                yield from found
        except PerennialError as error:
            failed.append(error)
            raise

    def batches() -> pa.RecordBatchReader:
        stream = map(scorer.rows, nights())
        first = next(stream)
        return pa.RecordBatchReader.from_batches(first.schema, chain([first], stream))

    try:
        table.replace(batches, days[0], days[-1])
    except StorageError as error:
        # The lake's writer passes on no more than a text of what ended its stream.
        raise (failed[0] if failed else error) from None
    return [(night.day, night.served) for night in kept]


def _log(
    spec: ModelSpec, logged: dict[str, list[pa.RecordBatch]], present: list[str], inputs: dict[str, Any]
) -> None:
    """Replace the nights of ``logged`` in the table of what was served, and forget them."""
    for days in group_into_commits(sorted(logged), present, dict.fromkeys(logged, 0), 1) if logged else ():
        nights = {day: logged.pop(day) for day in days}
        serving_log.write(spec, nights, {day: serving_log.inputs_digest(inputs[day]) for day in days})


@contextmanager
def _system_memory() -> Iterator[None]:
    """Let Arrow take its memory from the system: its own pool is no faster here, and keeps 70 MiB for later."""
    import pyarrow as pa

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _in_order(
    pool: Executor, work: Callable[[Item], Made], source: Iterable[Item], ahead: int
) -> Generator[Made]:
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
