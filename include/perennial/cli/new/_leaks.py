"""What in a sample suggests that features contain the label, or that the label becomes known only later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from perennial.cli.new import templates
from perennial.cli.new._combined_leaks import find_combination
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
_NUMBERS = ("integer", "number", "boolean")


def label_remarks(sample: Sample, draft: templates.ModelDraft, partitions: Partitions) -> list[str]:
    """Remarks on features that contain the label, alone or together, and on a label that the latest partitions lack.

    Nothing is left out: such a feature may be right, for example if the label is a function of it.

    Args:
        sample: the sample.
        draft: the decisions about the model.
        partitions: how the sample's rows are divided.
    """
    _, left_out = templates.features(sample, draft)
    # Of dates and times only parts are features: their hour, weekday and month.
    used = [
        c for c in sample.columns.values() if c.name not in left_out and c.kind not in ("date", "timestamp")
    ]
    remarks = []
    if used:
        rows = _read_rows(sample, draft, used)
        remarks = [*_single_leaks(rows, used, draft), *_combined_leak(rows, used, draft)]
    return remarks + ([late] if (late := _late_label(sample, draft, partitions)) else [])


def _single_leaks(rows: pa.Table, columns: list[SampleColumn], draft: templates.ModelDraft) -> Iterator[str]:
    """A remark on each column that predicts the label too well alone."""
    y = _targets(rows.column("__label"), draft.task)
    for i, column in enumerate(columns):
        categorical = column.kind in ("string", "boolean")
        values = _values(rows.column(f"__{i}"), column)
        if score := suspicious_score(values, y, draft.task, categorical=categorical):
            yield (
                f"{column.name!r} alone predicts {draft.label} almost perfectly ({score}): is it known when a "
                "prediction is made? If not, remove it from features.sql"
            )


def _combined_leak(rows: pa.Table, columns: list[SampleColumn], draft: templates.ModelDraft) -> Iterator[str]:
    """A remark if the label is a sum, difference, product or ratio of a few numbers."""
    numbers = [(i, c) for i, c in enumerate(columns) if c.kind in _NUMBERS]
    if draft.task not in ("regression", "binary") or not numbers:
        return
    x = np.column_stack([_numbers(rows.column(f"__{i}")) for i, _ in numbers])
    combination = find_combination(x, _targets(rows.column("__label"), draft.task))
    if combination is None:
        return
    count = "all" if combination.exact == combination.rows else f"{combination.exact:,} of"
    yield (
        f"{draft.label} is {combination.text([c.name for _, c in numbers])} in {count} {combination.rows:,} rows: are "
        "these columns known when a prediction is made? If so, no model is needed; if not, remove from features.sql "
        "those that are not"
    )


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
    return _numbers(label)


def _numbers(values: pa.ChunkedArray[Any]) -> np.ndarray:
    """A column of numbers or of truth values as numbers; NaN where it is missing."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _values(values: pa.ChunkedArray[Any], column: SampleColumn) -> np.ndarray:
    """A column as numbers, or as codes of its texts; NaN where it is missing."""
    if column.kind in ("string", "boolean"):
        encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
        return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.float64)
    return _numbers(values)


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
