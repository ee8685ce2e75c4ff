"""Evaluate all signals of a champion for the partitions up to one date."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.monitoring import retraining_gain, signals
from perennial.monitoring._train_serve_skew import skew_signal
from perennial.monitoring.drift_verdict import ColumnDrift, Verdict
from perennial.monitoring.partition_sample import MIN_ROWS, PartitionSample, sample_partitions
from perennial.monitoring.signals import Signal
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, SignalState
from perennial.storage import delta_tables

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.spec.model_spec import ModelSpec

#: Latest days that signals of single partitions cover, since verdicts may be weekly.
RECENT_DAYS = 7
#: Quantity of each series, for the reason of its signal.
_UNITS = {
    "performance": "loss beyond the expected loss",
    "calibration": "mean of label minus prediction",
    "gain": "loss saved by a correction from recent labels",
    "estimated": "expected loss",
    "attributions": "share of the attributions that moved to other columns",
}
#: Kinds of series that are combined to one signal, that of the worst series: name of the signal, and quantity.
_GROUPED = {
    "slice": ("slices", "loss beyond the expected loss"),
    "fairness": ("fairness", "distance between groups"),
}


def evaluate_signals(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    model: TrainedModel,
    baseline: MonitoringBaseline,
    start: str,
    as_of: str,
    labels_until: str,
) -> dict[str, Signal]:
    """Evaluate every signal that comes from rows.

    Args:
        spec: the model.
        champion: version of the champion.
        model: the champion.
        baseline: monitoring baseline of the champion.
        start: first partition date of the window.
        as_of: last partition date of the window.
        labels_until: last partition date whose labels are due.

    Returns:
        The signals by name.
    """
    holdout = champion.holdout_range
    first = max(start, dates.add_days(holdout.end, 1))
    rows = _row_counts(spec, champion.trained_range.start, as_of)
    evaluated = {
        "volume": volume_signal(rows, holdout.end, as_of, spec.monitoring.volume_factor),
        "freshness": freshness_signal(rows, as_of),
    }
    try:
        # The retraining gain also needs partitions before the window, but none that the champion was fitted to.
        sample = sample_partitions(
            spec,
            model,
            FeatureQuery(registry.load_spec(champion)),
            max(holdout.start, dates.add_days(first, -retraining_gain.LOOKBACK_PARTITIONS)),
            as_of,
            labels_until=labels_until,
            columns=[*spec.monitoring.slices, *spec.monitoring.fairness],
        )
    except DataError as error:
        unknown = Signal("undetermined", error.cause)
        return evaluated | dict.fromkeys((*_UNITS, "labels", "nulls", "skew"), unknown)
    skip = sum(d < first for d in sample.dates)
    evaluated |= _series_signals(spec, model, baseline, sample, skip)
    evaluated["labels"] = _label_signal(sample, labels_until)
    recent = sample.select(sample.partition_index >= max(skip, len(sample.dates) - RECENT_DAYS))
    evaluated |= _column_signals(spec, model, baseline, recent)
    recent_start = max(start, dates.add_days(as_of, 1 - RECENT_DAYS))
    evaluated["skew"] = skew_signal(spec, champion, model, recent_start, as_of)
    return evaluated


def drift_signals(
    verdict: Verdict, reason: str, columns: Sequence[ColumnDrift], harmless: bool
) -> dict[str, Signal]:
    """Convert the drift of all features together, and of the predictions, to signals.

    Args:
        verdict: verdict on drift.
        reason: reason of the verdict.
        columns: the compared columns.
        harmless: whether the drift does not harm the model; it is then at most suspected, because seasonal changes
            must not raise alarms.
    """
    drifted: SignalState = "suspected" if harmless else "bad"
    reason += "; no harm to the model is detected" if harmless else ""
    states: dict[str, SignalState] = {
        "drifted": drifted,
        "stable": "ok",
        "ok": "ok",
        "suspected": "suspected",
        "undetermined": "undetermined",
    }
    evaluated = {"features": Signal(states[verdict], reason)}
    for column in columns:
        if column.role == "prediction":
            text = column.reason or f"PSI {column.psi:.3g}, the threshold is {column.threshold:.3g}"
            evaluated["prediction"] = Signal(states[column.status], text, column.psi, column.threshold)
    return evaluated


def _series_signals(
    spec: ModelSpec, model: TrainedModel, baseline: MonitoringBaseline, sample: PartitionSample, skip: int
) -> dict[str, Signal]:
    """Evaluate the signals that are series; the worst slice, and the worst group, become one signal each.

    Args:
        skip: number of the sample's first partitions that are before the window.
    """
    series = signals.monitored_series(
        spec,
        model,
        sample,
        baseline.loss_estimator,
        signals.attribution_means(model, sample, skip),
        baseline.attribution_shares,
        baseline.groups,
        skip,
    )
    evaluated: dict[str, Signal] = {}
    grouped: dict[str, list[Signal]] = {}
    for name, values in series.items():
        kind, _, group = name.partition(":")
        unit = f"{group}: {_GROUPED[kind][1]}" if group else _UNITS[kind]
        signal = signals.signal_from_series(
            values[skip:], sample.dates[skip:], baseline.series.get(name), unit
        )
        if group:
            grouped.setdefault(_GROUPED[kind][0], []).append(signal)
        else:
            evaluated[name] = signal
    if (gain := evaluated.get("gain")) and gain.value is not None:
        # As a share of the loss, like min_gain of the policy.
        evaluated["gain"] = replace(gain, value=gain.value / max(baseline.loss, 1e-12))
    evaluated |= {name: _worst_signal(of_kind) for name, of_kind in grouped.items()}
    for name, columns in (("slices", spec.monitoring.slices), ("fairness", spec.monitoring.fairness)):
        unknown = [c for c in columns if not baseline.groups.get(c)]
        if unknown and (name not in evaluated or evaluated[name].state in ("ok", "undetermined")):
            why = "at training none of its values had enough held-out rows, or it was not in the spec yet"
            evaluated[name] = Signal("undetermined", f"{', '.join(unknown)}: {why}")
    return evaluated


def _worst_signal(of_kind: Sequence[Signal]) -> Signal:
    order: list[SignalState] = ["undetermined", "ok", "suspected", "bad"]
    return max(of_kind, key=lambda s: (order.index(s.state), s.level or 0.0))


def _row_counts(spec: ModelSpec, start: str, end: str) -> dict[str, int]:
    """Published rows of each partition, by date."""
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name))
    return {day: n for day, n in rows.items() if start <= day <= end}


def new_row_share(spec: ModelSpec, champion: registry.ModelVersion, as_of: str) -> float:
    """Rows published after the champion's held-out partitions, as a share of those that it was fitted to."""
    rows = _row_counts(spec, champion.trained_range.start, as_of)
    fitted = sum(n for day, n in rows.items() if day <= champion.trained_range.end)
    new = sum(n for day, n in rows.items() if day > champion.holdout_range.end)
    return round(new / max(fitted, 1), 6)


