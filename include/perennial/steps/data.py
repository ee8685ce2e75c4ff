"""The data step: validate and publish landed files, with the labels that are due.

The same code processes one partition or a range. The files of all dates are read as one relation and every aggregate is
grouped by file, so that a range has the same results as its partitions one at a time. A partition that is stopped does
not affect the others; the error raised at the end names it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import psutil
import pyarrow as pa

from perennial.core import runtime
from perennial.core.errors import DataError, PerennialError, SpecError, time_heals
from perennial.core.settings import settings
from perennial.features import author_sql
from perennial.ingestion import data_profile, labels, model_tables, query_feed, rows
from perennial.ingestion.run import (
    LABELS_STEP,
    REMEDY,
    STEP,
    FileState,
    PartitionRun,
    label_inputs,
    labels_feed,
    row_inputs,
    rows_feed,
)
from perennial.ingestion.suite_queries import query_problems
from perennial.lifecycle import backlog
from perennial.spec.model_spec import ModelSpec
from perennial.spec.sources import QuerySource
from perennial.storage import delta_tables, duckdb_session, landing, leftovers, manifests
from perennial.storage.manifests import Manifest
from perennial.validation import validator
from perennial.validation.suite import Expectation, parse_suite

#: Memory for Arrow and for libraries that are not loaded yet, in addition to DuckDB's, in MiB.
_RESERVED_MB = 256
log = logging.getLogger("perennial")


class DataResult(TypedDict):
    """What the step published.

    Attributes:
        partitions: dates that are published, in order.
        rows_in: rows in the files.
        rows_out: rows published.
        quarantined: rows in quarantine.
        labels: labels published.
        labels_quarantined: labels in quarantine.
        version: latest version of the table of published rows.
        labels_version: latest version of the table of labels.
        docs: URIs of the data docs.
        status: ``published``; ``unchanged`` if all were published from the same inputs before; ``not begun`` if,
            with ``catch_up``, the file is missing or the query gave no rows, and nothing of the model was published
            before.
        late: earlier partitions that were published in addition, if any.
        late_labels: partitions whose labels had landed after their run and were published in addition, if any.
    """

    partitions: list[str]
    rows_in: int
    rows_out: int
    quarantined: int
    labels: int
    labels_quarantined: int
    version: int | None
    labels_version: int | None
    docs: list[str]
    status: str
    late: NotRequired[list[str]]
    late_labels: NotRequired[list[str]]


def data(
    spec: ModelSpec,
    *,
    start: str,
    end: str | None = None,
    force: bool = False,
    run_id: str = "",
    catch_up: bool = False,
) -> DataResult:
    """Publish a range of partitions of a model's data, and the labels due with them.

    Args:
        spec: the model.
        start: first partition date.
        end: last partition date; the same as ``start`` when not given.
        force: publish again even if the same inputs were published before.
        run_id: id of the Airflow run.
        catch_up: also publish earlier partitions and labels that landed and were not published, at most
            `backlog.most_per_run`; their failures are only logged.

    Raises:
        SpecError: the suite or the label's expression cannot be used; or the tables hold rows of another definition.
        DataError: a partition is missing, malformed or was stopped; all others of the range are published. With
            ``catch_up``, a missing file or a query without rows is no error before anything of the model was published.
    """
    started = time.monotonic()
    begun = not catch_up or bool(manifests.finished(spec.name, STEP))
    days = spec.cadence.keys(start, end)
    label_dates = [spec.cadence.shift(day, -spec.label_delay) for day in days]
    published: _Published | None = None
    try:
        published = _publish(spec, days, label_dates, force, run_id)
        published.raise_failures(spec, days)
    except SpecError:
        raise  # nothing else could be published either
    except PerennialError:
        late, late_labels = _catch_up(spec, start, run_id, started) if catch_up else ([], [])
        if begun or _has_arrived(spec, days, published):
            raise
        result = _Published([], [], {}, {}).result()
        return _with_late({**result, "status": "not begun"}, late, late_labels)
    result = published.result()
    late, late_labels = _catch_up(spec, start, run_id, started) if catch_up else ([], [])
    return _with_late(result, late, late_labels)


def _has_arrived(spec: ModelSpec, days: list[str], published: _Published | None) -> bool:
    """Whether a file of some partitions has landed, or their query gave rows, or could not be run."""
    source = spec.data.source
    if isinstance(source, str):
        return any(landing.has_landed(landing.source_uri(source, day)) for day in days)
    return published is None or any(s.copy is None or s.copy.rows for s in published.pending.values())


def _with_late(result: DataResult, late: list[str], late_labels: list[str]) -> DataResult:
    """Add what was published in addition, if anything was."""
    if late:
        result["late"] = late
    if late_labels:
        result["late_labels"] = late_labels
    return result


@dataclass
class _Published:
    """What was published, or was before from the same inputs, and what was to be published now.

    Attributes:
        completed: manifests of the rows of partitions.
        completed_labels: manifests of labels.
        pending: state of the rows that were not published before.
        pending_labels: state of the labels that were not published before.
    """

    completed: list[Manifest]
    completed_labels: list[Manifest]
    pending: dict[str, FileState]
    pending_labels: dict[str, FileState]

    def failed(self) -> list[FileState]:
        """The files that could not be published."""
        return [f for f in (*self.pending.values(), *self.pending_labels.values()) if f.error]

    def raise_failures(self, spec: ModelSpec, days: list[str]) -> None:
        """Raise the error of the files that could not be published, if there are any."""
        errors = [f.error for f in self.failed() if f.error]
        if not errors:
            return
        if len(errors) == 1:
            raise errors[0]
        lines = "\n  ".join(f"{error.partition}: {error.cause}" for error in errors[:10])
        more = f"\n  and {len(errors) - 10} more" if len(errors) > 10 else ""
        # The whole is tried again if one of them is worth it: what is published is skipped.
        kind = next((type(error) for error in errors if time_heals(error)), DataError)
        count = sum(1 for f in self.pending.values() if f.error)
        of_rows = f"{count} of {len(days)} partitions" if count else ""
        of_labels = f"the labels of {len(errors) - count}" if len(errors) > count else ""
        raise kind(
            f"{' and '.join(filter(None, (of_rows, of_labels)))} were not published (the others were):\n"
            f"  {lines}{more}",
            REMEDY,
            model=spec.name,
            partition=f"{days[0]}..{days[-1]}",
        )

    def result(self) -> DataResult:
        """Add up the results in the manifests."""
        results = [manifest.result for manifest in sorted(self.completed, key=lambda m: m.key)]
        label_results = [manifest.result for manifest in self.completed_labels]

        def total(name: str) -> int:
            return sum(result.get(name, 0) for result in results + label_results)

        def latest(name: str) -> int | None:
            versions = (result.get(name) for result in results + label_results)
            return max((version for version in versions if version is not None), default=None)

        return DataResult(
            partitions=sorted(manifest.key for manifest in self.completed),
            rows_in=total("rows_in"),
            rows_out=total("rows_out"),
            quarantined=total("quarantined"),
            labels=total("labels"),
            labels_quarantined=total("labels_quarantined"),
            version=latest("version"),
            labels_version=latest("labels_version"),
            docs=[uri for result in results for uri in result["docs"]],
            status="published" if self.pending or self.pending_labels else "unchanged",
        )


def _publish(
    spec: ModelSpec, days: list[str], label_dates: list[str], force: bool, run_id: str
) -> _Published:
    """Publish the rows of some partitions, and labels, as far as that is possible; record what failed."""
    started = time.monotonic()
    suite = _parse_suite(spec)
    newer = model_tables.reconcile(spec, model_tables.DATA_TABLES)
    tables = _Tables(spec, newer)
    share = _memory_share(runtime.peak_memory_mb())  # before a query needs memory, which is free again later
    with leftovers.temporary_folder("data-") as folder:
        pending, completed = _pending_rows(spec, days, force, tables, folder)
        pending_labels, completed_labels = _pending_labels(spec, label_dates, force, tables, folder)
        published = _Published(completed, completed_labels, pending, pending_labels)
        if pending or pending_labels:
            con = duckdb_session.connect(
                duckdb_session.threads_for(len(spec.data.columns)),
                min(share, _memory_share(_resident_mb())),
            )
            duckdb_session.lock(con, *_readable(spec, folder, pending, pending_labels))
            author_sql.check_label(con, spec)  # before any row is published
            run = PartitionRun(spec, con, folder, run_id, pending, pending_labels)
            rows.publish_rows(run, suite)
            if spec.label.source is not None:
                labels.publish_labels(run)
            completed += manifests.write_all([_manifest(run, p) for p in run.published()], started)
            due = [label for label in pending_labels.values() if label.error is None]
            completed_labels += manifests.write_all([_labels_manifest(run, label) for label in due], started)
            _write_profile(run)
            _record_failures(spec, published)
    return published


def _record_failures(spec: ModelSpec, published: _Published) -> None:
    """Record the files that could not be published, so that catching up does not repeat them each night."""
    sources = {STEP: spec.data.source, LABELS_STEP: spec.label.source}
    queried = {step for step, source in sources.items() if isinstance(source, QuerySource)}
    for step, inputs, states in (
        (STEP, row_inputs(spec), published.pending),
        (LABELS_STEP, label_inputs(spec), published.pending_labels),
    ):
        for state in states.values():
            if state.error and (state.fingerprint or step in queried):
                stat = state.fingerprint.stat if state.fingerprint else None
                backlog.record_failure(
                    spec, step, state.day, inputs, stat, state.error, queried=step in queried
                )


def _catch_up(spec: ModelSpec, before: str, run_id: str, started: float) -> tuple[list[str], list[str]]:
    """Publish some of the partitions and labels that are overdue; failures are only logged.

    Args:
        spec: the model.
        before: partition date of the run.
        run_id: id of the Airflow run.
        started: when the step began, by ``time.monotonic()``.

    Returns:
        Dates whose rows, and dates whose labels were published.
    """
    until = spec.cadence.shift(before, -1)

    def publish(days: list[str], label_dates: list[str]) -> None:
        _publish(spec, days, label_dates, False, run_id).raise_failures(spec, days or label_dates)

    def ask_again(day: str) -> None:
        if (published := _publish(spec, [day], [], False, run_id)).pending:
            published.raise_failures(spec, [day])
            filled.append(day)

    filled: list[str] = []
    try:
        days, label_dates = (b(spec, until).next_batch for b in (backlog.unpublished, backlog.unlabelled))
        empty = [day for day in backlog.empty(spec, until) if day not in days]
    except PerennialError as error:
        log.warning("It is not known what is overdue before %s: %s", before, error)
        return [], []
    late_labels = backlog.work_off(spec, "data", label_dates, lambda day: publish([], [day]), started)
    late = backlog.work_off(spec, "data", days, lambda day: publish([day], []), started)
    backlog.work_off(spec, "data", empty, ask_again, started)
    return sorted([*late, *filled]), late_labels


def _parse_suite(spec: ModelSpec) -> list[Expectation]:
    suite, problems = parse_suite(spec.suite, spec.data.columns)
    problems = problems or [*validator.pattern_problems(suite), *query_problems(suite, spec.data.columns)]
    if problems:
        raise SpecError(
            "\n".join(map(str, problems)),
            "correct expectations.json; `perennial check` shows the same problems",
            model=spec.name,
        )
    return suite


def _pending_rows(
    spec: ModelSpec, days: list[str], force: bool, tables: _Tables, folder: Path
) -> tuple[dict[str, FileState], list[Manifest]]:
    """Find the partitions whose rows are to be published, and the manifests of those published from these inputs."""
    pending: dict[str, FileState] = {}
    completed: list[Manifest] = []
    arrivals = query_feed.Arrivals(rows_feed(spec), spec.data.source, folder)
    records = {} if force else manifests.read_all(spec.name, STEP, days)
    for day, arrival in arrivals.look_up(days):
        state = _state_or_manifest(day, arrival, row_inputs(spec), records.get(day), tables)
        if isinstance(state, Manifest):
            completed.append(state)
        else:
            pending[day] = state
    return pending, completed


def _state_or_manifest(
    key: str,
    arrival: query_feed.Arrival,
    inputs: Mapping[str, Any],
    manifest: Manifest | None,
    tables: _Tables,
) -> FileState | Manifest:
    """What has arrived, to be published; or the manifest, if it was published from these inputs before."""
    digest = arrival.fingerprint.digest if arrival.fingerprint else None
    present = {**inputs, "source": digest, **tables.newer}
    if manifest and manifest.is_from(present) and tables.hold(manifest):
        arrival.discard()
        return manifest
    return FileState(key, present, arrival.fingerprint, arrival.rows, error=arrival.error)


def _pending_labels(
    spec: ModelSpec, label_dates: list[str], force: bool, tables: _Tables, folder: Path
) -> tuple[dict[str, FileState], list[Manifest]]:
    """Find the labels that have landed and are to be published, by the date of their rows.

    Labels that were published from these inputs are returned as their manifests.
    """
    pending: dict[str, FileState] = {}
    completed: list[Manifest] = []
    if spec.label.source is None:
        return pending, completed
    arrivals = query_feed.Arrivals(labels_feed(spec), spec.label.source, folder)
    records = {} if force else manifests.read_all(spec.name, LABELS_STEP, label_dates)
    for label_date, arrival in arrivals.look_up(label_dates):
        if arrival.rows and not arrival.rows.rows:
            arrival.discard()
            _record_no_labels(spec, label_date)
            continue
        if arrival.fingerprint is None and arrival.error is None:
            continue
        state = _state_or_manifest(label_date, arrival, label_inputs(spec), records.get(label_date), tables)
        if isinstance(state, Manifest):
            completed.append(state)
        else:
            pending[label_date] = state
    return pending, completed


def _record_no_labels(spec: ModelSpec, label_date: str) -> None:
    """Record that a query gave no labels, so that catching up tries other partitions first."""
    error = DataError("the query gives no labels", "wait for them", model=spec.name, partition=label_date)
    backlog.record_failure(spec, LABELS_STEP, label_date, label_inputs(spec), None, error, queried=True)


class _Tables:
    """Compares manifests with the model's tables.

    Two runs of one partition at the same time may end in another order than they published. The manifest then records
    other files than the tables hold, and the partition is published again.

    Args:
        spec: the model.
        newer: what `model_tables.reconcile` adds to the inputs of manifests.
    """

    def __init__(self, spec: ModelSpec, newer: dict[str, Any]) -> None:
        self.newer = newer
        self._spec = spec
        self._digests: dict[str, dict[str, str]] = {}

    def hold(self, manifest: Manifest) -> bool:
        """Whether the tables hold what a partition's run wrote, and nothing else."""
        recorded = manifest.outputs.get("files")
        if recorded is None:
            return False
        return all(self._of_kind(kind).get(manifest.key, "") == digest for kind, digest in recorded.items())

    def _of_kind(self, kind: str) -> dict[str, str]:
        """Digest of the files of each partition of a table; the table is read once."""
        if kind not in self._digests:
            files = delta_tables.files_by_partition(delta_tables.table_uri(kind, self._spec.name))
            self._digests[kind] = {day: delta_tables.files_digest(listed) for day, listed in files.items()}
        return self._digests[kind]


