"""The step ``data``: landed files are read, validated and published, with the labels that are due.

The same code does one night or a range of them: the files of all dates are read as one relation, and every aggregate is
grouped by file, so that a range gives what its nights would give one by one. A date that is stopped leaves the others
as they are; the error that follows names it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial import __version__, files, lake, manifest
from perennial.errors import DataError, PerennialError, SpecError
from perennial.manifest import Manifest
from perennial.settings import settings
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import duckdb

    from perennial.checks import Check
    from perennial.expectations import Expectation
    from perennial.ingest import Feed, Landed
    from perennial.judge import Outcome
    from perennial.validate import Findings

STEP = "data"
#: In a longer range, only dates with something to show get a page of their own; all get their JSON.
PAGES = 7
REMEDY = "read the data doc, mend the feed (or the expectation), then run this date again"


@dataclass
class Night:
    """One partition date on its way through the step."""

    day: str
    inputs: dict[str, Any]
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    labels: int = 0
    label_date: str = ""
    label_state: str = ""
    labels_quarantined: int = 0
    doc: str = ""
    error: PerennialError | None = None


@dataclass
class Work:
    """What the parts of one call share."""

    spec: ModelSpec
    con: duckdb.DuckDBPyConnection
    folder: Path
    run_id: str
    nights: dict[str, Night]
    versions: dict[str, int] = field(default_factory=dict)

    def good(self) -> list[Night]:
        """Nights that nothing has stopped so far."""
        return [n for n in self.nights.values() if n.error is None]


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
    from perennial.ingest import workplace

    started = time.monotonic()
    days = files.dates(start, end)
    suite = _suite(spec)
    nights: dict[str, Night] = {}
    done: list[Manifest] = []
    for day in days:
        inputs = _inputs(spec, day)
        if spec.label.source:
            inputs["labelled_rows"] = _labelled(spec, day, nights)
        finished = None if force else manifest.finished(spec.name, STEP, day, inputs)
        if finished:
            done.append(finished)
        else:
            nights[day] = Night(day, inputs)
    if nights:
        with workplace(settings().home) as folder:
            work = Work(spec, lake.connect(memory_share=_share()), folder, run_id, nights)
            _rows(work, suite)
            _labels(work)
            _profile(work)
        done += manifest.write_all([_record(work, night) for night in work.good()], started)
    if failed := [n for n in nights.values() if n.error]:
        raise _failure(spec, failed, days)
    return _result(done, "published" if nights else "unchanged")


def _suite(spec: ModelSpec) -> list[Expectation]:
    from perennial.expectations import parse_suite

    suite, problems = parse_suite(spec.suite, spec.data.columns)
    if problems:
        raise SpecError("\n".join(map(str, problems)), "mend expectations.json; `perennial check` shows the same",
                        model=spec.name)  # fmt: skip
    return suite


def _share() -> float:
    """The part of the step's memory that is DuckDB's: what the loaded libraries leave, less what Arrow will hold."""
    here = settings().memory_mb
    taken = manifest.peak_memory_mb() + 256
    return max(128, here - taken) / here


def _inputs(spec: ModelSpec, day: str) -> dict[str, Any]:
    """What the result of one date depends on."""
    rows = spec.data.model_dump(
        exclude={"arrival", "arrival_hours"}
    )  # how long it was waited for decides nothing
    what = json.dumps([rows, spec.label.model_dump()], sort_keys=True)
    inputs: dict[str, Any] = {
        "source": _digest(files.expand(spec.data.source, day)),
        "spec": hashlib.sha256(what.encode()).hexdigest(),
        "suite": hashlib.sha256(spec.suite.encode()).hexdigest(),
        "code": __version__,
    }
    if spec.label.source:
        label_day = files.shift(day, -spec.label.arrives_after_days)
        inputs["labels"] = _digest(files.expand(spec.label.source, label_day))
    return inputs


def _labelled(spec: ModelSpec, day: str, nights: dict[str, Night]) -> str | None:
    """The rows that the labels of one night are matched with, by the digest of their file; none: there are none."""
    label_day = files.shift(day, -spec.label.arrives_after_days)
    if label_day in nights and nights[label_day].error is None:
        return str(nights[label_day].inputs["source"])
    found = manifest.read(spec.name, STEP, label_day) if label_day != day else None
    return found.inputs["source"] if found else None


def _digest(uri: str) -> str | None:
    try:
        return files.digest(uri)
    except FileNotFoundError:
        return None


def _rows(work: Work, suite: list[Expectation]) -> None:
    """Read, validate and publish the rows of all nights."""
    from perennial.ingest import Feed

    spec = work.spec
    feed = Feed(spec.name, "rows", spec.data.columns, spec.data.extra_columns, spec.data.personal)
    landed = []
    for night in work.nights.values():
        uri = files.expand(spec.data.source, night.day)
        if file := land_file(work, night, feed, uri, required=True):
            landed.append(file)
    through(work, feed, landed, suite, _publish_rows)


def through(
    work: Work, feed: Feed, landed: list[Landed], suite: list[Expectation],
    publish: Callable[[Work, Feed, list[Landed], Findings, dict[str, str]], None],
) -> None:  # fmt: skip
    """Validate files and publish them, together as far as may be; a file that cannot be read stops its night alone."""
    from perennial.publish import UnreadableError

    queue = _batches(landed)
    while queue:
        for part, findings, unread in _validate(work, feed, queue.pop(0), suite):
            try:
                publish(work, feed, part, findings, unread)
            except UnreadableError as error:
                if len(part) > 1:
                    queue += [[file] for file in part]
                else:
                    _unreadable(work, feed, part[0], error)


def _unreadable(work: Work, feed: Feed, file: Landed, error: Exception) -> None:
    from perennial.ingest import unreadable

    late = 0 if feed.what == "rows" else work.spec.label.arrives_after_days
    day = files.shift(file.day, late)
    work.nights[day].error = unreadable(feed, day, file.uri, error)


def land_file(work: Work, night: Night, feed: Feed, uri: str, *, required: bool) -> Landed | None:
    from perennial.ingest import land

    try:
        file = land(feed, night.day if required else night.label_date, uri, work.folder, work.con)
    except FileNotFoundError:
        if required:
            remedy = "wait for the feed, then run this date again; a range over it publishes the other dates"
            night.error = feed.error(f"{uri} has not landed", remedy, night.day)
        return None
    except PerennialError as error:
        night.error = error
        return None
    if required and file.rows == 0:
        night.error = feed.error(f"{uri} holds no rows", "ask the feed whether that is so; a partition without rows is "
                                 "not published", night.day)  # fmt: skip
        return None
    return file


def _batches(landed: list[Landed]) -> list[list[Landed]]:
    """Files that are read together: all, but big ones by themselves, so that a range judges as its nights would."""
    from perennial.checks import EXACT_QUANTILE_ROWS

    big = [[f] for f in landed if (f.rows or 0) > EXACT_QUANTILE_ROWS]
    small = [f for f in landed if (f.rows or 0) <= EXACT_QUANTILE_ROWS]
    return [*([small] if small else []), *big]


def _validate(
    work: Work, feed: Feed, batch: list[Landed], suite: list[Expectation]
) -> Iterator[tuple[list[Landed], Findings, dict[str, str]]]:
    """Validate files together; where one is malformed, one by one, so that it is found.

    What it yields can be read until the next is asked for: the view is then another one.
    """
    import duckdb

    from perennial.checks import EXACT_QUANTILE_ROWS, checks
    from perennial.ingest import view
    from perennial.validate import validate

    spec, rows = work.spec, feed.what == "rows"
    try:
        unread = view(work.con, feed, batch, feed.what)
        exact = (batch[0].rows or 0) <= EXACT_QUANTILE_ROWS
        found: list[Check] = checks(
            suite, feed.columns, spec.data.key, spec.data.event_time if rows else None, unread, exact
        )
        yield batch, validate(work.con, feed, batch, found, spec.data.quarantine_limit, feed.what), unread
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException):
        raise  # a defect of ours, not of the file
    except duckdb.Error as error:
        if len(batch) > 1:
            for file in batch:
                yield from _validate(work, feed, [file], suite)
            return
        _unreadable(work, feed, batch[0], error)


def _publish_rows(
    work: Work, feed: Feed, landed: list[Landed], findings: Findings, unread: dict[str, str]
) -> None:
    """Keep the data docs, then publish what is good and put the rest aside."""
    from perennial import datadocs, publish

    spec = work.spec
    name = json.loads(spec.suite)["name"]
    for outcome in findings.outcomes:
        night = work.nights[outcome.day]
        page = len(work.nights) <= PAGES or bool(outcome.quarantined or outcome.stopped)
        night.doc = datadocs.write(outcome, feed, name, page=page)
        night.rows_in, night.quarantined = outcome.rows, outcome.quarantined
        night.rows_out = outcome.rows - outcome.quarantined
        if outcome.stopped:
            night.error = _stopped(feed, outcome, night.doc)
    stopped = {o.day: o for o in findings.outcomes if o.stopped}
    good = {o.day for o in findings.outcomes} - set(stopped)
    uri = lake.table("quarantine", spec.name)
    held = set(lake.partitions(uri))
    for day, outcome in stopped.items():
        publish.replace(work.con, uri, publish.rejected(spec, day, outcome.stopped, work.run_id), day, day)
    aside = {o.day for o in findings.outcomes if o.day in good and (o.quarantined or o.day in held)}
    by_day = {o.day: o for o in findings.outcomes}
    for first, last in publish.runs(aside):
        days = {d for d in aside if first <= d <= last}
        sql = publish.quarantined(
            spec, feed, landed, findings.source, findings.reasons, days, work.run_id, unread
        )
        publish.replace(work.con, uri, sql, first, last, sum(by_day[d].quarantined for d in days))
    for first, last in publish.runs(good):
        days = {d for d in good if first <= d <= last}
        sql = publish.published(feed.columns, landed, findings.source, findings.bad, days)
        rows = sum(by_day[d].rows - by_day[d].quarantined for d in days)
        work.versions["published"] = publish.replace(
            work.con, lake.table("published", spec.name), sql, first, last, rows
        )
    if spec.label.source is None:
        _own_labels(work, landed, findings, good)


def _stopped(feed: Feed, outcome: Outcome, doc: str) -> PerennialError:
    return feed.error(
        f"nothing was published: {'; '.join(outcome.stopped)}. Data doc: {doc}", REMEDY, outcome.day
    )


def _own_labels(work: Work, landed: list[Landed], findings: Findings, good: set[str]) -> None:
    """Publish the labels that the rows themselves hold."""
    from perennial import publish

    spec = work.spec
    kind = publish.label_type(spec, spec.data.columns)
    for first, last in publish.runs(good):
        days = {d for d in good if first <= d <= last}
        sql = publish.labels(spec, landed, findings.source, findings.bad, days, kind, 0)
        rows = sum(work.nights[d].rows_out for d in days)
        work.versions["labels"] = publish.replace(
            work.con, lake.table("labels", spec.name), sql, first, last, rows
        )
    for day in good:
        work.nights[day].labels, work.nights[day].label_state = work.nights[day].rows_out, "in the rows"
        work.nights[day].label_date = day


def _labels(work: Work) -> None:
    """Publish the labels that are due with the nights."""
    from perennial import label_feed

    if work.spec.label.source is not None:
        label_feed.publish(work)


def _profile(work: Work) -> None:
    """Give people a summary of what was published."""
    from perennial import profile

    days = [n.day for n in work.good()]
    if days:
        profile.write(work.con, work.spec, days[0], days[-1], work.versions["published"])


def _record(work: Work, night: Night) -> Manifest:
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


def _failure(spec: ModelSpec, failed: list[Night], days: list[str]) -> PerennialError:
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