def volume_signal(rows: Mapping[str, int], baseline_end: str, as_of: str, factor: float) -> Signal:
    """Whether a recent partition is much larger or smaller than all partitions of the baseline.

    The logarithms of the row counts are compared, relative to the median of the same weekday.

    Args:
        rows: rows of each partition, by date, including those of the baseline.
        baseline_end: last partition date of the baseline.
        as_of: last partition date to evaluate.
        factor: factor beyond the extremes of the baseline that is bad.
    """
    usual = {d: n for d, n in rows.items() if d <= baseline_end}
    if len(usual) < MIN_BASELINE_PARTITIONS:
        return Signal(
            "undetermined", f"{len(usual)} partitions to compare with, {MIN_BASELINE_PARTITIONS} are needed"
        )
    after = max(baseline_end, dates.add_days(as_of, -RECENT_DAYS))
    recent = {d: n for d, n in rows.items() if after < d <= as_of}
    if not recent:
        return Signal("undetermined", "no recent partition was published")
    spread = max(abs(math.log(max(n, 1) / _usual_row_count(usual, d))) for d, n in usual.items())
    limit = spread + math.log(factor)
    ratios = {d: math.log(max(n, 1) / _usual_row_count(usual, d)) for d, n in recent.items()}
    worst = max(ratios, key=lambda d: abs(ratios[d]))
    times = math.exp(abs(ratios[worst]))
    direction = "more" if ratios[worst] > 0 else "fewer"
    reason = (
        f"{worst} has {recent[worst]:,} rows, {times:.3g} times {direction} than usual; "
        f"the limit is {math.exp(limit):.3g} times"
    )
    state: SignalState = "bad" if abs(ratios[worst]) > limit else "ok"
    return Signal(state, reason, times, math.exp(limit), worst)


