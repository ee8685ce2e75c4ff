"""Labels that a task cannot have: they go to quarantine, in the label feed or with their row."""

from __future__ import annotations

import duckdb

from perennial.features.targets import LARGEST_LABEL, MAX_CLASSES, MAX_GRADE, POSSIBLE_LABELS
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import publishing
from perennial.spec.model_spec import ModelSpec
from perennial.storage.landing import LandedFile
from perennial.validation.validator import ValidationFindings


def impossible_label_conditions(spec: ModelSpec, feed: FeedSchema) -> dict[str, str]:
    """SQL condition of a row with a label that the task cannot have, by its reason; empty for a feed without labels.

    The same as `features.targets.impossible_labels`, with which training and monitoring read labels. A missing label is
    none of these: it may not be known yet.

    Args:
        spec: the model.
        feed: its rows or its labels.
    """
    if (value := _label_value(spec, feed)) is None:
        return {}
    sql_type, label = value
    if sql_type == "VARCHAR":
        empty = f"trim({label}, concat(' ', chr(9), chr(10), chr(11), chr(12), chr(13))) = ''"
        condition = empty if spec.task == "multiclass" else f"{label} IS NOT NULL"
    else:
        condition = {
            "binary": f"{label} NOT IN (0, 1)",
            "multiclass": f"NOT isfinite({label}::DOUBLE)",
            "regression": f"abs({label}::DOUBLE) > {LARGEST_LABEL!r}",
            "ranking": f"({label} < 0 OR {label} > {MAX_GRADE} OR {label} <> floor({label}))",
        }[spec.task]
    return {f"label is not {POSSIBLE_LABELS[spec.task]}": f"coalesce({condition}, FALSE)"}


def stop_too_many_classes(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    feed: FeedSchema,
    files: list[LandedFile],
    findings: ValidationFindings,
) -> None:
    """Stop each file whose labels have more classes than a model can have.

    Args:
        con: connection with the validated view.
        spec: the model.
        feed: its rows or its labels.
        files: the validated files.
        findings: their findings; outcomes of files that are stopped get a reason.
    """
    value = _label_value(spec, feed) if spec.task == "multiclass" else None
    if value is None or all((file.rows or 0) <= MAX_CLASSES for file in files):
        return
    counts = con.execute(
        f"SELECT __file, count(DISTINCT {value[1]}) FROM {findings.source} WHERE NOT ({findings.bad}) GROUP BY 1"
    ).fetchall()
    for file, classes in counts:
        if classes > MAX_CLASSES:
            findings.outcomes[file].stopped.append(
                f"the labels have {classes:,} classes, at most {MAX_CLASSES:,} are supported"
            )


def _label_value(spec: ModelSpec, feed: FeedSchema) -> tuple[str, str] | None:
    """Type and SQL of the label that a row of the feed has; None if its rows have none."""
    if (feed.kind == "labels") != (spec.label.source is not None):
        return None
    sql_type = publishing.label_type(spec)
    return sql_type, publishing.label_value_sql(spec, sql_type)
