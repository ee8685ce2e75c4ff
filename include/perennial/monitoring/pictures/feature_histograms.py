"""The compared columns with their histograms, as a file beside the report, for pages that draw them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from perennial.charts.markup import number
from perennial.core import html
from perennial.core.settings import settings
from perennial.monitoring.drift_verdict import ColumnDrift
from perennial.monitoring.histograms import BinCounts, ReferenceColumn

#: Most columns that are stored: those that drifted, then the most important ones.
MAX_COLUMNS = 300
#: Characters of a category that are stored.
_NAME_LENGTH = 60
#: Changes whenever the file's form does.
FORMAT = 1


def uri(model: str, as_of: str) -> str:
    """The file of a window."""
    return f"{settings().lake}/reports/{model}/monitor/{as_of}.features.json"


def content(
    as_of: str,
    version: str,
    columns: Sequence[ColumnDrift],
    reference: Mapping[str, ReferenceColumn],
    windows: Sequence[BinCounts],
    personal: Collection[str],
) -> dict[str, Any]:
    """The columns with the numbers of rows in each bin.

    Args:
        as_of: last partition of the window.
        version: version of the champion.
        columns: the compared columns.
        reference: what they were compared with, by column.
        windows: counts of the window: of features, and of predictions.
        personal: columns of personal data, of which only missing values are counted.
    """
    counted = {name: counts for window in windows for name, counts in window.columns.items()}
    ranked = sorted(columns, key=lambda c: (c.status != "drifted", c.role != "prediction", -c.importance))
    stored = []
    for column in ranked[:MAX_COLUMNS]:
        compared, counts = reference.get(column.column), counted.get(column.column)
        bins: dict[str, Any] = {"kind": "", "bins": [], "reference": [], "current": []}
        if compared is not None and counts:
            names = _names(compared)
            before, after = list(compared.counts), list(counts)
            if column.column in personal:
                names = ["with a value", names[-1]]
                before, after = [sum(before[:-1]), before[-1]], [sum(after[:-1]), after[-1]]
            bins = {"kind": compared.kind, "bins": names, "reference": before, "current": after}
        stored.append(asdict(column) | bins)
    return {"format": FORMAT, "as_of": as_of, "version": version, "total": len(columns), "columns": stored}


def _names(column: ReferenceColumn) -> list[str]:
    """The name of each bin; the last is that of rows without a value."""
    if column.kind == "numeric":
        edges = [number(edge) for edge in column.edges]
        if not edges:
            return ["with a value", "no value"]
        between = [f"{low}–{high}" for low, high in pairwise(edges)]
        return [f"≤ {edges[0]}", *between, f"> {edges[-1]}", "no value"]
    names = [f"group {c}" if column.hashed else html.printable(c, _NAME_LENGTH) for c in column.categories]
    return [*names, "others", "no value"]
