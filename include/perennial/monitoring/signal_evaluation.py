"""Evaluate all signals of a champion for the partitions up to one date."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from perennial.core.durations import Duration
from perennial.core.errors import DataError
from perennial.core.partitions import DAILY, Cadence, days_between, nominal_start
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.monitoring import retraining_gain, signals
from perennial.monitoring.drift_verdict import ColumnDrift, Verdict
from perennial.monitoring.partition_sample import MIN_ROWS, PartitionSample, sample_partitions
from perennial.monitoring.signals import Signal
from perennial.monitoring.train_serve_skew import skew_signal
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, SignalState, metric_in_words
from perennial.storage import delta_tables, manifests

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.spec.model_spec import ModelSpec

#: Latest partitions that signals of single partitions cover, since verdicts may be weekly.
RECENT = Duration(1, "week")
#: Share of a partition's labels that may have a class unseen at training before the signal ``labels`` is bad.
MAX_UNSEEN_CLASS_SHARE = 0.01
#: Signals that need labels.
LABEL_SIGNALS = ("performance", "calibration", "gain", "slices")
#: Quantity of each series, for the reason of its signal; ``{metric}`` is the gate's metric in words.
_UNITS = {
    "performance": "{metric} above what the model expects",
    "calibration": "label minus prediction",
    "gain": "{metric} that a correction from recent labels saves",
    "estimated": "{metric} that the model expects",
    "attributions": "share of the feature attributions that moved to other columns",
}
#: Kinds of series that are combined to one signal, that of the worst series: name of the signal, and quantity.
_GROUPED = {
    "slice": ("slices", "{metric} above what the model expects"),
    "fairness": ("fairness", "distance between the groups' mean predictions"),
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
    holdout, cadence = champion.holdout_range, spec.cadence
    first = max(start, cadence.shift(holdout.end, 1))
    rows = _row_counts(spec, champion.trained_range.start, as_of)
    evaluated = {
        "volume": volume_signal(rows, holdout.end, as_of, spec.monitoring.volume_factor, cadence),
        "freshness": freshness_signal(_with_empty(spec, rows), as_of, cadence),
    }
    try:
        # The retraining gain also fits its corrections to earlier partitions: the held-out ones, which only a
        # champion's refit has learned.
        sample = sample_partitions(
            spec,
            model,
            FeatureQuery(registry.load_spec(champion)),
            max(holdout.start, cadence.shift(first, -retraining_gain.LOOKBACK_PARTITIONS)),
            as_of,
            labels_until=labels_until,
            columns=[*spec.monitoring.slices, *spec.monitoring.fairness],
        )
    except DataError as error:
        unknown = Signal("undetermined", error.cause)
        return evaluated | dict.fromkeys((*_UNITS, "labels", "nulls", "skew"), unknown)
    skip = sum(d < first for d in sample.dates)
    evaluated |= _series_signals(spec, model, baseline, sample, skip)
    evaluated["labels"] = label_signal(sample, baseline, labels_until, spec.data.quarantine_limit)
    if sample.impossible_labels is not None:
        # Metrics of the other labels would hide these, which the data step did not know, or did not stop.
        unknown = Signal("undetermined", evaluated["labels"].reason)
        evaluated |= {name: unknown for name in LABEL_SIGNALS if name in evaluated}
    recent = sample.select(
        sample.partition_index >= max(skip, len(sample.dates) - RECENT.partitions(cadence))
    )
    evaluated |= _column_signals(spec, model, baseline, recent)
    recent_start = max(start, cadence.shift(as_of, 1 - RECENT.partitions(cadence)))
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
        unit = (_GROUPED[kind][1] if group else _UNITS[kind]).format(metric=metric_in_words(spec.metric))
        unit = f"{group}: {unit}" if group else unit
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
    recent = sample.select(sample.partition_index >= skip)
    for name, columns in (("slices", spec.monitoring.slices), ("fairness", spec.monitoring.fairness)):
        if name in evaluated:
            evaluated[name] = with_group_coverage(
                evaluated[name], recent, columns, baseline.groups, spec.monitoring.min_evaluated_share
            )
        unknown = [c for c in columns if not baseline.groups.get(c)]
        if unknown and (name not in evaluated or evaluated[name].state in ("ok", "undetermined")):
            why = "at training none of its values had enough held-out rows, or it was not in the spec yet"
            evaluated[name] = Signal("undetermined", f"{', '.join(unknown)}: {why}")
    return evaluated


def with_group_coverage(
    signal: Signal,
    recent: PartitionSample,
    columns: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    min_share: float,
) -> Signal:
    """Say what share of the rows has a value that is compared; undetermined if that share is too small.

    Values that were rare at training, or are new, have no baseline.
    """
    shares = {
        c: float(np.isin(recent.groupings[c], groups[c]).mean())
        for c in columns
        if groups.get(c) and len(recent.groupings[c])
    }
    if not shares:
        return signal
    texts = [f"{c}: {shares[c]:.1%} of the rows have one of the {len(groups[c])} values" for c in shares]
    reason = f"{signal.reason}; compared: {', '.join(texts)}"
    too_few = min(shares.values()) < min_share and signal.state == "ok"
    if too_few:
        reason += f"; {min_share:.0%} is needed: train again"
    return replace(signal, state="undetermined" if too_few else signal.state, reason=reason)


def _worst_signal(of_kind: Sequence[Signal]) -> Signal:
    order: list[SignalState] = ["undetermined", "ok", "suspected", "bad"]
    return max(of_kind, key=lambda s: (order.index(s.state), s.level or 0.0))


def _row_counts(spec: ModelSpec, start: str, end: str) -> dict[str, int]:
    """Published rows of each partition, by date."""
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name))
    return {day: n for day, n in rows.items() if start <= day <= end}


def new_row_share(spec: ModelSpec, champion: registry.ModelVersion, as_of: str) -> float:
    """Rows published after the champion's held-out partitions, as a share of those that it was fitted to."""
    learned = champion.refit_range or champion.trained_range
    rows = _row_counts(spec, learned.start, as_of)
    fitted = sum(n for day, n in rows.items() if day <= learned.end)
    new = sum(n for day, n in rows.items() if day > champion.holdout_range.end)
    return round(new / max(fitted, 1), 6)


