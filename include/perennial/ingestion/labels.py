"""Labels from a separate feed, which arrive days after the rows that they belong to."""

from __future__ import annotations

import functools
from dataclasses import replace

from perennial.core import dates
from perennial.core.sql import quote_identifier
from perennial.ingestion import publishing
from perennial.ingestion.publishing import ValidatedBatch
from perennial.ingestion.run import REMEDY, PartitionRun, land_file, validate_and_publish
from perennial.storage import delta_tables, duckdb_session, landing
from perennial.storage.landing import FeedSchema, LandedFile

UNKNOWN_KEY = "key was never published"
INFINITE_LABEL = "label is not a finite number"


def publish_due_labels(run: PartitionRun) -> None:
    """Publish the labels that are due with each partition without an error.

    These are the labels of the rows of ``arrives_after_days`` before the partition.

    Args:
        run: the run; its partitions get the state and the counts of their labels, or the error that stopped them.
    """
    spec = run.spec
    feed = FeedSchema(spec.name, "labels", spec.label.columns, "ignore", spec.data.personal)
    sql_type = publishing.label_type(spec, spec.label.columns)
    landed: list[LandedFile] = []
    for partition in run.without_error():
        partition.label_date = dates.add_days(partition.day, -spec.label.arrives_after_days)
        uri = landing.source_uri(spec.label.source or "", partition.label_date)
        file = land_file(run, partition, feed, uri, required=False)
        partition.label_state = "published" if file else "missing" if partition.error is None else "refused"
        if file:
            landed.append(file)
    validate_and_publish(run, feed, landed, [], functools.partial(_publish_batch, sql_type=sql_type))


def _publish_batch(run: PartitionRun, batch: ValidatedBatch, *, sql_type: str) -> None:
    """Publish the good labels of a batch and put the others in quarantine."""
    spec, delay_days = run.spec, run.spec.label.arrives_after_days
    for outcome in batch.findings.outcomes:
        if outcome.stopped:
            partition = run.partitions[dates.add_days(outcome.day, delay_days)]
            cause = f"the labels of {outcome.day} were stopped: {'; '.join(outcome.stopped)}"
            partition.error = batch.feed.error(cause, REMEDY, partition.day)
    rows = {o.day: o.rows for o in batch.findings.outcomes if not o.stopped}
    batch = _check_values(run, batch, sql_type)
    quarantined = _quarantined_counts(run, batch)
    for day in rows:
        partition = run.partitions[dates.add_days(day, delay_days)]
        partition.labels_quarantined = quarantined.get(day, 0)
        partition.labels = rows[day] - partition.labels_quarantined
    uri = delta_tables.table_uri("labels", spec.name)
    for span in dates.contiguous_ranges(rows):
        days = {d for d in rows if d in span}
        sql = publishing.labels_sql(spec, batch, days, sql_type, delay_days)
        expected = sum(rows[d] - quarantined.get(d, 0) for d in days)
        run.versions["labels"] = publishing.replace_partitions(run.con, uri, sql, span, expected)
    _quarantine(run, batch, {d for d in rows if quarantined.get(d)})


def _quarantined_counts(run: PartitionRun, batch: ValidatedBatch) -> dict[str, int]:
    """Number of bad labels by the date of their rows."""
    findings = batch.findings
    if not findings.reasons:
        return {}
    counts = run.con.execute(
        f"SELECT __file, count(*) FROM {findings.source} WHERE {findings.bad} GROUP BY 1"
    ).fetchall()
    return {batch.files[file].day: rows for file, rows in counts}


def _quarantine(run: PartitionRun, batch: ValidatedBatch, days: set[str]) -> None:
    """Add bad labels to the quarantine of the partition that they arrived with, next to its rows.

    Args:
        run: the run.
        batch: the labels.
        days: dates of the rows that the labels belong to.
    """
    spec, delay_days = run.spec, run.spec.label.arrives_after_days
    uri = delta_tables.table_uri("quarantine", spec.name)
    for span in dates.contiguous_ranges(days):
        within = {d for d in days if d in span}
        sql = publishing.quarantined_rows_sql(spec, batch, within, run.run_id, delay_days)
        partitions = span.shift(delay_days)
        present = "quarantine_present"
        if duckdb_session.create_view(run.con, present, uri, start=partitions.start, end=partitions.end):
            sql = f"{sql} UNION ALL BY NAME SELECT * FROM {present} WHERE feed <> '{batch.feed.kind}'"
        publishing.replace_partitions(run.con, uri, sql, partitions)


def _check_values(run: PartitionRun, batch: ValidatedBatch, sql_type: str) -> ValidatedBatch:
    """Add to a batch's findings the labels that are infinite, and those whose key was never published.

    Looking up the keys among the rows published for their date is expensive. Only if some are missing, the relation
    gets a column ``__known`` that marks the others.
    """
    spec, con, findings = run.spec, run.con, batch.findings
    reasons = dict(findings.reasons)
    if sql_type == "DOUBLE":
        infinite = f"coalesce(isinf({publishing.label_value_sql(spec.label.expression, sql_type)}), FALSE)"
        if _count(run, f"{findings.source} WHERE {infinite}"):
            reasons[INFINITE_LABEL] = infinite
    days = sorted(file.day for file in batch.files)
    uri = delta_tables.table_uri("published", spec.name)
    if not duckdb_session.create_view(con, "published_rows", uri, start=days[0], end=days[-1]):
        return replace(batch, findings=replace(findings, reasons={**reasons, UNKNOWN_KEY: "TRUE"}))
    keys = [quote_identifier(k) for k in spec.data.key]
    same_date = f"p.partition_date = {publishing.partition_date_sql(batch.files)}"
    same = " AND ".join([same_date, *(f"p.{k} = l.{k}" for k in keys)])
    if not _count(run, f"{findings.source} l ANTI JOIN published_rows p ON {same}"):
        return replace(batch, findings=replace(findings, reasons=reasons))
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW labels_known AS SELECT l.*, p.partition_date IS NOT NULL AS __known "
        f"FROM {findings.source} l LEFT JOIN published_rows p ON {same}"
    )
    reasons[UNKNOWN_KEY] = "NOT __known"
    return replace(batch, findings=replace(findings, source="labels_known", reasons=reasons))


def _count(run: PartitionRun, relation: str) -> int:
    return int(run.con.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])
