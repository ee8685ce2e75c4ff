"""Labels that come in a feed of their own, days after the rows they belong to."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from perennial.core import dates
from perennial.core.sql import quote_identifier
from perennial.storage import delta_tables, duckdb_session, landing

if TYPE_CHECKING:
    from perennial.ingestion.run import PartitionRun
    from perennial.storage.landing import FeedSchema, LandedFile
    from perennial.validation.validator import ValidationFindings

UNKNOWN = "key was never published"
INFINITE = "label is not a finite number"


def publish_due_labels(work: PartitionRun) -> None:
    """Publish the labels due with each night that is good so far: those of ``arrives_after_days`` before it."""
    from perennial.ingestion import publishing, run
    from perennial.storage.landing import FeedSchema

    spec = work.spec
    feed = FeedSchema(spec.name, "labels", spec.label.columns, "ignore", spec.data.personal)
    late = spec.label.arrives_after_days
    kind = publishing.label_type(spec, spec.label.columns)
    landed: list[LandedFile] = []
    for night in work.good():
        night.label_date = dates.add_days(night.day, -late)
        file = run.land_file(
            work, night, feed, landing.source_uri(spec.label.source or "", night.label_date), required=False
        )
        night.label_state = "published" if file else "missing" if night.error is None else "refused"
        if file:
            landed.append(file)
    run.validate_and_publish(work, feed, landed, [], functools.partial(_publish, kind=kind))


def _publish(
    work: PartitionRun,
    feed: FeedSchema,
    landed: list[LandedFile],
    findings: ValidationFindings,
    unread: dict[str, str],
    *,
    kind: str,
) -> None:
    from perennial.core import dates
    from perennial.ingestion import publishing, run

    spec, late = work.spec, work.spec.label.arrives_after_days
    for outcome in findings.outcomes:
        if outcome.stopped:
            night = work.nights[dates.add_days(outcome.day, late)]
            night.error = feed.error(f"the labels of {outcome.day} were stopped: {'; '.join(outcome.stopped)}",
                                     run.REMEDY, night.day)  # fmt: skip
    good = {o.day for o in findings.outcomes if not o.stopped}
    rows = {o.day: o.rows for o in findings.outcomes}
    source, reasons = _suspects(work, landed, findings, kind)
    bad = " OR ".join(f"({sql})" for sql in reasons.values()) or "FALSE"
    aside: dict[str, int] = {}
    if reasons:
        counts = work.con.execute(f"SELECT __file, count(*) FROM {source} WHERE {bad} GROUP BY 1").fetchall()
        aside = {landed[f].day: n for f, n in counts}
    for day in good:
        night = work.nights[dates.add_days(day, late)]
        night.labels_quarantined = aside.get(day, 0)
        night.labels = rows[day] - night.labels_quarantined
    uri = delta_tables.table_uri("labels", spec.name)
    for span in dates.contiguous_ranges(good):
        days = {d for d in good if d in span}
        sql = publishing.labels_sql(spec, landed, source, bad, days, kind, late)
        expected = sum(rows[d] - aside.get(d, 0) for d in days)
        work.versions["labels"] = publishing.replace_partitions(
            work.con, uri, sql, span.start, span.end, expected
        )
    _quarantine(work, feed, landed, source, reasons, {d for d in good if aside.get(d)}, unread)


def _quarantine(
    work: PartitionRun,
    feed: FeedSchema,
    landed: list[LandedFile],
    source: str,
    reasons: dict[str, str],
    days: set[str],
    unread: dict[str, str],
) -> None:
    """Add the labels put aside to the quarantine of the night that brought them, beside that night's rows."""
    from perennial.core import dates
    from perennial.ingestion import publishing

    spec, late, con = work.spec, work.spec.label.arrives_after_days, work.con
    uri = delta_tables.table_uri("quarantine", spec.name)
    for span in dates.contiguous_ranges(days):
        within = {d for d in days if d in span}
        sql = publishing.quarantined_rows_sql(
            spec, feed, landed, source, reasons, within, work.run_id, unread, shift=late
        )
        nights = span.shift(late)
        if duckdb_session.create_view(con, "quarantine_held", uri, start=nights.start, end=nights.end):
            sql = f"{sql} UNION ALL BY NAME SELECT * FROM quarantine_held WHERE feed <> '{feed.what}'"
        publishing.replace_partitions(con, uri, sql, nights.start, nights.end)


def _suspects(
    work: PartitionRun, landed: list[LandedFile], findings: ValidationFindings, kind: str
) -> tuple[str, dict[str, str]]:
    """The labels as a relation, and what is wrong with some of them, by reason; nothing, where nothing is.

    Keys are looked up among the rows published for their date. Only where some are not there does the relation carry
    what tells them (``__known``): the look-up is the dear part.
    """
    from perennial.ingestion import publishing

    spec, con, source = work.spec, work.con, findings.source
    reasons = dict(findings.reasons)
    if kind == "DOUBLE":
        infinite = f"coalesce(isinf({publishing.label_value_sql(spec.label.expression, kind)}), FALSE)"
        if con.execute(f"SELECT count(*) FROM {source} WHERE {infinite}").fetchall()[0][0]:
            reasons[INFINITE] = infinite
    keys, days = [quote_identifier(k) for k in spec.data.key], sorted(file.day for file in landed)
    uri = delta_tables.table_uri("published", spec.name)
    if not duckdb_session.create_view(con, "published_rows", uri, start=days[0], end=days[-1]):
        return source, {**reasons, UNKNOWN: "TRUE"}
    same = " AND ".join(
        [f"p.partition_date = {publishing.partition_date_sql(landed)}", *(f"p.{k} = l.{k}" for k in keys)]
    )
    unknown = con.execute(f"SELECT count(*) FROM {source} l ANTI JOIN published_rows p ON {same}").fetchall()[
        0
    ][0]
    if not unknown:
        return source, reasons
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW labels_known AS SELECT l.*, p.partition_date IS NOT NULL AS __known "
        f"FROM {source} l LEFT JOIN published_rows p ON {same}"
    )
    return "labels_known", {**reasons, UNKNOWN: "NOT __known"}