def volume_signal(
    rows: Mapping[str, int], baseline_end: str, as_of: str, factor: float, cadence: Cadence = DAILY
) -> Signal:
    """Whether a recent partition is much larger or smaller than all partitions of the baseline.

    The logarithms of the row counts are compared, relative to the median of the same weekday, and for hours
    of the same hour.

    Args:
        rows: rows of each partition, by date, including those of the baseline.
        baseline_end: last partition date of the baseline.
        as_of: last partition date to evaluate.
        factor: factor beyond the extremes of the baseline that is bad.
        cadence: of the partitions.
    """
    usual = {d: n for d, n in rows.items() if d <= baseline_end}
    if len(usual) < MIN_BASELINE_PARTITIONS:
        return Signal(
            "undetermined", f"{len(usual)} partitions to compare with, {MIN_BASELINE_PARTITIONS} are needed"
        )
    after = max(baseline_end, cadence.shift(as_of, -RECENT.partitions(cadence)))
    recent = {d: n for d, n in rows.items() if after < d <= as_of}
    if not recent:
        return Signal("undetermined", "no recent partition was published")
    usual_row_count = _usual_row_count(usual, cadence)
    spread = max(abs(math.log(max(n, 1) / usual_row_count(d))) for d, n in usual.items())
    limit = spread + math.log(factor)
    ratios = {d: math.log(max(n, 1) / usual_row_count(d)) for d, n in recent.items()}
    worst = max(ratios, key=lambda d: abs(ratios[d]))
    times = math.exp(abs(ratios[worst]))
    direction = "more" if ratios[worst] > 0 else "fewer"
    reason = (
        f"{worst} has {recent[worst]:,} rows, {times:.3g} times {direction} than usual; "
        f"the limit is {math.exp(limit):.3g} times"
    )
    state: SignalState = "bad" if abs(ratios[worst]) > limit else "ok"
    return Signal(state, reason, times, math.exp(limit), worst)