def _memory_share(used_mb: int) -> float:
    """The share of the step's memory for DuckDB: what libraries do not need.

    Args:
        used_mb: memory that they use, in MiB.
    """
    total = settings().memory_mb
    return max(128, total - used_mb - _RESERVED_MB) / total


def _resident_mb() -> int:
    """Resident memory of this process, in MiB, without what Arrow can give back."""
    pa.default_memory_pool().release_unused()
    return int(psutil.Process().memory_info().rss >> 20)


def _readable(
    spec: ModelSpec, folder: Path, days: Iterable[str], label_dates: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The files and the folders that DuckDB may read: what landed, the run's copies, and the model's tables."""
    feeds = ((spec.data.source, days), (spec.label.source, label_dates))
    files = [
        landing.source_uri(source, day) for source, dated in feeds if isinstance(source, str) for day in dated
    ]
    tables = [delta_tables.table_uri(kind, spec.name) for kind in ("published", "labels", "quarantine")]
    parts = [file for file in files if Path(file).is_dir()]
    return files, [str(folder), *parts, *tables]


def _write_profile(run: PartitionRun) -> None:
    """Write the data profile of what was published; after the manifests, because nothing depends on it."""
    days = [p.day for p in run.published() if p.rows_out]
    if days:
        data_profile.write_profile(
            run.con, run.spec, days[0], days[-1], run.versions["published"], run.undeclared
        )


def _manifest(run: PartitionRun, partition: FileState) -> Manifest:
    return Manifest(
        run.spec.name,
        STEP,
        partition.day,
        partition.inputs,
        result={
            "partitions": [partition.day],
            "rows_in": partition.rows_in,
            "rows_out": partition.rows_out,
            "quarantined": partition.quarantined,
            "labels": 0 if run.spec.label.source else partition.rows_out,
            "docs": [partition.data_doc] if partition.data_doc else [],
            "version": run.versions.get("published"),
            "labels_version": None if run.spec.label.source else run.versions.get("labels"),
            "status": "published",
        },
        outputs={
            "published_version": run.versions.get("published"),
            "files": partition.files,
            "in_great_expectations": partition.in_great_expectations,
        },
        rows_in=partition.rows_in,
        rows_out=partition.rows_out,
        quarantined=partition.quarantined,
        run_id=run.run_id,
    )


def _labels_manifest(run: PartitionRun, label: FileState) -> Manifest:
    return Manifest(
        run.spec.name,
        LABELS_STEP,
        label.day,
        label.inputs,
        result={
            "labels": label.rows_out,
            "labels_quarantined": label.quarantined,
            "labels_version": run.versions.get("labels"),
        },
        outputs={"labels_version": run.versions.get("labels"), "files": label.files},
        rows_in=label.rows_in,
        rows_out=label.rows_out,
        quarantined=label.quarantined,
        run_id=run.run_id,
    )
