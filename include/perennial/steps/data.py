"""The data step: validate and publish landed files, with the labels that are due.

The same code processes one partition or a range. The files of all dates are read as one relation and every aggregate is
grouped by file, so that a range has the same results as its partitions one at a time. A partition that is stopped does
not affect the others; the error raised at the end names it.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, TypedDict

from perennial import __version__
from perennial.core import dates, runtime
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.settings import settings
from perennial.ingestion import data_profile, labels, rows
from perennial.ingestion.run import REMEDY, STEP, PartitionRun, PartitionState, labelled_rows_digest
from perennial.spec.model_spec import ModelSpec
from perennial.storage import duckdb_session, landing, manifests, object_store
from perennial.storage.manifests import Manifest
from perennial.validation.suite import Expectation, parse_suite

#: Memory for Arrow and for libraries that are not loaded yet, in addition to DuckDB's, in MiB.
_RESERVED_MB = 256


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
        status: ``published``, or ``unchanged`` if all were published from the same inputs before.
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


def data(
    spec: ModelSpec, *, start: str, end: str | None = None, force: bool = False, run_id: str = ""
) -> DataResult:
    """Publish a range of partitions of a model's data, and the labels due with them.

    Args:
        spec: the model.
        start: first partition date.
        end: last partition date; the same as ``start`` when not given.
        force: publish again even if the same inputs were published before.
        run_id: id of the Airflow run.

    Raises:
        SpecError: the suite or the label's expression cannot be used.
        DataError: a partition is missing, malformed or was stopped; all others of the range are published.
    """
    started = time.monotonic()
    days = dates.dates(start, end)
    suite = _parse_suite(spec)
    pending, completed = _pending_partitions(spec, days, force)
    if pending:
        with landing.temporary_folder(settings().home) as folder:
            con = duckdb_session.connect(memory_share=_memory_share())
            run = PartitionRun(spec, con, folder, run_id, pending)
            rows.publish_rows(run, suite)
            if spec.label.source is not None:
                labels.publish_due_labels(run)
            _write_profile(run)
        completed += manifests.write_all([_manifest(run, p) for p in run.without_error()], started)
    if failed := [p for p in pending.values() if p.error]:
        raise _failure(spec, failed, days)
    return _result(completed, "published" if pending else "unchanged")


def _parse_suite(spec: ModelSpec) -> list[Expectation]:
    suite, problems = parse_suite(spec.suite, spec.data.columns)
    if problems:
        raise SpecError(
            "\n".join(map(str, problems)),
            "correct expectations.json; `perennial check` shows the same problems",
            model=spec.name,
        )
    return suite


def _pending_partitions(
    spec: ModelSpec, days: list[str], force: bool
) -> tuple[dict[str, PartitionState], list[Manifest]]:
    """Find the partitions to publish, and the manifests of those already published from these inputs."""
    pending: dict[str, PartitionState] = {}
    completed: list[Manifest] = []
    for day in days:
        inputs = _inputs(spec, day)
        if spec.label.source:
            inputs["labelled_rows"] = labelled_rows_digest(spec, day, pending)
        manifest = None if force else manifests.find_completed(spec.name, STEP, day, inputs)
        if manifest:
            completed.append(manifest)
        else:
            pending[day] = PartitionState(day, inputs)
    return pending, completed


def _memory_share() -> float:
    """The share of the step's memory for DuckDB: what libraries do not need."""
    total = settings().memory_mb
    used = runtime.peak_memory_mb() + _RESERVED_MB
    return max(128, total - used) / total


def _inputs(spec: ModelSpec, day: str) -> dict[str, Any]:
    """What the result of one partition depends on, by digest."""
    # How long to wait for the file does not influence the result.
    section = spec.data.model_dump(exclude={"arrival", "arrival_hours"})
    sections = json.dumps([section, spec.label.model_dump()], sort_keys=True)
    inputs: dict[str, Any] = {
        "source": _file_digest(landing.source_uri(spec.data.source, day)),
        "spec": hashlib.sha256(sections.encode()).hexdigest(),
        "suite": hashlib.sha256(spec.suite.encode()).hexdigest(),
        "code": __version__,
    }
    if spec.label.source:
        label_date = dates.add_days(day, -spec.label.arrives_after_days)
        inputs["labels"] = _file_digest(landing.source_uri(spec.label.source, label_date))
    return inputs


def _file_digest(uri: str) -> str | None:
    try:
        return object_store.digest(uri)
    except FileNotFoundError:
        return None


def _write_profile(run: PartitionRun) -> None:
    """Write the data profile of what was published."""
    days = [p.day for p in run.without_error()]
    if days:
        data_profile.write_profile(run.con, run.spec, days[0], days[-1], run.versions["published"])


def _manifest(run: PartitionRun, partition: PartitionState) -> Manifest:
    if run.spec.label.source:
        # Computed again: the partition that the labels belong to may have been stopped in this run.
        partition.inputs["labelled_rows"] = labelled_rows_digest(run.spec, partition.day, run.partitions)
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
            "labels": partition.labels,
            "labels_quarantined": partition.labels_quarantined,
            "label_date": partition.label_date,
            "label_state": partition.label_state,
            "docs": [partition.data_doc],
            "version": run.versions.get("published"),
            "labels_version": run.versions.get("labels"),
            "status": "published",
        },
        outputs={f"{kind}_version": version for kind, version in run.versions.items()},
        rows_in=partition.rows_in,
        rows_out=partition.rows_out,
        quarantined=partition.quarantined,
        run_id=run.run_id,
    )


def _failure(spec: ModelSpec, failed: list[PartitionState], days: list[str]) -> PerennialError:
    errors = [p.error for p in failed if p.error]
    if len(errors) == 1:
        return errors[0]
    lines = "\n  ".join(f"{p.day}: {p.error.cause}" for p in failed[:10] if p.error)
    more = f"\n  and {len(failed) - 10} more" if len(failed) > 10 else ""
    return DataError(
        f"{len(failed)} of {len(days)} partitions were not published (the others were):\n  {lines}{more}",
        REMEDY,
        model=spec.name,
        partition=f"{days[0]}..{days[-1]}",
    )


def _result(completed: list[Manifest], status: str) -> DataResult:
    """Add up the results in the manifests of all partitions."""
    results = [manifest.result for manifest in sorted(completed, key=lambda m: m.key)]

    def total(name: str) -> int:
        return sum(result[name] for result in results)

    def latest(name: str) -> int | None:
        return max((result[name] for result in results if result[name] is not None), default=None)

    return DataResult(
        partitions=sorted(manifest.key for manifest in completed),
        rows_in=total("rows_in"),
        rows_out=total("rows_out"),
        quarantined=total("quarantined"),
        labels=total("labels"),
        labels_quarantined=total("labels_quarantined"),
        version=latest("version"),
        labels_version=latest("labels_version"),
        docs=[uri for result in results for uri in result["docs"]],
        status=status,
    )
