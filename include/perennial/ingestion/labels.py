"""Labels from a separate feed, which arrive days after the rows that they belong to.

What is published of a label file depends on that file alone. A label whose row is not published, or not yet, is kept:
readers join labels with rows (`features.labelled_rows`), and monitoring counts the labels without a row. So the order
in which partitions are processed does not matter.
"""

from __future__ import annotations

import functools

from perennial.ingestion import publishing, query_feed
from perennial.ingestion.publishing import ValidatedBatch
from perennial.ingestion.run import REMEDY, PartitionRun, labels_feed, land_file, validate_and_publish
from perennial.storage.landing import LandedFile


def publish_labels(run: PartitionRun) -> None:
    """Publish the labels of a run.

    Args:
        run: the run; its labels get their counts, or the error that stopped them.
    """
    spec = run.spec
    feed = labels_feed(spec)
    sql_type = publishing.label_type(spec)
    landed: list[LandedFile] = []
    for state in run.labels.values():
        uri = query_feed.describe(feed, spec.label.source or "", state.day)
        if file := land_file(run, state, feed, uri):
            landed.append(file)
    validate_and_publish(run, feed, landed, [], functools.partial(_publish_batch, sql_type=sql_type))


def _publish_batch(run: PartitionRun, batch: ValidatedBatch, *, sql_type: str) -> None:
    """Publish the good labels of a batch and put the others in quarantine."""
    spec, delay = run.spec, run.spec.label_delay
    for outcome in batch.findings.outcomes:
        if outcome.stopped:
            cause = f"the labels of {outcome.day} were stopped: {'; '.join(outcome.stopped)}"
            run.labels[outcome.day].error = batch.feed.error(cause, REMEDY, outcome.day)
    quarantined = {}
    for outcome in batch.findings.outcomes:
        if not outcome.stopped:
            state = run.labels[outcome.day]
            state.rows_in, state.quarantined = outcome.rows, outcome.quarantined
            state.rows_out = state.rows_in - state.quarantined
            quarantined[outcome.day] = outcome.quarantined
    rows = {day: run.labels[day].rows_out for day in quarantined}
    run.replace("labels", lambda days: publishing.labels_sql(spec, batch, days, sql_type, delay), rows, batch)
    # Next to the rows of the partition that they arrived with.
    publishing.quarantine(run.con, spec, batch, quarantined, run.run_id, delay)
