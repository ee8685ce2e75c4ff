"""All signals of a champion on the nights up to one date: what is followed, and what no quiet night came near."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from statistics import median
from typing import TYPE_CHECKING

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.monitoring import retraining_gain, signals
from perennial.monitoring._train_serve_skew import skew_signal
from perennial.monitoring.nightly_sample import MIN_ROWS, NightlySample, sample_nights
from perennial.monitoring.signals import Signal
from perennial.spec.constraints import MIN_BASELINE_NIGHTS, SignalState
from perennial.storage import delta_tables

if TYPE_CHECKING:
    import numpy as np

    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.spec.model_spec import ModelSpec

#: Nights that the bounds on single nights look at, the latest first: those since a weekly verdict.
RECENT_DAYS = 7
_UNITS = {
    "performance": "loss beyond the expected one",
    "calibration": "what happened less what was said",
    "gain": "loss that a correction by recent labels saves",
    "estimated": "expected loss",
    "attributions": "share of the attributions that moved to other columns",
}


def evaluate_signals(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    model: TrainedModel,
    watched: MonitoringBaseline,
    start: str,
    as_of: str,
    labels_until: str,
) -> dict[str, Signal]:
    """Every signal that comes from rows, by name.

    Args:
        watched: what the champion left to be compared with.
        start, as_of: first and last date of the window. labels_until: last date whose labels count.
    """
    trained = registry.spec(champion)
    quiet_from, quiet_to = champion.tags["judged_on"].split("..")
    first = max(start, dates.add_days(quiet_to, 1))
    rows = _row_counts(spec, champion.tags["trained_on"].split("..")[0], as_of)
    found = {
        "volume": volume_signal(rows, quiet_to, as_of, spec.monitoring.volume_factor),
        "freshness": freshness_signal(rows, as_of),
    }
    try:
        # A correction learns from earlier nights, but from none that the champion itself has learned from.
        seen = sample_nights(
            spec,
            model,
            FeatureQuery(trained),
            max(quiet_from, dates.add_days(first, -retraining_gain.LOOKBACK_NIGHTS)),
            as_of,
            labels_until=labels_until,
            columns=[*spec.monitoring.slices, *spec.monitoring.fairness],
        )
    except DataError as error:
        unknown = Signal("undetermined", error.cause)
        return found | dict.fromkeys((*_UNITS, "labels", "nulls", "skew"), unknown)
    skip = sum(d < first for d in seen.dates)
    found |= _series_signals(spec, model, watched, seen, skip)
    found["labels"] = _label_signal(seen, labels_until)
    recent = seen.where(seen.night >= max(skip, len(seen.dates) - RECENT_DAYS))
    found |= _column_signals(spec, model, watched, recent)
    found["skew"] = skew_signal(
        spec, champion, model, max(start, dates.add_days(as_of, 1 - RECENT_DAYS)), as_of
    )
    return found


def _series_signals(
    spec: ModelSpec, model: TrainedModel, watched: MonitoringBaseline, seen: NightlySample, skip: int
) -> dict[str, Signal]:
    """The numbers that are followed; slices and groups as one signal each, that of the worst."""
    attributed = signals.attributions(model, seen, skip)
    series = signals.nightly_series(
        spec, model, seen, watched.expected, attributed, watched.shares, watched.groups, skip
    )
    dates = seen.dates[skip:]
    found: dict[str, Signal] = {}
    parts: dict[str, list[tuple[str, Signal]]] = {}
    for name, values in series.items():
        kind, _, what = name.partition(":")
        quiet = watched.baselines.get(name)
        unit = _UNITS.get(
            kind, f"{what}: loss beyond the expected one" if kind == "slice" else f"{what}: distance"
        )
        answer = signals.signal_from_series(values[skip:], dates, quiet, unit)
        if what:
            parts.setdefault({"slice": "slices"}.get(kind, kind), []).append((what, answer))
        else:
            found[name] = answer
    if (gain := found.get("gain")) and gain.value is not None:  # as the policy has it: a share of the loss
        found["gain"] = replace(gain, value=gain.value / max(watched.loss, 1e-12))
    for kind, answers in parts.items():
        found[kind] = _worst_signal(answers)
    for kind, columns in (("slices", spec.monitoring.slices), ("fairness", spec.monitoring.fairness)):
        blind = [c for c in columns if not watched.groups.get(c)]
        if blind and (kind not in found or found[kind].state in ("ok", "undetermined")):
            why = "none of its values had enough rows on quiet nights, or it was not asked for, at training"
            found[kind] = Signal("undetermined", f"{', '.join(blind)}: {why}")
    return found


def _worst_signal(answers: Sequence[tuple[str, Signal]]) -> Signal:
    order: list[SignalState] = ["undetermined", "ok", "suspected", "bad"]
    _, worst = max(answers, key=lambda a: (order.index(a[1].state), a[1].level or 0.0))
    return worst


def _row_counts(spec: ModelSpec, start: str, end: str) -> dict[str, int]:
    """Published rows by date."""
    held = delta_tables.files_by_partition(delta_tables.table_uri("published", spec.name))
    return {day: sum(f.rows for f in held[day]) for day in held if start <= day <= end}


def new_row_share(spec: ModelSpec, champion: registry.ModelVersion, as_of: str) -> float:
    """Rows published since the champion was trained, as a share of those that it learned from."""
    first, last = champion.tags["trained_on"].split("..")
    rows = _row_counts(spec, first, as_of)
    learned = sum(n for d, n in rows.items() if d <= last)
    fresh = sum(n for d, n in rows.items() if d > champion.tags["judged_on"].split("..")[1])
    return round(fresh / max(learned, 1), 6)


def volume_signal(rows: Mapping[str, int], quiet_to: str, as_of: str, factor: float) -> Signal:
    """Whether a recent night is far larger or smaller than any quiet one was, of its weekday where that is known.

    Args:
        rows: rows by date, the quiet nights (up to ``quiet_to``) among them.
        factor: times beyond the extremes of the quiet nights.
    """
    quiet = {d: n for d, n in rows.items() if d <= quiet_to}
    if len(quiet) < MIN_BASELINE_NIGHTS:
        return Signal(
            "undetermined", f"{len(quiet)} nights to compare with, {MIN_BASELINE_NIGHTS} are needed"
        )
    recent = {
        d: n for d, n in rows.items() if max(quiet_to, dates.add_days(as_of, -RECENT_DAYS)) < d <= as_of
    }
    if not recent:
        return Signal("undetermined", "no night to judge")
    spread = max(abs(math.log(max(n, 1) / _usual_row_count(quiet, d))) for d, n in quiet.items())
    limit = spread + math.log(factor)
    moved = {d: math.log(max(n, 1) / _usual_row_count(quiet, d)) for d, n in recent.items()}
    worst = max(moved, key=lambda d: abs(moved[d]))
    times = math.exp(abs(moved[worst]))
    way = "more" if moved[worst] > 0 else "fewer"
    said = f"{worst} has {recent[worst]:,} rows, {times:.3g} times {way} than usual; bad from {math.exp(limit):.3g} on"
    return Signal("bad" if abs(moved[worst]) > limit else "ok", said, times, math.exp(limit), worst)


def _usual_row_count(quiet: Mapping[str, int], day: str) -> float:
    weekday = date.fromisoformat(day).weekday()
    alike = [n for d, n in quiet.items() if date.fromisoformat(d).weekday() == weekday]
    return max(1.0, median(alike if len(alike) >= 2 else quiet.values()))


def freshness_signal(rows: Mapping[str, int], as_of: str) -> Signal:
    """Whether each recent night has come; a weekday that never had one is not waited for."""
    first = min(rows, default="")
    wanted = [d for d in dates.dates(dates.add_days(as_of, 1 - RECENT_DAYS), as_of) if d >= first]
    known = {date.fromisoformat(d).weekday() for d in rows}
    missing = [d for d in wanted if not rows.get(d) and date.fromisoformat(d).weekday() in known]
    if not rows or not wanted:
        return Signal("undetermined", "nothing was published in these nights")
    if missing:
        return Signal("bad", f"no rows for {', '.join(missing)}", float(len(missing)), 0.0, missing[0])
    return Signal("ok", f"all of the {len(wanted)} latest nights have come", 0.0, 0.0)


def _label_signal(seen: NightlySample, labels_until: str) -> Signal:
    """Whether the labels that should be known by now have come."""
    import numpy as np

    due = [i for i, d in enumerate(seen.dates) if d <= labels_until and (seen.night == i).any()]
    if not due:
        return Signal("undetermined", "no label is due yet")
    have = seen.mean(np.isfinite(seen.y).astype(float), 1)
    missing = [seen.dates[i] for i in due if have[i] == 0]
    if not missing:
        return Signal("ok", f"labels have come for all of {len(due)} nights", 0.0, 0.0)
    said = f"no label for {len(missing)} of {len(due)} nights, the first {missing[0]}: what they say is not known"
    return Signal("bad" if len(missing) > 1 else "suspected", said, float(len(missing)), 0.0, missing[0])


def _column_signals(
    spec: ModelSpec, model: TrainedModel, watched: MonitoringBaseline, recent: NightlySample
) -> dict[str, Signal]:
    """Empty values and unseen categories of single nights, against the worst quiet night of each column."""
    if not watched.nulls:
        unknown = Signal("undetermined", "the champion has nothing to compare with: train again")
        return {"nulls": unknown, "categories": unknown}
    empty, unseen = signals.null_and_unseen_shares(model, recent)
    policy = spec.monitoring
    found = {"nulls": _share_signal(empty, watched.nulls, policy.null_jump, recent.dates, "empty values")}
    if unseen:
        found["categories"] = _share_signal(
            unseen, watched.unseen, policy.new_categories, recent.dates, "categories unseen at training"
        )
    return found


def _share_signal(
    shares: Mapping[str, np.ndarray], quiet: Mapping[str, float], free: float, dates: Sequence[str], what: str
) -> Signal:
    import numpy as np

    rises = {c: values - quiet.get(c, 0.0) for c, values in shares.items() if np.isfinite(values).any()}
    if not rises:
        return Signal("undetermined", f"no recent night has {MIN_ROWS} rows")
    column = max(rises, key=lambda c: float(np.nanmax(rises[c])))
    night = int(np.nanargmax(rises[column]))
    now, limit = float(shares[column][night]), quiet.get(column, 0.0) + free
    said = f"{column}: {now:.1%} {what} on {dates[night]}, bad above {limit:.1%}"
    return Signal("bad" if now > limit else "ok", said, now, limit, dates[night] if now > limit else "")
