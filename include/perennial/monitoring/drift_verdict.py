"""The verdict: drifted columns, their share of the importance, persistence over windows, and what ``ok`` needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from perennial.monitoring import drift_attribution
from perennial.monitoring.histograms import PREDICTION, BinCounts, ReferenceColumn, psi
from perennial.spec.model_spec import MonitoringSpec

if TYPE_CHECKING:
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.monitoring.signals import Signal

ColumnStatus = Literal["stable", "drifted", "undetermined"]
Verdict = Literal["ok", "suspected", "drifted", "undetermined"]
#: Signals that say how well the model does. A verdict is ``ok`` only if at least one of them can be evaluated.
QUALITY_SIGNALS = ("performance", "calibration", "gain", "estimated", "attributions")


@dataclass(frozen=True)
class ColumnDrift:
    """The comparison of one column of the window with the reference.

    Attributes:
        column: its name.
        role: ``feature`` or ``prediction``.
        status: whether it drifted.
        reason: why; empty if the status is ``stable``.
        psi: PSI of window and reference; None if it could not be computed.
        threshold: PSI above which the column has drifted.
        reference_nulls: share of rows without a value in the reference, 0 to 1.
        current_nulls: share of rows without a value in the window, 0 to 1.
        rows: rows of the window.
        importance: share of the model's total gain, 0 to 1; 0 for the prediction.
        attributed_loss: rise of the expected loss that the column's drift accounts for, as a share of the loss at
            training (`drift_attribution.loss_attributable_to_drift`); None if it is not known.
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
    importance: float
    attributed_loss: float | None = None


@dataclass(frozen=True)
class Summary:
    """The drift of all columns together.

    Attributes:
        suspicious: whether this window alone counts as drifted; None if too little could be evaluated.
        drift_share: importance of the drifted features, as a share of the importance that could be evaluated.
        evaluated_share: share of the importance that could be evaluated, 0 to 1.
        reason: why, in words.
    """

    suspicious: bool | None
    drift_share: float | None
    evaluated_share: float
    reason: str


def compare_columns(
    reference: Mapping[str, ReferenceColumn],
    features: BinCounts,
    predictions: BinCounts,
    gains: Mapping[str, float],
    policy: MonitoringSpec,
) -> list[ColumnDrift]:
    """Compare each column of the reference with the window.

    Args:
        reference: the columns, with their bins and counts.
        features: counts of the window's feature rows.
        predictions: counts of the champion's predictions in the window, under ``prediction``.
        gains: total gain of each feature in the model; scaled to sum to 1, or equal shares if all are 0.
        policy: ``monitoring`` of the model.

    Returns:
        One comparison for each column: the prediction first, then the features by decreasing importance.
    """
    names = [c for c in reference if c != PREDICTION]
    positive = {c: max(0.0, float(gains.get(c, 0.0))) for c in names}
    total = sum(positive.values())
    compared = []
    for column, expected in reference.items():
        if column == PREDICTION:
            compared.append(_compare_column(column, "prediction", expected, predictions, 0.0, policy))
        else:
            importance = positive[column] / total if total > 0 else 1 / len(names)
            compared.append(_compare_column(column, "feature", expected, features, importance, policy))
    return sorted(compared, key=lambda c: (c.role == "feature", -c.importance, c.column))


def _compare_column(
    column: str,
    role: str,
    reference: ReferenceColumn,
    window: BinCounts,
    importance: float,
    policy: MonitoringSpec,
) -> ColumnDrift:
    counts = window.columns.get(column)
    noise = reference.noise_floor(window.days) if policy.noise_floor else 0.0
    threshold = max(policy.psi_threshold, noise)
    nulls = counts[-1] / window.rows if counts and window.rows else None
    status, reason = _status_without_psi(reference, window, counts, nulls, policy)
    value: float | None = None
    if counts is not None and window.rows and sum(reference.counts):
        value = round(float(psi(np.asarray(reference.counts), np.asarray(counts))), 6)
        if status == "stable" and value > threshold:
            status, reason = "drifted", f"PSI {value:.2f} is above {threshold:.2f}"
    return ColumnDrift(
        column,
        role,
        status,
        reason,
        value,
        round(threshold, 6),
        reference.null_share,
        nulls,
        window.rows,
        importance,
    )


