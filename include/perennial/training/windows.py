"""The partitions that a training fits on and those that it holds out."""

from __future__ import annotations

from dataclasses import dataclass

from perennial.core.dates import DateRange, add_days
from perennial.core.errors import DataError
from perennial.spec.constraints import MIN_BOOTSTRAP_DAYS
from perennial.spec.model_spec import ModelSpec


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
    def trained_range(self) -> DateRange:
        """The range of the dates to fit on, those for early stopping included."""
        return DateRange(self.fit[0], self.valid[-1])

    @property
    def holdout_range(self) -> DateRange:
        """The range of the dates to evaluate on."""
        return DateRange(self.holdout[0], self.holdout[-1])


def split_partitions(
    spec: ModelSpec, as_of: str, available: list[str], *, window_name: str = "sliding", since: str = ""
) -> Windows:
    """Split labelled partitions: train on the earlier ones, evaluate on the later ones.

    Args:
        spec: the model.
        as_of: partition date of the training; later data is not used.
        available: dates of the labelled partitions, in order.
        window_name: ``sliding`` (the latest ``training.window_days``), ``expanding`` (all dates), or ``since_change``.
        since: date of a known change; empty if there is none. Then only a third of the dates since the change are held
            out, at most ``training.holdout_days``: on dates before the change, an old model would be better.

    Raises:
        DataError: too few partitions.
    """
    last = add_days(as_of, -spec.label.arrives_after_days)
    days = [d for d in available if d <= last]
    changed = [d for d in days if since and d >= since]
    holdout_from = add_days(last, 1 - spec.training.holdout_days)
    if changed:
        min_days = MIN_BOOTSTRAP_DAYS if spec.gate.bootstrap_unit == "days" else 1
        holdout_from = max(holdout_from, days[-max(min_days, len(changed) // 3) :][0])
    holdout = [d for d in days if d >= holdout_from]
    earlier = [d for d in days if d < holdout_from]
    if window_name == "since_change":
        earlier = [d for d in earlier if d >= since]
    elif window_name == "sliding" and spec.training.window_days:
        earlier = [d for d in earlier if d >= add_days(holdout_from, -spec.training.window_days)]
    valid_days = max(1, min(7, len(earlier) // 5)) if len(earlier) > 1 else 0
    if not holdout or not valid_days:
        raise DataError(
            f"{len(days)} labelled partitions up to {last}: {len(earlier)} to train on and {len(holdout)} "
            "to evaluate on are too few",
            "backfill earlier partitions (the data DAG, start and end), or lower training.holdout_days",
            model=spec.name,
            partition=as_of,
        )
    return Windows(tuple(earlier[:-valid_days]), tuple(earlier[-valid_days:]), tuple(holdout))


def candidate_windows(spec: ModelSpec, as_of: str, available: list[str], since: str) -> dict[str, Windows]:
    """The windows that a training chooses among; all hold out the same partitions.

    Args:
        spec: the model; ``retraining.windows`` lists the windows.
        as_of: partition date of the training; later data is not used.
        available: dates of the labelled partitions, in order.
        since: date of a known change; empty if there is none.

    Returns:
        Windows by name, without duplicates.

    Raises:
        DataError: too few partitions.
    """
    candidates: dict[str, Windows] = {}
    for window_name in spec.retraining.windows:
        if window_name == "since_change" and not since:
            continue
        try:
            windows = split_partitions(spec, as_of, available, window_name=window_name, since=since)
        except DataError:
            if window_name != "since_change":  # the change may be too recent to train on the data since
                raise
        else:
            if windows not in candidates.values():
                candidates[window_name] = windows
    return candidates or {"sliding": split_partitions(spec, as_of, available, since=since)}
