"""The partitions that a training fits on and those that it holds out."""

from __future__ import annotations

from dataclasses import dataclass

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.spec.constraints import MIN_DAYS
from perennial.spec.model_spec import ModelSpec


@dataclass(frozen=True)
class Windows:
    """Partition dates of a training run: to ``fit``, to stop and search by (``valid``), to judge on (``holdout``)."""

    fit: tuple[str, ...]
    valid: tuple[str, ...]
    holdout: tuple[str, ...]


def split_partitions(
    spec: ModelSpec, as_of: str, available: list[str], *, kind: str = "sliding", since: str = ""
) -> Windows:
    """Split the partitions whose labels are known by ``as_of``: later ones judge, earlier ones train.

    Args:
        kind: ``sliding`` (the latest ``training.window_days``), ``expanding`` (all), or ``since_change``.
        since: the date on which the world is known to have changed. A third of the dates from then on judge, as many as
            ``training.holdout_days`` at most: on older ones the model of the old world would win.

    Raises:
        DataError: too few partitions.
    """
    last = dates.add_days(as_of, -spec.label.arrives_after_days)
    days = [d for d in available if d <= last]
    fresh = [d for d in days if since and d >= since]
    holdout_from = dates.add_days(last, 1 - spec.training.holdout_days)
    if fresh:
        least = MIN_DAYS if spec.gate.bootstrap_unit == "days" else 1
        held = days[-max(least, len(fresh) // 3) :]
        holdout_from = max(holdout_from, held[0])
    holdout = [d for d in days if d >= holdout_from]
    before = [d for d in days if d < holdout_from]
    if kind == "since_change":
        before = [d for d in before if d >= since]
    elif kind == "sliding" and spec.training.window_days:
        before = [d for d in before if d >= dates.add_days(holdout_from, -spec.training.window_days)]
    cut = max(1, min(7, len(before) // 5)) if len(before) > 1 else 0
    if not holdout or not cut:
        raise DataError(
            f"{len(days)} labelled partitions up to {last}: {len(before)} to train on and {len(holdout)} "
            "to judge on are too few",
            "backfill earlier partitions (the data DAG, start and end), or lower training.holdout_days",
            model=spec.name,
            partition=as_of,
        )
    return Windows(tuple(before[:-cut]), tuple(before[-cut:]), tuple(holdout))


def candidate_windows(spec: ModelSpec, as_of: str, available: list[str], since: str) -> dict[str, Windows]:
    """The splits that a training chooses among, by the name of their window; all judge on the same partitions.

    Raises:
        DataError: too few partitions.
    """
    found: dict[str, Windows] = {}
    for kind in spec.retraining.windows:
        if kind == "since_change" and not since:
            continue
        try:
            split = split_partitions(spec, as_of, available, kind=kind, since=since)
        except DataError:
            if kind != "since_change":  # which may well be too young
                raise
        else:
            if split not in found.values():
                found[kind] = split
    return found or {"sliding": split_partitions(spec, as_of, available, since=since)}
