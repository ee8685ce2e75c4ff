"""Land, validate and publish the rows of a feed."""

from __future__ import annotations

import json
import logging

from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import publishing, query_feed
from perennial.ingestion.publishing import ValidatedBatch
from perennial.ingestion.run import REMEDY, PartitionRun, land_file, rows_feed, validate_and_publish
from perennial.validation import data_docs
from perennial.validation.gx_evaluator import ValidationOutcome
from perennial.validation.suite import Expectation

#: In a run of more partitions, data docs without bad rows are written only as JSON, not as a page, and none of
#: partitions without rows.
MAX_PAGES = 7
#: Columns that a message lists.
MAX_UNDECLARED = 20
log = logging.getLogger("perennial")


def publish_rows(run: PartitionRun, suite: list[Expectation]) -> None:
    """Land, validate and publish the rows of all partitions of a run.

    Args:
        run: the run; its partitions get their row counts, or the error that stopped them.
        suite: expectations of the rows.
    """
    spec = run.spec
    feed = rows_feed(spec)
    landed = []
    for partition in run.partitions.values():
        uri = query_feed.describe(feed, spec.data.source, partition.day)
        if file := land_file(run, partition, feed, uri):
            landed.append(file)
            run.undeclared |= {n: kind for n, kind in file.undeclared.items() if n not in spec.label.columns}
    _log_undeclared(run)
    validate_and_publish(run, feed, landed, suite, _publish_batch)
    if len(run.partitions) > MAX_PAGES:
        data_docs.remove_outdated(spec.name, {p.day: p.data_doc for p in run.published()})


def _log_undeclared(run: PartitionRun) -> None:
    """Mention the columns that no one declares, some of which may be new in the feed: once, whatever the files."""
    if run.undeclared:
        listed = [f"{name!r} ({kind})" for name, kind in run.undeclared.items()]
        if (omitted := len(listed) - MAX_UNDECLARED) > 0:
            listed[MAX_UNDECLARED:] = [f"and {omitted} more"]
        text = "Model %s: the files have columns that data.columns does not list: %s."
        log.info(text, run.spec.name, ", ".join(listed))


def _publish_batch(run: PartitionRun, batch: ValidatedBatch) -> None:
    """Write the data docs, put bad rows in quarantine, publish the good ones."""
    suite_name = json.loads(run.spec.suite)["name"]
    for outcome in batch.findings.outcomes:
        _record_outcome(run, batch.feed, outcome, suite_name)
    published = {o.day: o for o in batch.findings.outcomes if not o.stopped}
    _quarantine(run, batch, published)
    rows = {day: o.rows - o.quarantined for day, o in published.items()}
    run.replace("published", lambda days: publishing.published_rows_sql(batch, days), rows, batch)
    if run.spec.label.source is None:
        _publish_own_labels(run, batch, rows)


def _record_outcome(run: PartitionRun, feed: FeedSchema, outcome: ValidationOutcome, suite_name: str) -> None:
    """Write the data doc of a partition and record its row counts and, if it was stopped, its error."""
    partition = run.partitions[outcome.day]
    page = len(run.partitions) <= MAX_PAGES or bool(outcome.quarantined or outcome.stopped)
    if page or outcome.rows:
        partition.data_doc = data_docs.write_data_doc(outcome, feed, suite_name, page=page)
    partition.rows_in, partition.quarantined = outcome.rows, outcome.quarantined
    partition.rows_out = outcome.rows - outcome.quarantined
    partition.in_great_expectations = outcome.in_great_expectations
    if outcome.stopped:
        cause = f"nothing was published: {'; '.join(outcome.stopped)}. Data doc: {partition.data_doc}"
        partition.error = feed.error(cause, REMEDY, outcome.day)


def _quarantine(run: PartitionRun, batch: ValidatedBatch, published: dict[str, ValidationOutcome]) -> None:
    """Replace the quarantine of each partition by its bad rows, or the reasons why it was stopped."""
    spec = run.spec
    if stopped := {o.day: o.stopped for o in batch.findings.outcomes if o.stopped}:
        publishing.quarantine_stopped(run.con, spec, stopped, run.run_id)
    quarantined = {day: o.quarantined for day, o in published.items()}
    publishing.quarantine(run.con, spec, batch, quarantined, run.run_id)


def _publish_own_labels(run: PartitionRun, batch: ValidatedBatch, rows: dict[str, int]) -> None:
    """Publish the labels that are computed from the rows themselves."""
    label_type = publishing.label_type(run.spec)
    run.replace(
        "labels", lambda days: publishing.labels_sql(run.spec, batch, days, label_type, 0), rows, batch
    )
