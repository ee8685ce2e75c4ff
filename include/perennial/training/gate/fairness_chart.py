"""The rates of groups as charts, and the verdicts on them as a table."""

from __future__ import annotations

from collections.abc import Sequence

from perennial.charts.interval_chart import Interval, IntervalChart, IntervalRow
from perennial.charts.markup import Markup, element, join, number, table, text
from perennial.training.gate.fairness import Disparity, Fairness

#: Most groups of a chart: those of the highest and the lowest rates.
MAX_GROUPS = 30
#: Of `verdict_rows`.
VERDICT_HEADS = ("groups", "metric", "gap", "value", "bound", "lowest", "highest", "")


def draw_disparity(disparity: Disparity) -> IntervalChart:
    """The rate of each group with its interval, the lowest first."""
    name = "this version"
    ordered = sorted(disparity.groups, key=lambda group: group.value)
    if len(ordered) > MAX_GROUPS:
        ordered = [*ordered[: MAX_GROUPS // 2], *ordered[-MAX_GROUPS // 2 :]]
    rows = [
        IntervalRow(g.group, {name: Interval(g.value, g.low, g.high)}, f"{g.rows:,} rows") for g in ordered
    ]
    columns = " × ".join(disparity.columns)
    return IntervalChart(f"{disparity.title.capitalize()} by {columns}", [name], rows, columns)


def figures(fairness: Fairness) -> list[Markup]:
    """The charts of the rates that can be compared."""
    return [draw_disparity(d).figure() for d in fairness.disparities if d.difference is not None]


def verdict_table(fairness: Fairness, css_class: str = "") -> Markup:
    """`verdict_rows` as a table.

    Args:
        fairness: of the challenger.
        css_class: of the table.
    """
    return table(VERDICT_HEADS, verdict_rows(fairness), css_class=css_class)


def verdict_rows(fairness: Fairness) -> list[tuple[str, ...]]:
    """A row for each bound: the gap, the bound, and the groups that are furthest apart."""
    return [
        (
            " × ".join(v.columns),
            v.metric.replace("_", " "),
            v.kind,
            number(v.value),
            f"{'at most' if v.kind == 'difference' else 'at least'} {v.bound:g}",
            v.lowest or "–",
            v.highest or "–",
            "ok" if v.met else "not comparable" if v.value is None else "exceeded",
        )
        for v in fairness.verdicts
    ]


def describe(fairness: Fairness) -> Markup:
    """What the verdicts rest on, and leave out."""
    lines = [
        f"Groups with fewer than {fairness.min_rows:,} held-out rows that count are not judged. Intervals have a "
        f"confidence of {fairness.confidence:.0%}; the value decides, not its interval.",
        *_omissions(fairness.disparities),
    ]
    return join(element("p", text(line)) for line in lines)


def _omissions(disparities: Sequence[Disparity]) -> list[str]:
    lines = []
    for d in disparities:
        parts = []
        if d.few_groups:
            parts.append(f"{d.few_groups} groups with {d.few_rows:,} rows together have too few")
        if d.other_rows:
            parts.append(f"{d.other_rows:,} rows have a value that forms no group")
        if parts:
            lines.append(f"{' × '.join(d.columns)}, {d.title}: {', '.join(parts)}.")
    return lines
