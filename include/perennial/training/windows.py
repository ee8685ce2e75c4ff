"""The partitions that a training fits on and those that it holds out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

from perennial.core.errors import DataError
from perennial.core.partitions import Cadence, PartitionRange
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, MIN_BOOTSTRAP_PARTITIONS
from perennial.spec.model_spec import ModelSpec

#: Rows for early stopping that are enough, however many there are to fit on.
VALID_ROWS = 1000
#: Partitions of the window ``short`` that are for early stopping, if they are a third of it at most.
SHORT_VALID = 4
#: How many times as long as the hold-out the window ``medium`` is.
MEDIUM = 3


@dataclass(frozen=True)
class Windows:
    """Partition dates of a training, in order.

    Attributes:
        fit: dates to fit on.
        valid: dates for early stopping and the choice of parameters.
        holdout: dates to evaluate on.
    """

    fit: tuple[str, ...]
    valid: tuple[str, ...]
    holdout: tuple[str, ...]

    @property
    def trained_range(self) -> PartitionRange:
        """The range of the dates to fit on, those for early stopping included."""
        return PartitionRange.between(self.fit[0], self.valid[-1])

    @property
    def holdout_range(self) -> PartitionRange:
        """The range of the dates to evaluate on."""
        return PartitionRange.between(self.holdout[0], self.holdout[-1])


def split_partitions(
    spec: ModelSpec,
    as_of: str,
    available: list[str],
    *,
    window_name: str = "sliding",
    since: str = "",
    rows: Mapping[str, int] | None = None,
    held_out: int | None = None,
) -> Windows:
    """Split labelled partitions that exist, which may be weeks apart: train on earlier ones, evaluate on later ones.

    Args:
        spec: the model.
        as_of: partition date of the training; later data is not used.
        available: dates of the labelled partitions, in order.
        window_name: ``sliding`` (the latest ``training.window``), ``expanding`` (all dates), ``short`` and ``medium``
            (as many dates of ``sliding`` as are held out, or `MEDIUM` times as many), or ``since_change``.
        since: date of a known change; empty if there is none. Then only a third of the dates since the change are held
            out, at most ``held_out``: on dates before the change, an old model would be better.
        rows: rows of each partition, so that enough of them are for early stopping.
        held_out: number of partitions to hold out; ``training.holdout`` when not given.

    Raises:
        DataError: too few partitions.
    """
    cadence = spec.cadence
    last = cadence.shift(as_of, -spec.label_delay)
    days = [d for d in available if d <= last]
    changed = [d for d in days if since and d >= since]
    held_out = held_out or spec.training.holdout.partitions(cadence)
    # If the latest labels are older than this, the labels have stopped to arrive.
    recent_from = cadence.shift(last, 1 - held_out * _typical_gap(cadence, days))
    holdout = [d for d in days[-held_out:] if days[-1] >= recent_from]
    if changed and holdout:
        min_partitions = MIN_BOOTSTRAP_PARTITIONS if spec.gate.bootstrap_unit == "partitions" else 1
        holdout = holdout[-max(min_partitions, len(changed) // 3) :]
    holdout_from = holdout[0] if holdout else recent_from
    earlier = [d for d in days if d < holdout_from]
    if window_name == "since_change":
        earlier = [d for d in earlier if d >= since]
    elif window_name != "expanding" and spec.training.window:
        earlier = earlier[-spec.training.window.partitions(cadence) :]
    if window_name in ("short", "medium"):
        length = spec.training.holdout.partitions(cadence) * (MEDIUM if window_name == "medium" else 1)
        earlier = earlier[-max(2, length) :]
    if not holdout or len(earlier) < 2:
        raise DataError(
            f"{len(days)} labelled partitions up to {last}: {len(earlier)} to train on and {len(holdout)} "
            "to evaluate on are too few",
            _too_few_remedy(spec, available, days, holdout, holdout_from),
            model=spec.name,
            partition=as_of,
        )
    valid = _validation_partitions([(rows or {}).get(d, 0) for d in earlier])
    if window_name == "short":
        # Windows are compared on what the shortest can spare: a fifth of it would be too little.
        valid = max(valid, min(SHORT_VALID, len(earlier) // 3))
    return Windows(tuple(earlier[:-valid]), tuple(earlier[-valid:]), tuple(holdout))


def _typical_gap(cadence: Cadence, days: list[str]) -> int:
    """The median number of partitions from one labelled one to the next; 1 if there are fewer than two."""
    numbers = [cadence.index(d) for d in days]
    return max(1, round(median(b - a for a, b in pairwise(numbers)))) if len(numbers) > 1 else 1


def _validation_partitions(rows: list[int]) -> int:
    """How many of the latest partitions are for early stopping: a fifth, at most 7; more if these have too few rows.

    Enough rows are `VALID_ROWS`, or an eighth of all rows if that is less. At least half of the rows are fitted on.

    Args:
        rows: number of rows of each partition to train on, in order; zeros if it is not known.
    """
    count = max(1, min(7, len(rows) // 5))
    total = sum(rows)
    while count > 1 and 2 * sum(rows[:-count]) < total:
        count -= 1
    while (
        count + 1 < len(rows)
        and sum(rows[-count:]) < min(VALID_ROWS, total // 8)
        and 2 * sum(rows[: -count - 1]) >= total
    ):
        count += 1
    return count


def _too_few_remedy(
    spec: ModelSpec, available: list[str], days: list[str], holdout: list[str], holdout_from: str
) -> str:
    """What to do about too few partitions: it depends on which are missing.

    Args:
        spec: the model.
        available: dates of all labelled partitions.
        days: those that the training may use.
        holdout: those of them that would be held out.
        holdout_from: the first date to hold out.
    """
    if not days:
        begin = f"; the first labelled partition is {available[0]}" if available else ""
        return (
            f"backfill earlier partitions (the data DAG, start and end), or train as of a later date{begin}"
        )
    if not holdout:
        latest = spec.cadence.shift(days[-1], spec.label_delay)
        return (
            f"train as of {latest} or earlier: the latest labelled partition is {days[-1]}, and "
            f"those from {holdout_from} on would be held out; or publish these first"
        )
    shorter = f", or lower training.holdout ({spec.training.holdout})" if len(holdout) > 1 else ""
    missing = spec.training.holdout.partitions(spec.cadence) + 2 - len(days)
    return f"backfill {max(1, missing)} or more partitions before {days[0]} (the data DAG, start and end){shorter}"


def common_validation(windows: Mapping[str, Windows]) -> tuple[str, ...]:
    """The dates for early stopping that all windows have: the models of several are compared on them."""
    return min((w.valid for w in windows.values()), key=len)


def candidate_windows(
    spec: ModelSpec,
    as_of: str,
    available: list[str],
    since: str,
    rows: Mapping[str, int] | None = None,
    held_out: int | None = None,
) -> dict[str, Windows]:
    """The windows that a training chooses among; all hold out the same partitions.

    Args:
        spec: the model; ``retraining.windows`` lists the windows.
        as_of: partition date of the training; later data is not used.
        available: dates of the labelled partitions, in order.
        since: date of a known change; empty if there is none.
        rows: number of rows of each partition.
        held_out: number of partitions to hold out; ``training.holdout`` when not given.

    Returns:
        Windows by name, without duplicates.

    Raises:
        DataError: too few partitions.
    """
    candidates: dict[str, Windows] = {}
    split = partial(split_partitions, spec, as_of, available, since=since, rows=rows, held_out=held_out)
    for window_name in spec.retraining.windows:
        if window_name == "since_change" and not since:
            continue
        try:
            windows = split(window_name=window_name)
        except DataError:
            if window_name != "since_change":  # the change may be too recent to train on the data since
                raise
        else:
            if windows not in candidates.values():
                candidates[window_name] = windows
    if "since_change" in candidates:
        # The others are longer than the time since the change, or say less about it.
        candidates = {n: w for n, w in candidates.items() if n not in ("medium", "short")} or candidates
    return candidates or {"sliding": split()}


def regular_holdout(spec: ModelSpec) -> int:
    """Number of partitions that a regular training holds out: half as many as others, but enough for a baseline.

    Most of a longer hold-out would be like the rows that the champion knows, and could not be learned from.
    """
    length = spec.training.holdout.partitions(spec.cadence)
    return max(length // 2, min(length, MIN_BASELINE_PARTITIONS))


def refit_windows(spec: ModelSpec, window_name: str, windows: Windows) -> Windows:
    """The dates on which a model that was evaluated is fitted once more: a window that ends with the held-out dates.

    Windows of a given length keep it, and the others their first date. The last date is called one for early stopping,
    but nothing is chosen on it.

    Args:
        spec: the model.
        window_name: name of the window.
        windows: the dates on which the model was fitted and evaluated.
    """
    before = windows.fit + windows.valid
    dates = before + windows.holdout
    if window_name in ("short", "medium") or (window_name == "sliding" and spec.training.window):
        dates = dates[-len(before) :]
    return Windows(dates[:-1], dates[-1:], ())