def _usual_row_count(rows: Mapping[str, int], cadence: Cadence) -> Callable[[str], float]:
    """The median row count of a partition's season, or of all partitions if that has fewer than two."""
    of_season: dict[tuple[int, ...], list[int]] = {}
    for key, count in rows.items():
        for season in _seasons(key, cadence):
            of_season.setdefault(season, []).append(count)
    medians = {season: max(1.0, median(counts)) for season, counts in of_season.items() if len(counts) >= 2}
    of_all = max(1.0, median(rows.values()))
    return lambda key: next((medians[s] for s in _seasons(key, cadence) if s in medians), of_all)


def _seasons(key: str, cadence: Cadence) -> list[tuple[int, ...]]:
    """What partitions with similar row counts have in common, the closest first: hour of the week, hour, weekday."""
    start = nominal_start(key)
    if cadence.unit == "hour":
        return [(start.weekday(), start.hour), (start.hour,)]
    return [(start.weekday(),)] if cadence.unit == "day" else []


def _with_empty(spec: ModelSpec, rows: Mapping[str, int]) -> Mapping[str, int]:
    """The rows by partition, in which those that were published without rows count as there, if that is normal."""
    if spec.data.arrival != "optional":
        return rows
    return dict.fromkeys(manifests.finished(spec.name, "data"), 1) | dict(rows)


def freshness_signal(rows: Mapping[str, int], as_of: str, cadence: Cadence = DAILY) -> Signal:
    """Whether every recent partition was published; a weekday, or hour of it, that never had one is not expected.

    Args:
        rows: rows of each partition, by date.
        as_of: last partition date to evaluate.
        cadence: of the partitions.
    """
    first, last = min(rows, default=""), max(rows, default="")
    start = cadence.shift(as_of, 1 - RECENT.partitions(cadence))
    # until every hour of the week has occurred twice, hours are compared whatever their weekday
    whole_weeks = not rows or days_between(first, last) >= 14

    def seasons(day: str) -> list[tuple[int, ...]]:
        return _seasons(day, cadence)[:1] if whole_weeks else _seasons(day, cadence)[-1:]

    usual = {season for day in rows for season in seasons(day)}
    recent = [d for d in cadence.keys(start, as_of) if d >= first and usual.issuperset(seasons(d))]
    missing = [d for d in recent if not rows.get(d)]
    if not rows or not recent:
        return Signal("undetermined", "no partition was published in this window")
    if missing:
        return Signal("bad", f"no rows for {', '.join(missing)}", float(len(missing)), 0.0, missing[0])
    return Signal("ok", f"all of the {len(recent)} latest partitions were published", 0.0, 0.0)


def backlog_signal(overdue: Mapping[str, Sequence[str]]) -> Signal:
    """Whether anything is due and not done.

    Args:
        overdue: partition dates that are due and not done, in order, by what was to be done with them.
    """
    late = {stage: days for stage, days in overdue.items() if days}
    if not late:
        return Signal("ok", "nothing that is due is undone", 0.0, 0.0)
    parts = [f"{len(days)} not {stage}, the first {days[0]}" for stage, days in late.items()]
    count = sum(map(len, late.values()))
    # The next scheduled run does what came after the latest one. A verdict that is missing harms no prediction: the
    # model is as it is, it was only not looked at.
    harmful = sum(len(days) for stage, days in late.items() if stage != "monitored")
    state: SignalState = "bad" if harmful > 1 else "suspected"
    reason = f"partitions that are due: {'; '.join(parts)}. `perennial missing` lists them"
    return Signal(state, reason, float(count), 0.0, min(days[0] for days in late.values()))


def label_signal(
    sample: PartitionSample, baseline: MonitoringBaseline, labels_until: str, allowance: float
) -> Signal:
    """Whether the labels that are due have arrived, belong to published rows, and can be used to judge the champion.

    Args:
        sample: rows of the partitions.
        baseline: monitoring baseline of the champion.
        labels_until: last partition date whose labels are due.
        allowance: harmless rise of the share of rows without a label, and of labels without a row.
    """
    unlabelled = signals.unlabelled_shares(sample)
    due = [i for i, d in enumerate(sample.dates) if d <= labels_until and np.isfinite(unlabelled[i])]
    if not due:
        return Signal("undetermined", "no labels are due yet")
    if (impossible := sample.impossible_labels) is not None:
        count, first = int(impossible.sum()), sample.dates[int(sample.partition_index[impossible][0])]
        labels = count + int(np.isfinite(sample.y).sum())
        reason = (
            f"{count:,} of {labels:,} sampled labels cannot be labels of this task, the first on {first}: run the data "
            "step with force for the date with which they arrived; it puts such labels into quarantine"
        )
        return Signal("bad", reason, float(count), 0.0, first)
    findings = [_missing_labels(sample, baseline, due, allowance), _unseen_classes(sample, due)]
    order: list[SignalState] = ["ok", "suspected", "bad"]
    worst = max(findings, key=lambda signal: order.index(signal.state))
    return replace(worst, reason="; ".join(s.reason for s in findings if s.reason))


