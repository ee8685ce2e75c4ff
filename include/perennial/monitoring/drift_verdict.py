"""From counts to a verdict: which columns drifted, how much of the model rests on them, and for how long already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perennial.monitoring.histograms import PREDICTION, BinCounts, ReferenceColumn, psi
from perennial.spec.model_spec import MonitoringSpec

ColumnStatus = Literal["stable", "drifted", "undetermined"]
Verdict = Literal["ok", "suspected", "drifted", "undetermined"]


@dataclass(frozen=True)
class ColumnDrift:
    """What was found about one column.

    Attributes:
        role: ``feature`` or ``prediction``.
        psi: against the reference; None where it could not be computed.
        threshold: the PSI above which the column has drifted.
        reference_nulls, current_nulls: share of rows without a value.
        rows: rows of the window.
        weight: share of the model's gain, 0 to 1; 0 for the prediction.
        effect: rise of the model's expected loss that the column's drift explains, as a share of its loss at training
            (`drift_attribution.loss_attributable_to_drift`); None where that is not known.
    """

    column: str
    role: str
    status: ColumnStatus
    reason: str
    psi: float | None
    threshold: float
    reference_nulls: float
    current_nulls: float | None
    rows: int
    weight: float
    effect: float | None = None


@dataclass(frozen=True)
class Summary:
    """All columns taken together.

    Attributes:
        suspicious: whether this window alone looks drifted; None: it cannot be told.
        drift_share: weight of drifted features, of the weight that could be judged.
        judged_share: weight that could be judged.
    """

    suspicious: bool | None
    drift_share: float | None
    judged_share: float
    reason: str


def compare_columns(
    reference: Mapping[str, ReferenceColumn],
    features: BinCounts,
    predictions: BinCounts,
    weights: Mapping[str, float],
    policy: MonitoringSpec,
) -> list[ColumnDrift]:
    """One finding a column of the reference, the heaviest first.

    Args:
        features: counts of the window's feature rows.
        predictions: counts of the champion's predictions in the window, under ``prediction``.
        weights: gain of each feature; scaled to sum to 1, all alike where there is none.
    """
    names = [c for c in reference if c != PREDICTION]
    gains = {c: max(0.0, float(weights.get(c, 0.0))) for c in names}
    total = sum(gains.values())
    found = []
    for column, shape in reference.items():
        if column == PREDICTION:
            found.append(_compare_column(column, "prediction", shape, predictions, 0.0, policy))
        else:
            weight = gains[column] / total if total > 0 else 1 / len(names)
            found.append(_compare_column(column, "feature", shape, features, weight, policy))
    return sorted(found, key=lambda f: (f.role == "feature", -f.weight, f.column))


def _compare_column(
    column: str, role: str, shape: ReferenceColumn, window: BinCounts, weight: float, policy: MonitoringSpec
) -> ColumnDrift:
    import numpy as np

    counts = window.columns.get(column)
    floor = shape.floor(window.days or policy.window_days) if policy.noise_floor else 0.0
    threshold = max(policy.psi_threshold, floor)
    nulls = counts[-1] / window.rows if counts and window.rows else None
    value: float | None = None
    status: ColumnStatus = "undetermined"
    if window.rows < policy.min_rows:
        reason = f"{window.rows} rows in the window, {policy.min_rows} are needed"
    elif counts is None or nulls is None:
        reason = "the column is not there any more"
    elif sum(shape.counts) < policy.min_rows:
        reason = f"{sum(shape.counts)} rows to compare with, {policy.min_rows} are needed"
    elif nulls - shape.nulls > policy.null_jump:
        status, reason = "drifted", f"rows without a value went from {shape.nulls:.1%} to {nulls:.1%}"
    elif shape.nulls == 1:
        reason = "empty in the reference"
    elif shape.constant:
        reason = "constant in the reference"
    elif window.rows - counts[-1] < policy.min_rows:
        reason = f"{window.rows - counts[-1]} rows with a value, {policy.min_rows} are needed"
    else:
        status, reason = "stable", ""
    if counts is not None and window.rows and sum(shape.counts):
        value = round(float(psi(np.asarray(shape.counts), np.asarray(counts))), 6)
        if status == "stable" and value > threshold:
            status, reason = "drifted", f"PSI {value:.2f} is above {threshold:.2f}"
    return ColumnDrift(
        column, role, status, reason, value, round(threshold, 6), shape.nulls, nulls, window.rows, weight
    )


def summarize(findings: Sequence[ColumnDrift], policy: MonitoringSpec) -> Summary:
    """Weigh the findings. What cannot be judged never counts as fine."""
    features = [f for f in findings if f.role == "feature"]
    judged = sum(f.weight for f in features if f.status != "undetermined")
    drifted = sorted((f for f in features if f.status == "drifted"), key=lambda f: -f.weight)
    share = sum(f.weight for f in drifted) / judged if judged > 0 else None
    prediction = next((f for f in findings if f.role == "prediction"), None)
    known = share is not None and judged >= policy.min_evaluated_share
    if prediction is not None and prediction.status == "drifted":
        return Summary(True, share, judged, f"the predictions drifted: {prediction.reason}")
    if share is None or not known:
        why = next(
            (f.reason for f in features if f.status == "undetermined"), "the model has no features on record"
        )
        return Summary(
            None,
            share,
            judged,
            f"only {judged:.0%} of the model's weight could be judged, "
            f"{policy.min_evaluated_share:.0%} is needed: {why}",
        )
    names = ", ".join(f.column for f in drifted[:5]) + (
        f" and {len(drifted) - 5} more" if len(drifted) > 5 else ""
    )
    said = f"{share:.0%} of the model's weight drifted" + (f" ({names})" if drifted else "")
    return Summary(bool(drifted) and share >= policy.drift_share, share, judged, said)


def verdict_with_persistence(
    suspicious: bool | None, earlier: Sequence[bool | None], policy: MonitoringSpec
) -> tuple[Verdict, str]:
    """The verdict, given those of the same champion before it.

    Args:
        earlier: whether each earlier window was suspicious, the latest first; None where it could not be told, which
            neither confirms nor clears, and is passed over.
    """
    if suspicious is None:
        return "undetermined", ""
    if not suspicious:
        return "ok", f"below {policy.drift_share:.0%}"
    needed, of = policy.persistence
    hits = 1 + sum(1 for e in [e for e in earlier if e is not None][: of - 1] if e)
    if hits >= needed:
        return "drifted", f"in {hits} of the last {of} verdicts, {needed} are needed"
    return "suspected", f"in {hits} of the last {of} verdicts, {needed} are needed"
