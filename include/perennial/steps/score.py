"""The score step: the champion's predictions for every published row of some partitions.

In an A/B trial, the challenger predicts its share of the rows.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, TypeVar

import pyarrow as pa

from perennial.core.errors import ArtifactError, DataError, PerennialError, StorageError, UnexpectedError
from perennial.core.progress import Progress
from perennial.core.settings import settings
from perennial.features import serving_log
from perennial.ingestion import model_tables, table_definitions
from perennial.ingestion.run import STEP as DATA_STEP
from perennial.lifecycle import ab_trial, backlog
from perennial.lifecycle import champion as champion_module
from perennial.modeling import registry
from perennial.scoring.planning import Commit, group_into_commits, plan_commits, scoring_threads
from perennial.scoring.scorer import Scorer, Serving, ServingVersion
from perennial.spec import spec_changes
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests
from perennial.storage.manifests import Manifest

if TYPE_CHECKING:
    from perennial.scoring.scorer import ScoredPartition
    from perennial.storage.delta_tables import File

#: Partitions whose serving log is written together. A commit for each would take a tenth of the step's time; the lake's
#: writer needs 0.1 MiB for each open partition.
LOG_PARTITIONS = 32
log = logging.getLogger("perennial")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ScoreResult(TypedDict):
    """What `score` returns.

    Attributes:
        partitions: dates of the partitions that were scored.
        missing: dates of the range for which nothing was published.
        rows_in: published rows of the range.
        rows_out: predictions of the range, with those that the same champion had made before.
        model_version: the champion's version; None without a champion.
        status: ``scored``, ``unchanged`` if every partition was scored before, or ``no champion``.
        challenger: version that served a share of the rows, in an A/B trial.
        late: earlier partitions that were scored in addition, if any.
    """

    partitions: list[str]
    missing: list[str]
    rows_in: int
    rows_out: int
    model_version: str | None
    status: Literal["scored", "unchanged", "no champion"]
    challenger: NotRequired[str]
    late: NotRequired[list[str]]


def score(
    spec: ModelSpec,
    *,
    start: str,
    end: str | None = None,
    force: bool = False,
    run_id: str = "",
    catch_up: bool = False,
) -> ScoreResult:
    """Score the published partitions from ``start`` to ``end`` (both included) with the champion.

    Each partition is replaced as a whole. A partition that the same champion has scored from the same rows is skipped,
    so that an interrupted range continues where it stopped.

    Args:
        spec: the model.
        start: first partition date.
        end: last partition date; ``start`` when not given.
        force: score again even if the same inputs were scored before.
        run_id: id of the run, for predictions and manifests.
        catch_up: also score earlier partitions that were published and not scored, at most `backlog.most_per_run`;
            their failures are only logged.

    Raises:
        DataError: nothing was published in the range, or rows cannot be scored.
        ArtifactError: the champion's file is not what was recorded; or the champion was moved or removed in MLflow, and
            ``gate.external_change`` is ``refuse``.
    """
    started = time.monotonic()
    try:
        result = _score(spec, start, end, force, run_id)
    except DataError:
        if catch_up:
            _catch_up(spec, start, run_id, started)
        raise
    if catch_up and result["model_version"] and (late := _catch_up(spec, start, run_id, started)):
        result["late"] = late
    return result


def _catch_up(spec: ModelSpec, before: str, run_id: str, started: float) -> list[str]:
    """Score some of the partitions that are overdue; failures are only logged.

    Args:
        spec: the model.
        before: partition date of the run.
        run_id: id of the run.
        started: when the step began, by ``time.monotonic()``.

    Returns:
        Dates of the partitions that were scored.
    """
    published_before = time.time() - backlog.PENDING_SECONDS

    def score_one(day: str) -> None:
        try:
            _score(spec, day, None, False, run_id)
        except Exception as error:
            backlog.record_champion_failure(spec, "score", day, error)
            raise

    try:
        overdue = backlog.unscored(spec, spec.cadence.shift(before, -1), published_before=published_before)
    except PerennialError as error:
        log.warning("It is not known what is overdue before %s: %s", before, error)
        return []
    return backlog.work_off(spec, "score", overdue.next_batch, score_one, started)


def _score(spec: ModelSpec, start: str, end: str | None, force: bool, run_id: str) -> ScoreResult:
    """Score the partitions of a range, without catching up."""
    started = time.monotonic()
    requested = spec.cadence.keys(start, end)
    uri = delta_tables.table_uri("published", spec.name)
    # A pinned version: rows that are published during this run are left to the next one.
    published = delta_tables.files_by_partition(uri, delta_tables.version(uri))
    others = manifests.read_all(spec.name, DATA_STEP, [day for day in requested if day not in published])
    # Published without rows: there were none, or all are in quarantine.
    empty = {day for day, manifest in others.items() if manifest.rows_out == 0}
    files = {day: published.get(day, []) for day in requested if day in published or day in empty}
    if not files:
        raise DataError(
            "no rows are published",
            "run the data DAG for these dates first",
            model=spec.name,
            partition=start if len(requested) == 1 else f"{start}..{end}",
        )
    champion = champion_module.get_serving_champion(spec, partition=max(files), actor="scoring")
    result = ScoreResult(
        partitions=[],
        missing=[day for day in requested if day not in files],
        rows_in=0,
        rows_out=0,
        model_version=champion.version if champion else None,
        status="no champion",
    )
    if champion is None:
        return result
    _check_champion(spec, champion, start)
    newer = model_tables.reconcile(spec, model_tables.SCORE_TABLES)
    serving = _serving(spec, champion, list(files))
    if serving.challenger:
        result["challenger"] = serving.challenger.version.version
    inputs = {day: _inputs(day, files[day], serving) | newer for day in files}
    predicted = delta_tables.rows_by_partition(delta_tables.table_uri("predictions", spec.name))
    scored = {} if force else manifests.read_all(spec.name, "score", files)
    pending = [d for d in files if not _is_scored(scored.get(d), inputs[d], predicted.get(d, 0))]
    result["rows_in"] = sum(file.rows for listed in files.values() for file in listed)
    result["rows_out"] = sum(predicted.get(day, 0) for day in files if day not in pending)
    if not pending:
        result["status"] = "unchanged"
        return result
    run = _Run(spec, serving, files, inputs, run_id, started)
    result["rows_out"] += run.score(pending)
    result |= {"partitions": pending, "status": "scored"}
    return result


def _check_champion(spec: ModelSpec, champion: registry.ModelVersion, start: str) -> None:
    """Refuse a champion whose predictions are not those of the spec.

    Raises:
        DataError: it was trained for another task or key.
    """
    trained = registry.load_spec(champion)
    if difference := spec_changes.prediction_difference(trained, spec):
        raise DataError(
            f"nothing is scored: {difference} (version {champion.version}, the champion)",
            "publish and train: the next version that passes the gate becomes champion; or undo the change of the spec",
            model=spec.name,
            partition=start,
        )


def _is_scored(manifest: Manifest | None, inputs: dict[str, Any], predicted: int) -> bool:
    """Whether a partition was scored from the same inputs, and the table has its predictions."""
    if manifest is None or not manifest.is_from(inputs):
        return False
    if manifest.rows_out != predicted:
        log.warning(
            "Scoring %s again: its manifest says %s predictions, the table has %s.",
            manifest.key,
            manifest.rows_out,
            predicted,
        )
    return manifest.rows_out == predicted


def _serving(spec: ModelSpec, champion: registry.ModelVersion, partitions: list[str]) -> Serving:
    """Load the versions that serve partitions.

    Raises:
        ArtifactError, DataError: the challenger of an A/B trial cannot serve rows.
    """
    champion_version = ServingVersion.load(champion, partitions)
    split = ab_trial.active_split(spec, champion)
    if split is None or max(partitions) <= split.starts_after:
        return Serving(champion_version)
    remedy = "set retraining.ab_share to 0: the champion then serves all rows"
    if registry.find_version(spec.name, split.version) is None:
        raise ArtifactError(
            f"version {split.version}, which is to serve {split.share:.0%} of the rows, was deleted in MLflow",
            f"wait for the next monitoring, which ends its trial; or {remedy}",
            model=spec.name,
        )
    try:
        version = registry.get_recorded_version(spec.name, split.version)
        challenger = ServingVersion.load(version, partitions)
        registry.load_model(challenger.version, threads=1)
    except ArtifactError as error:
        raise ArtifactError(
            f"version {split.version} is to serve {split.share:.0%} of the rows: {error.cause}",
            remedy,
            model=spec.name,
        ) from error
    if challenger.spec.data.key != champion_version.spec.data.key:
        raise DataError(
            f"version {split.version} is to serve {split.share:.0%} of the rows, but it has the key "
            f"{', '.join(challenger.spec.data.key)} and the champion {', '.join(champion_version.spec.data.key)}",
            remedy,
            model=spec.name,
        )
    return Serving(champion_version, challenger, split)


def _inputs(day: str, files: Sequence[File], serving: Serving) -> dict[str, Any]:
    """What the predictions of a partition depend on, as its manifest records it."""
    champion, challenger, split = serving.champion, serving.challenger, serving.split_on(day)
    inputs = {
        "rows": delta_tables.files_digest(files),
        "champion": champion.version.digest,
        "version": champion.version.version,
        "references": champion.reference_copies[day],
        **_table_inputs(day, champion),
    }
    if not challenger or not split:
        return inputs
    return inputs | {
        "split": {
            "version": split.version,
            "digest": challenger.version.digest,
            "share": split.share,
            "references": challenger.reference_copies[day],
            **_table_inputs(day, challenger),
        }
    }


def _table_inputs(day: str, serving: ServingVersion) -> dict[str, Any]:
    """What the predictions of a partition depend on of feature tables; nothing without such tables."""
    return {"tables": serving.digests[day]} if serving.digests else {}


class _Run:
    """Scores partitions, and writes their predictions, serving logs and manifests.

    Args:
        spec: the model.
        serving: the versions that serve the rows.
        files: the files of all published partitions of the range, by date, in order.
        inputs: what the predictions of each partition depend on, by date.
        run_id: id of the run.
        started: when the step began, by ``time.monotonic()``.

    Attributes:
        rows_in: published rows of each partition, by date.
    """

    def __init__(
        self,
        spec: ModelSpec,
        serving: Serving,
        files: dict[str, list[File]],
        inputs: dict[str, dict[str, Any]],
        run_id: str,
        started: float,
    ) -> None:
        self.rows_in = {day: sum(f.rows for f in listed) for day, listed in files.items()}
        self._spec, self._serving, self._files = spec, serving, files
        self._inputs, self._run_id, self._started = inputs, run_id, started
        self._rows_out = dict.fromkeys(files, 0)
        self._table = table_definitions.writer_of(
            spec, "predictions", distinct=[*spec.data.key, spec.lake_column("prediction")]
        )
        # Partitions whose predictions are written, but whose log and manifest are not.
        self._written: list[str] = []
        self._logs: dict[str, list[pa.RecordBatch]] = {}
        self._progress = Progress()

    def score(self, days: list[str]) -> int:
        """Score partitions in several threads; returns the number of predictions.

        Raises:
            DataError: rows cannot be scored exactly once.
            StorageError: the lake cannot be written.
        """
        self._rows_in_run = {day: self.rows_in[day] for day in days}
        days = self._score_empty(days)
        if not days:
            return 0
        split, columns, threads = self._serving.split, len(self._spec.data.columns), settings().threads
        commits = plan_commits(self._files, days, split.starts_after if split else None, threads, columns)
        units = [unit for commit in commits for unit in commit.units]
        threads = scoring_threads(len(units), columns, threads)
        uri = delta_tables.table_uri("published", self._spec.name)
        sampling = serving_log.LogSampling({day: self._files[day] for day in days})
        scorer = Scorer(self._serving, uri, sampling, self._run_id, threads, units)
        with (
            _system_memory(),
            ThreadPoolExecutor(threads, thread_name_prefix="score") as pool,
            # Scores ahead of the commit that is being written, so that no thread waits for it.
            closing(_map_ahead(pool, scorer.score, units, threads + 1)) as scored,
        ):
            for commit in commits:
                self._write(commit, scorer, islice(scored, len(commit.units)))
                if len(self._written) >= LOG_PARTITIONS:
                    self._complete()
        self._complete()
        return sum(self._rows_out.values())

    def _score_empty(self, days: list[str]) -> list[str]:
        """Complete the partitions without rows, of which there may be predictions from before; returns the others."""
        empty = [day for day in days if not self.rows_in[day]]
        for kind in ("predictions", "served") if empty else ():
            delta_tables.remove_rows(delta_tables.table_uri(kind, self._spec.name), empty)
        manifests.write_all([self._manifest(day) for day in empty], self._started)
        for day in empty:
            self._files.pop(day)
        return [day for day in days if self.rows_in[day]]

    def _report(self, day: str) -> None:
        if self._progress.due():
            done, total = sum(self._rows_out.values()), sum(self._rows_in_run.values())
            self._progress.report("Scored %d of %d rows, up to partition %s", done, total, day)

    def _write(self, commit: Commit, scorer: Scorer, scored: Iterator[list[ScoredPartition]]) -> None:
        """Replace the predictions of a commit's partitions by the scored units."""
        failures: list[PerennialError] = []
        logs: list[tuple[str, pa.RecordBatch]] = []
        ahead = [scored]

        def partitions() -> Iterator[ScoredPartition]:
            if ahead:
                units: Iterator[list[ScoredPartition]] = ahead.pop()
            else:  # the commit conflicts with another writer: what was scored is not kept in memory for that
                deque(scored, maxlen=0)
                units = map(scorer.score, commit.units)
            logs.clear()
            self._rows_out |= dict.fromkeys(commit.days, 0)
            try:
                for unit in units:
                    for partition in unit:
                        self._rows_out[partition.day] += len(partition.rows)
                        logs.append((partition.day, partition.served))
                        self._report(partition.day)
                    yield from unit
            except PerennialError as error:
                failures.append(error)
                raise

        def batches() -> pa.RecordBatchReader:
            stream = map(scorer.rows, partitions())
            first = next(stream)
            return pa.RecordBatchReader.from_batches(first.schema, chain([first], stream))

        try:
            # A partition between them may be published and scored by another run at the same time.
            self._table.replace(batches, commit.days[0], commit.days[-1], days=commit.days)
        except StorageError as error:
            # The lake's writer reports only the text of the error that ended its stream.
            raise (failures[0] if failures else error) from None
        for day, served in logs:
            self._logs.setdefault(day, []).append(served)
        self._written += commit.days

    def _complete(self) -> None:
        """Write the serving logs of the written partitions, then their manifests, which mark them as done."""
        for day in self._written:
            if self._rows_out[day] != self.rows_in[day]:
                raise UnexpectedError(
                    f"{self.rows_in[day]} rows were published, {self._rows_out[day]} were scored",
                    "run it again: the partition was not marked as scored",
                    model=self._spec.name,
                    partition=day,
                )
        logged = sorted(self._logs)
        for days in (
            group_into_commits(logged, list(self._files), dict.fromkeys(logged, 0), 1) if logged else ()
        ):
            serving_log.write(
                self._spec,
                {day: self._logs.pop(day) for day in days},
                {day: serving_log.inputs_digest(self._inputs[day]) for day in days},
                table_definitions.properties(self._spec, "served"),
            )
        manifests.write_all([self._manifest(day) for day in self._written], self._started)
        self._written.clear()

    def _manifest(self, day: str) -> Manifest:
        version = self._serving.champion.version.version
        inputs, rows = self._inputs[day], self._rows_out[day]
        result = {"partition": day, "rows": rows, "model_version": version, "run_id": self._run_id}
        if tables := self._serving.champion.feature_versions:
            result["tables"] = tables
        if "split" in inputs:
            result["challenger"] = inputs["split"]["version"]
            if self._serving.challenger and (tables := self._serving.challenger.feature_versions):
                result["challenger_tables"] = tables
        return Manifest(
            self._spec.name,
            "score",
            day,
            inputs,
            result,
            rows_in=self.rows_in[day],
            rows_out=rows,
            model_version=version,
            run_id=self._run_id,
        )


@contextmanager
def _system_memory() -> Iterator[None]:
    """Let Arrow allocate from the system: its pool is not faster here, and does not release 70 MiB."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result]:
    """Like ``map``, in the threads of ``pool``, with up to ``ahead`` items beyond the current one."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