def _status_without_psi(
    reference: ReferenceColumn,
    window: BinCounts,
    counts: Sequence[int] | None,
    nulls: float | None,
    policy: MonitoringSpec,
) -> tuple[ColumnStatus, str]:
    """Status and reason of a column apart from its PSI; ``stable`` if the PSI decides."""
    needed = policy.min_rows
    if window.rows < needed:
        return "undetermined", f"{window.rows} rows in the window, {needed} are needed"
    if counts is None or nulls is None:
        return "undetermined", "the window does not have this column"
    if sum(reference.counts) < needed:
        return "undetermined", f"{sum(reference.counts)} rows to compare with, {needed} are needed"
    if nulls - reference.null_share > policy.null_jump:
        return "drifted", f"rows without a value went from {reference.null_share:.1%} to {nulls:.1%}"
    if reference.null_share == 1:
        return "undetermined", "empty in the reference"
    if reference.personal:
        return "undetermined", "personal data: only missing values are compared"
    if reference.is_constant:
        return "undetermined", "constant in the reference"
    if window.rows - counts[-1] < needed:
        return "undetermined", f"{window.rows - counts[-1]} rows with a value, {needed} are needed"
    return "stable", ""


def with_attributed_loss(
    column: ColumnDrift,
    reference: Mapping[str, ReferenceColumn],
    window: BinCounts,
    baseline: MonitoringBaseline,
) -> ColumnDrift:
    """Add the rise of the expected loss that a column's drift accounts for, if it is known."""
    counts = window.columns.get(column.column)
    expected_losses = baseline.expected_loss_by_bin.get(column.column)
    if not counts or not expected_losses or not baseline.loss:
        return column
    rise = drift_attribution.loss_attributable_to_drift(
        reference[column.column].counts, counts, expected_losses
    )
    return column if rise is None else replace(column, attributed_loss=round(rise / baseline.loss, 6))


def summarize(columns: Sequence[ColumnDrift], policy: MonitoringSpec) -> Summary:
    """Summarise the drift of all columns, weighted by importance.

    Columns that cannot be evaluated do not count as stable.

    Args:
        columns: as `compare_columns` returns them.
        policy: ``monitoring`` of the model.
    """
    features = [c for c in columns if c.role == "feature"]
    evaluated = sum(f.importance for f in features if f.status != "undetermined")
    drifted = sorted((f for f in features if f.status == "drifted"), key=lambda f: -f.importance)
    share = sum(f.importance for f in drifted) / evaluated if evaluated > 0 else None
    prediction = next((c for c in columns if c.role == "prediction"), None)
    if prediction is not None and prediction.status == "drifted":
        return Summary(True, share, evaluated, f"the predictions drifted: {prediction.reason}")
    if share is None or evaluated < policy.min_evaluated_share:
        reason = next(
            (f.reason for f in features if f.status == "undetermined"), "no feature importance is recorded"
        )
        return Summary(
            None,
            share,
            evaluated,
            f"only {evaluated:.0%} of the feature importance could be evaluated, "
            f"{policy.min_evaluated_share:.0%} is needed: {reason}",
        )
    names = ", ".join(f.column for f in drifted[:5])
    names += f" and {len(drifted) - 5} more" if len(drifted) > 5 else ""
    reason = f"{share:.0%} of the feature importance drifted" + (f" ({names})" if drifted else "")
    return Summary(bool(drifted) and share >= policy.drift_share, share, evaluated, reason)


def verdict_with_persistence(
    suspicious: bool | None, previous: Sequence[bool | None], policy: MonitoringSpec
) -> tuple[Verdict, str]:
    """The verdict on a window: drift must persist in n of the last m windows.

    Args:
        suspicious: whether the window alone counts as drifted; None if that is undetermined.
        previous: the same for each earlier window of the same champion, latest first; undetermined ones (None) are
            skipped.
        policy: ``monitoring`` of the model.

    Returns:
        The verdict, and what to add to the reason.
    """
    if suspicious is None:
        return "undetermined", ""
    if not suspicious:
        return "ok", f"below {policy.drift_share:.0%}"
    needed, window_count = policy.persistence
    determined = [p for p in previous if p is not None]
    hits = 1 + sum(determined[: window_count - 1])
    verdict: Verdict = "drifted" if hits >= needed else "suspected"
    return verdict, f"in {hits} of the last {window_count} verdicts, {needed} are needed"


def reason_not_ok(signals: Mapping[str, Signal]) -> str:
    """Why the verdict on a window cannot be ``ok`` even if nothing drifted; empty if it can.

    Columns that did not drift say nothing about partitions that are missing, nor about how well the model does.

    Args:
        signals: the signals that come from rows, by name.
    """
    freshness = signals["freshness"]
    if freshness.state != "ok":
        return f"freshness is {freshness.state}: {freshness.reason}"
    quality = {name: signals[name] for name in QUALITY_SIGNALS if name in signals}
    if any(signal.state != "undetermined" for signal in quality.values()):
        return ""
    reasons = dict.fromkeys(signal.reason for signal in quality.values())
    return (
        f"nothing says how well the model does: {', '.join(quality)} are undetermined ({'; '.join(reasons)})"
    )
