"""Land, validate and publish the rows of a feed."""

from __future__ import annotations

import json

from perennial.core import dates
from perennial.ingestion import publishing
from perennial.ingestion.publishing import ValidatedBatch
from perennial.ingestion.run import REMEDY, PartitionRun, land_file, validate_and_publish
from perennial.storage import delta_tables, landing
from perennial.storage.landing import FeedSchema
from perennial.validation import data_docs
from perennial.validation.gx_evaluator import ValidationOutcome
from perennial.validation.suite import Expectation

#: In a run of more partitions, data docs without bad rows are written only as JSON, not as a page.
MAX_PAGES = 7


def publish_rows(run: PartitionRun, suite: list[Expectation]) -> None:
    """Land, validate and publish the rows of all partitions of a run.

    Args:
        run: the run; its partitions get their row counts, or the error that stopped them.
        suite: expectations of the rows.
    """
    spec = run.spec
    feed = FeedSchema(spec.name, "rows", spec.data.columns, spec.data.extra_columns, spec.data.personal)
    landed = []
    for partition in run.partitions.values():
        uri = landing.source_uri(spec.data.source, partition.day)
        if file := land_file(run, partition, feed, uri, required=True):
            landed.append(file)
    validate_and_publish(run, feed, landed, suite, _publish_batch)


def _publish_batch(run: PartitionRun, batch: ValidatedBatch) -> None:
    """Write the data docs, put bad rows in quarantine, publish the good ones."""
    suite_name = json.loads(run.spec.suite)["name"]
    for outcome in batch.findings.outcomes:
        _record_outcome(run, batch.feed, outcome, suite_name)
    published = {o.day: o for o in batch.findings.outcomes if not o.stopped}
    _quarantine(run, batch, published)
    uri = delta_tables.table_uri("published", run.spec.name)
    for span in dates.contiguous_ranges(published):
        outcomes = {day: o for day, o in published.items() if day in span}
        sql = publishing.published_rows_sql(batch, set(outcomes))
        expected = sum(o.rows - o.quarantined for o in outcomes.values())
        run.versions["published"] = publishing.replace_partitions(run.con, uri, sql, span, expected)
    if run.spec.label.source is None:
        _publish_own_labels(run, batch, set(published))


def _record_outcome(run: PartitionRun, feed: FeedSchema, outcome: ValidationOutcome, suite_name: str) -> None:
    """Write the data doc of a partition and record its row counts and, if it was stopped, its error."""
    partition = run.partitions[outcome.day]
    page = len(run.partitions) <= MAX_PAGES or bool(outcome.quarantined or outcome.stopped)
    partition.data_doc = data_docs.write_data_doc(outcome, feed, suite_name, page=page)
    partition.rows_in, partition.quarantined = outcome.rows, outcome.quarantined
    partition.rows_out = outcome.rows - outcome.quarantined
    if outcome.stopped:
        cause = f"nothing was published: {'; '.join(outcome.stopped)}. Data doc: {partition.data_doc}"
        partition.error = feed.error(cause, REMEDY, outcome.day)


def _quarantine(run: PartitionRun, batch: ValidatedBatch, published: dict[str, ValidationOutcome]) -> None:
    """Replace the quarantine of each partition by its bad rows, or the reasons why it was stopped."""
    spec = run.spec
    uri = delta_tables.table_uri("quarantine", spec.name)
    present = set(delta_tables.partitions(uri))
    for outcome in batch.findings.outcomes:
        if outcome.stopped:
            sql = publishing.stopped_partition_sql(spec, outcome.day, outcome.stopped, run.run_id)
            publishing.replace_partitions(run.con, uri, sql, dates.DateRange(outcome.day, outcome.day))
    replaced = {day: o for day, o in published.items() if o.quarantined or day in present}
    for span in dates.contiguous_ranges(replaced):
        outcomes = {day: o for day, o in replaced.items() if day in span}
        sql = publishing.quarantined_rows_sql(spec, batch, set(outcomes), run.run_id)
        expected = sum(o.quarantined for o in outcomes.values())
        publishing.replace_partitions(run.con, uri, sql, span, expected)


def _publish_own_labels(run: PartitionRun, batch: ValidatedBatch, days: set[str]) -> None:
    """Publish the labels that are computed from the rows themselves."""
    spec = run.spec
    label_type = publishing.label_type(spec, spec.data.columns)
    uri = delta_tables.table_uri("labels", spec.name)
    for span in dates.contiguous_ranges(days):
        within = {day for day in days if day in span}
        sql = publishing.labels_sql(spec, batch, within, label_type, 0)
        expected = sum(run.partitions[day].rows_out for day in within)
        run.versions["labels"] = publishing.replace_partitions(run.con, uri, sql, span, expected)
    for day in days:
        partition = run.partitions[day]
        partition.labels, partition.label_state, partition.label_date = partition.rows_out, "in the rows", day
