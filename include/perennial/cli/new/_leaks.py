"""What in a sample suggests that a feature contains the label, or that the label becomes known only later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from perennial.cli.new import templates
from perennial.cli.new.partitioning import Partitions
from perennial.cli.new.samples.sample_reader import Sample, SampleColumn
from perennial.core.durations import Duration
from perennial.core.sql import quote_identifier
from perennial.modeling.single_feature import suspicious_score

__all__ = ["label_remarks"]

#: Rows that are looked at: fewer, the more columns there are.
MIN_ROWS, MAX_ROWS, MAX_CELLS = 3000, 20_000, 5_000_000
#: Share of the labels missing in earlier partitions up to which later ones without any are noticed.
MAX_MISSING = 0.5


def label_remarks(sample: Sample, draft: templates.ModelDraft, partitions: Partitions) -> list[str]:
    """Remarks on features that predict the label too well alone, and on a label that the latest partitions lack.

    Nothing is left out: such a feature may be right, for example if the label is a function of it.

    Args:
        sample: the sample.
        draft: the decisions about the model.
        partitions: how the sample's rows are divided.
    """
    remarks = [
        f"{name!r} alone predicts {draft.label} almost perfectly ({score}): is it known when a prediction is made? If "
        "not, remove it from features.sql"
        for name, score in suspected_leaks(sample, draft)
    ]
    return remarks + ([late] if (late := _late_label(sample, draft, partitions)) else [])


def suspected_leaks(sample: Sample, draft: templates.ModelDraft) -> list[tuple[str, str]]:
    """The features that predict the label too well alone, with the score that says so."""
    _, left_out = templates.features(sample, draft)
    # Of dates and times only parts are features: their hour, weekday and month.
    used = [
        c for c in sample.columns.values() if c.name not in left_out and c.kind not in ("date", "timestamp")
    ]
    if not used:
        return []
    rows = _read_rows(sample, draft, used)
    y = _targets(rows.column("__label"), draft.task)
    leaks = []
    for i, column in enumerate(used):
        categorical = column.kind in ("string", "boolean")
        values = _values(rows.column(f"__{i}"), column)
        if score := suspicious_score(values, y, draft.task, categorical=categorical):
            leaks.append((column.name, score))
    return leaks


def _read_rows(sample: Sample, draft: templates.ModelDraft, columns: list[SampleColumn]) -> pa.Table:
    """Some rows with a label: ``__label``, and the columns by their positions."""
    label = draft.label_sql or quote_identifier(draft.label)
    step = max(1, sample.row_count // max(MIN_ROWS, min(MAX_ROWS, MAX_CELLS // len(columns))))
    names = ", ".join(f"{quote_identifier(c.name)} AS __{i}" for i, c in enumerate(columns))
    query = (
        f"SELECT {label} AS __label, {names} FROM __rows WHERE ({label}) IS NOT NULL "
        f"AND hash(__file, __row) % {step} = 0 ORDER BY hash(__file, __row, 1)"
    )
    result: pa.Table = sample.con.sql(sample.resolve(query)).to_arrow_table()
    return result


def _targets(label: pa.ChunkedArray[Any], task: str) -> np.ndarray:
    """The labels as numbers: class indices, or values."""
    if task == "multiclass":
        encoded = label.cast(pa.string()).combine_chunks().dictionary_encode()
        return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_boolean(label.type):
        label = label.cast(pa.int8())
    return np.asarray(label.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _values(values: pa.ChunkedArray[Any], column: SampleColumn) -> np.ndarray:
    """A column as numbers, or as codes of its texts; NaN where it is missing."""
    if column.kind in ("string", "boolean"):
        encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
        return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.float64)
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _late_label(sample: Sample, draft: templates.ModelDraft, partitions: Partitions) -> str:
    """A remark if the latest partitions have no label at all and most earlier rows have one; else empty."""
    if not partitions.dated:
        return ""
    label = draft.label_sql or quote_identifier(draft.label)
    counts = sample.query(
        f"SELECT __day::VARCHAR, count(*), count({label}) FROM __dated WHERE __day IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    without = next((i for i, (_, _, known) in enumerate(reversed(counts)) if known), len(counts))
    earlier = counts[: len(counts) - without]
    rows, known = sum(r for _, r, _ in earlier), sum(k for _, _, k in earlier)
    if not without or not earlier or known < (1 - MAX_MISSING) * rows:
        return ""
    delay = Duration(without, "partition")
    return (
        f"the latest {without} partitions, from {counts[-without][0]} on, have no {draft.label}: if it becomes known "
        f"only later, set label.arrives_after to {delay}, and give it as a feed of its own (label.source), or "
        "publish the partitions again when it is known"
    )
