"""The step ``data``: landed files are read, validated and published, with the labels that are due.

The same code does one night or a range of them: the files of all dates are read as one relation, and every aggregate is
grouped by file, so that a range gives what its nights would give one by one. A date that is stopped leaves the others
as they are; the error that follows names it.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from perennial import __version__
from perennial.core import dates, runtime
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.settings import settings
from perennial.ingestion.rows import _rows
from perennial.ingestion.run import REMEDY, STEP, PartitionRun, PartitionState, _labelled
from perennial.spec.model_spec import ModelSpec
from perennial.storage import duckdb_session, landing, manifests, object_store
from perennial.storage.manifests import Manifest

if TYPE_CHECKING:
    from perennial.validation.suite import Expectation


def data(
    spec: ModelSpec, *, start: str, end: str | None = None, force: bool = False, run_id: str = ""
) -> dict[str, Any]:
    """Publish the partitions ``start`` to ``end`` (both included) of a model's data, and the labels due with them.

    Returns:
        ``partitions`` (dates that are published), ``rows_in``, ``rows_out``, ``quarantined``, ``labels``, ``version``
        and ``labels_version`` of the lake's tables, ``docs`` (addresses of the data docs) and ``status``.

    Raises:
        SpecError: the suite or the label's expression cannot be used.
        DataError: a partition is missing, malformed or was stopped; all others of the range are published.
    """
    from perennial.storage.landing import workplace

    started = time.monotonic()
    days = dates.dates(start, end)
    suite = _suite(spec)
    nights: dict[str, PartitionState] = {}
    done: list[Manifest] = []
    for day in days:
        inputs = _inputs(spec, day)
        if spec.label.source:
            inputs["labelled_rows"] = _labelled(spec, day, nights)
        finished = None if force else manifests.find_completed(spec.name, STEP, day, inputs)
        if finished:
            done.append(finished)
        else:
            nights[day] = PartitionState(day, inputs)
    if nights:
        with workplace(settings().home) as folder:
            work = PartitionRun(spec, duckdb_session.connect(memory_share=_share()), folder, run_id, nights)
            _rows(work, suite)
            _labels(work)
            _profile(work)
        done += manifests.write_all([_record(work, night) for night in work.good()], started)
    if failed := [n for n in nights.values() if n.error]:
        raise _failure(spec, failed, days)
    return _result(done, "published" if nights else "unchanged")


def _suite(spec: ModelSpec) -> list[Expectation]:
    from perennial.validation.suite import parse_suite

    suite, problems = parse_suite(spec.suite, spec.data.columns)
    if problems:
        raise SpecError("\n".join(map(str, problems)), "mend expectations.json; `perennial check` shows the same",
                        model=spec.name)  # fmt: skip
    return suite


def _share() -> float:
    """The part of the step's memory that is DuckDB's: what the loaded libraries leave, less what Arrow will hold."""
    here = settings().memory_mb
    taken = runtime.peak_memory_mb() + 256
    return max(128, here - taken) / here


def _inputs(spec: ModelSpec, day: str) -> dict[str, Any]:
    """What the result of one date depends on."""
    rows = spec.data.model_dump(
        exclude={"arrival", "arrival_hours"}
    )  # how long it was waited for decides nothing
    what = json.dumps([rows, spec.label.model_dump()], sort_keys=True)
    inputs: dict[str, Any] = {
        "source": _digest(landing.source_uri(spec.data.source, day)),
        "spec": hashlib.sha256(what.encode()).hexdigest(),
        "suite": hashlib.sha256(spec.suite.encode()).hexdigest(),
        "code": __version__,
    }
    if spec.label.source:
        label_day = dates.add_days(day, -spec.label.arrives_after_days)
        inputs["labels"] = _digest(landing.source_uri(spec.label.source, label_day))
    return inputs


def _digest(uri: str) -> str | None:
    try:
        return object_store.digest(uri)
    except FileNotFoundError:
        return None


def _labels(work: PartitionRun) -> None:
    """Publish the labels that are due with the nights."""
    from perennial.ingestion import labels

    if work.spec.label.source is not None:
        labels.publish_due_labels(work)


def _profile(work: PartitionRun) -> None:
    """Give people a summary of what was published."""
    from perennial.ingestion import data_profile

    days = [n.day for n in work.good()]
    if days:
        data_profile.write(work.con, work.spec, days[0], days[-1], work.versions["published"])


def _record(work: PartitionRun, night: PartitionState) -> Manifest:
    """What is written down of one date."""
    if work.spec.label.source:
        night.inputs["labelled_rows"] = _labelled(work.spec, night.day, work.nights)
    return Manifest(
        work.spec.name, STEP, night.day, night.inputs,
        result={
            "partitions": [night.day], "rows_in": night.rows_in, "rows_out": night.rows_out,
            "quarantined": night.quarantined, "labels": night.labels,
            "labels_quarantined": night.labels_quarantined, "label_date": night.label_date,
            "label_state": night.label_state, "docs": [night.doc],
            "version": work.versions.get("published"), "labels_version": work.versions.get("labels"),
            "status": "published",
        },
        outputs={f"{kind}_version": version for kind, version in work.versions.items()},
        rows_in=night.rows_in, rows_out=night.rows_out, quarantined=night.quarantined, run_id=work.run_id,
    )  # fmt: skip


def _failure(spec: ModelSpec, failed: list[PartitionState], days: list[str]) -> PerennialError:
    errors = [n.error for n in failed if n.error]
    if len(errors) == 1:
        return errors[0]
    lines = "\n  ".join(f"{n.day}: {n.error.cause}" for n in failed[:10] if n.error)
    more = f"\n  and {len(failed) - 10} more" if len(failed) > 10 else ""
    return DataError(f"{len(failed)} of {len(days)} partitions were not published (the others were):\n  {lines}{more}",
                     REMEDY, model=spec.name, partition=f"{days[0]}..{days[-1]}")  # fmt: skip


def _result(done: list[Manifest], status: str) -> dict[str, Any]:
    done = sorted(done, key=lambda m: m.key)
    total = {name: sum(m.result[name] for m in done)
             for name in ("rows_in", "rows_out", "quarantined", "labels", "labels_quarantined")}  # fmt: skip
    latest = {name: max((m.result[name] for m in done if m.result[name] is not None), default=None)
              for name in ("version", "labels_version")}  # fmt: skip
    return {"partitions": [m.key for m in done], **total, **latest, "docs": [d for m in done for d in m.result["docs"]],
            "status": status}  # fmt: skip
