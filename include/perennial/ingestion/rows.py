"""The rows of a feed: read, validated, published."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from perennial.core.errors import PerennialError
from perennial.ingestion.run import REMEDY, PartitionRun, land_file, validate_and_publish
from perennial.storage import delta_tables, landing

if TYPE_CHECKING:
    from perennial.storage.landing import FeedSchema, LandedFile
    from perennial.validation.gx_evaluator import ValidationOutcome
    from perennial.validation.suite import Expectation
    from perennial.validation.validator import ValidationFindings


#: In a longer range, only dates with something to show get a page of their own; all get their JSON.
PAGES = 7


def publish_rows(work: PartitionRun, suite: list[Expectation]) -> None:
    """Read, validate and publish the rows of all nights."""
    from perennial.storage.landing import FeedSchema

    spec = work.spec
    feed = FeedSchema(spec.name, "rows", spec.data.columns, spec.data.extra_columns, spec.data.personal)
    landed = []
    for night in work.nights.values():
        uri = landing.source_uri(spec.data.source, night.day)
        if file := land_file(work, night, feed, uri, required=True):
            landed.append(file)
    validate_and_publish(work, feed, landed, suite, _publish_rows)


def _publish_rows(
    work: PartitionRun,
    feed: FeedSchema,
    landed: list[LandedFile],
    findings: ValidationFindings,
    unread: dict[str, str],
) -> None:
    """Keep the data docs, then publish what is good and put the rest aside."""
    from perennial.core import dates
    from perennial.ingestion import publishing
    from perennial.validation import data_docs

    spec = work.spec
    name = json.loads(spec.suite)["name"]
    for outcome in findings.outcomes:
        night = work.nights[outcome.day]
        page = len(work.nights) <= PAGES or bool(outcome.quarantined or outcome.stopped)
        night.doc = data_docs.write_data_doc(outcome, feed, name, page=page)
        night.rows_in, night.quarantined = outcome.rows, outcome.quarantined
        night.rows_out = outcome.rows - outcome.quarantined
        if outcome.stopped:
            night.error = _stopped(feed, outcome, night.doc)
    stopped = {o.day: o for o in findings.outcomes if o.stopped}
    good = {o.day for o in findings.outcomes} - set(stopped)
    uri = delta_tables.table_uri("quarantine", spec.name)
    held = set(delta_tables.partitions(uri))
    for day, outcome in stopped.items():
        publishing.replace_partitions(
            work.con, uri, publishing.stopped_partition_sql(spec, day, outcome.stopped, work.run_id), day, day
        )
    aside = {o.day for o in findings.outcomes if o.day in good and (o.quarantined or o.day in held)}
    by_day = {o.day: o for o in findings.outcomes}
    for span in dates.contiguous_ranges(aside):
        days = {d for d in aside if d in span}
        sql = publishing.quarantined_rows_sql(
            spec, feed, landed, findings.source, findings.reasons, days, work.run_id, unread
        )
        publishing.replace_partitions(
            work.con, uri, sql, span.start, span.end, sum(by_day[d].quarantined for d in days)
        )
    for span in dates.contiguous_ranges(good):
        days = {d for d in good if d in span}
        sql = publishing.published_rows_sql(feed.columns, landed, findings.source, findings.bad, days)
        rows = sum(by_day[d].rows - by_day[d].quarantined for d in days)
        work.versions["published"] = publishing.replace_partitions(
            work.con, delta_tables.table_uri("published", spec.name), sql, span.start, span.end, rows
        )
    if spec.label.source is None:
        _own_labels(work, landed, findings, good)


def _stopped(feed: FeedSchema, outcome: ValidationOutcome, doc: str) -> PerennialError:
    return feed.error(
        f"nothing was published: {'; '.join(outcome.stopped)}. Data doc: {doc}", REMEDY, outcome.day
    )


def _own_labels(
    work: PartitionRun, landed: list[LandedFile], findings: ValidationFindings, good: set[str]
) -> None:
    """Publish the labels that the rows themselves hold."""
    from perennial.core import dates
    from perennial.ingestion import publishing

    spec = work.spec
    kind = publishing.label_type(spec, spec.data.columns)
    for span in dates.contiguous_ranges(good):
        days = {d for d in good if d in span}
        sql = publishing.labels_sql(spec, landed, findings.source, findings.bad, days, kind, 0)
        rows = sum(work.nights[d].rows_out for d in days)
        work.versions["labels"] = publishing.replace_partitions(
            work.con, delta_tables.table_uri("labels", spec.name), sql, span.start, span.end, rows
        )
    for day in good:
        work.nights[day].labels, work.nights[day].label_state = work.nights[day].rows_out, "in the rows"
        work.nights[day].label_date = day