def _usual_row_count(rows: Mapping[str, int], day: str) -> float:
    """Median row count of the same weekday, or of all partitions if that has fewer than two."""
    weekday = date.fromisoformat(day).weekday()
    same_weekday = [n for d, n in rows.items() if date.fromisoformat(d).weekday() == weekday]
    return max(1.0, median(same_weekday if len(same_weekday) >= 2 else rows.values()))


def freshness_signal(rows: Mapping[str, int], as_of: str) -> Signal:
    """Whether every recent partition was published; a weekday that never had one is not expected.

    Args:
        rows: rows of each partition, by date.
        as_of: last partition date to evaluate.
    """
    first = min(rows, default="")
    recent = [d for d in dates.dates(dates.add_days(as_of, 1 - RECENT_DAYS), as_of) if d >= first]
    weekdays = {date.fromisoformat(d).weekday() for d in rows}
    missing = [d for d in recent if not rows.get(d) and date.fromisoformat(d).weekday() in weekdays]
    if not rows or not recent:
        return Signal("undetermined", "no partition was published in this window")
    if missing:
        return Signal("bad", f"no rows for {', '.join(missing)}", float(len(missing)), 0.0, missing[0])
    return Signal("ok", f"all of the {len(recent)} latest partitions were published", 0.0, 0.0)


def _label_signal(sample: PartitionSample, labels_until: str) -> Signal:
    """Whether the labels that are due have arrived."""
    due = [i for i, d in enumerate(sample.dates) if d <= labels_until and (sample.partition_index == i).any()]
    if not due:
        return Signal("undetermined", "no labels are due yet")
    labelled_share = sample.partition_means(np.isfinite(sample.y).astype(float), 1)
    missing = [sample.dates[i] for i in due if labelled_share[i] == 0]
    if not missing:
        return Signal("ok", f"labels arrived for all of {len(due)} partitions", 0.0, 0.0)
    reason = (
        f"no labels for {len(missing)} of {len(due)} partitions where they are due, the first {missing[0]}"
    )
    return Signal("bad" if len(missing) > 1 else "suspected", reason, float(len(missing)), 0.0, missing[0])


def _column_signals(
    spec: ModelSpec, model: TrainedModel, baseline: MonitoringBaseline, recent: PartitionSample
) -> dict[str, Signal]:
    """Nulls and unseen categories of single partitions, against the highest share of the baseline."""
    if not baseline.max_null_shares:
        unknown = Signal("undetermined", "the champion has no monitoring baseline: train again")
        return {"nulls": unknown, "categories": unknown}
    nulls, unseen = signals.null_and_unseen_shares(model, recent)
    policy = spec.monitoring
    evaluated = {
        "nulls": _share_signal(nulls, baseline.max_null_shares, policy.null_jump, recent.dates, "nulls")
    }
    if unseen:
        evaluated["categories"] = _share_signal(
            unseen,
            baseline.max_unseen_shares,
            policy.new_categories,
            recent.dates,
            "categories unseen at training",
        )
    return evaluated


def _share_signal(
    shares: Mapping[str, np.ndarray],
    usual: Mapping[str, float],
    allowance: float,
    dates: Sequence[str],
    unit: str,
) -> Signal:
    """The signal of the column and partition whose share rose most above the baseline.

    Args:
        shares: by column, shape (partitions,); NaN if a partition has too few rows.
        usual: highest share in the baseline, by column.
        allowance: harmless rise.
        dates: dates of the partitions.
        unit: quantity, for the reason.
    """
    rises = {c: values - usual.get(c, 0.0) for c, values in shares.items() if np.isfinite(values).any()}
    if not rises:
        return Signal("undetermined", f"no recent partition has {MIN_ROWS} rows")
    column = max(rises, key=lambda c: float(np.nanmax(rises[c])))
    position = int(np.nanargmax(rises[column]))
    share, limit = float(shares[column][position]), usual.get(column, 0.0) + allowance
    reason = f"{column}: {share:.1%} {unit} on {dates[position]}, the limit is {limit:.1%}"
    if share > limit:
        return Signal("bad", reason, share, limit, dates[position])
    return Signal("ok", reason, share, limit)