def _missing_labels(
    sample: PartitionSample, baseline: MonitoringBaseline, due: Sequence[int], allowance: float
) -> Signal:
    """Whether rows have no label, or labels no row, of the partitions with the indices ``due``."""
    unlabelled = signals.unlabelled_shares(sample)
    missing = [sample.dates[i] for i in due if unlabelled[i] == 1]
    unmatched = (
        np.full(len(sample.dates), np.nan) if sample.unmatched_labels is None else sample.unmatched_labels
    )
    for shares, of, usual, unit in (
        (unmatched, due, baseline.max_unmatched_share, "of the labels belong to no published row"),
        (unlabelled, [i for i in due if unlabelled[i] < 1], baseline.max_unlabelled_share, "of the rows have no label"),
    ):  # fmt: skip
        worst = max((i for i in of if np.isfinite(shares[i])), key=lambda i: shares[i], default=None)
        if worst is not None and usual is not None and shares[worst] > usual + allowance:
            share, limit, day = float(shares[worst]), usual + allowance, sample.dates[worst]
            reason = f"{share:.1%} {unit} on {day}, the limit is {limit:.1%}: compare the keys of both feeds"
            return Signal("bad", reason, share, limit, day)
    if not missing:
        in_due = np.isin(sample.partition_index, due)
        rows, labelled = int(in_due.sum()), int((in_due & np.isfinite(sample.y)).sum())
        arrived = f"labels arrived for {labelled:,} of {rows:,} sampled rows of {len(due)} partitions"
        return Signal("ok", arrived, 0.0, 0.0)
    reason = (
        f"no labels for {len(missing)} of {len(due)} partitions where they are due, the first {missing[0]}"
    )
    return Signal("bad" if len(missing) > 1 else "suspected", reason, float(len(missing)), 0.0, missing[0])


def _unseen_classes(sample: PartitionSample, due: Sequence[int]) -> Signal:
    """Multiclass: labels of a class that the champion was not trained on; they count as wrong in every metric."""
    labelled = sample.labelled
    unseen = labelled.partition_means((labelled.y < 0).astype(float), 1)
    affected = [i for i in due if unseen[i] > 0]
    if labelled.predicted.ndim == 1 or not affected:
        return Signal("ok", "")
    count = int(np.isin(labelled.partition_index[labelled.y < 0], due).sum())
    worst = max(affected, key=lambda i: float(unseen[i]))
    reason = (
        f"{count:,} of {len(labelled.y):,} sampled labels have a class unseen at training, and count as wrong: "
        f"{unseen[worst]:.1%} on {sample.dates[worst]}, the limit is {MAX_UNSEEN_CLASS_SHARE:.0%}"
    )
    state: SignalState = "bad" if unseen[worst] > MAX_UNSEEN_CLASS_SHARE else "suspected"
    return Signal(state, reason, float(unseen[worst]), MAX_UNSEEN_CLASS_SHARE, sample.dates[affected[0]])


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
    evaluated = int(np.any([np.isfinite(values) for values in shares.values()], axis=0).sum())
    signal = partial(Signal, evaluated=evaluated, partitions=len(dates))
    if not rises:
        return signal("undetermined", f"no recent partition has {MIN_ROWS} rows")
    column = max(rises, key=lambda c: float(np.nanmax(rises[c])))
    position = int(np.nanargmax(rises[column]))
    share, limit = float(shares[column][position]), usual.get(column, 0.0) + allowance
    reason = f"{column}: {share:.1%} {unit} on {dates[position]}, the limit is {limit:.1%}"
    if share > limit:
        return signal("bad", reason, share, limit, dates[position])
    return signal("ok", reason, share, limit)
