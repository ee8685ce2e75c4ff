"""The sections ``training`` and ``monitoring`` of a new model, so that its feed can meet them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from itertools import accumulate, pairwise
from math import ceil
from statistics import median

from perennial.core.durations import Duration
from perennial.core.partitions import DAILY, Cadence, date_of
from perennial.spec.constraints import LOG_OBJECTIVES, MIN_BASELINE_PARTITIONS

__all__ = ["monitoring_lines", "training_lines"]

#: Held-out rows from which the gate's interval is narrow enough for most models.
HOLDOUT_ROWS = 1000
#: Rows of a monitoring window from which the share of drifted columns is more than noise.
WINDOW_ROWS = 1000
#: Fewest rows of a column that the spec accepts.
MIN_COLUMN_ROWS = 10
#: Largest values, which the spec accepts.
MAX_HOLDOUT, MAX_WINDOW_DAYS, YEAR = 365, 366, Duration(12, "month")

#: Most rounds, and rounds without an improvement, of a table of few rows, of which the loss goes up and down by chance,
#: and of a large table.
FEW_ROWS, FEW_ROWS_ROUNDS, LARGE_TABLE_ROUNDS = 20_000, (1000, 100), (500, 30)
#: Rounds of tables between these that one trial can take within this share of the search's budget.
MOST_ROUNDS, TRIAL_SHARE = 2000, 0.2
#: Million cells times rounds of the search: half a minute or so on two processor cores.
SEARCH_BUDGET = 10_000
#: Dates at which rows are divided to choose the number of rounds.
STOPPING_CUTS = 4
#: The search: its first trial has these parameters, XGBoost's defaults with a lower learning rate.
PARAMS = "{max_depth: 6, learning_rate: 0.1, min_child_weight: 1, subsample: 1, colsample_bytree: 1, reg_lambda: 1}"
SPACE = (
    "max_depth: {low: 2, high: 8}",
    "learning_rate: {low: 0.03, high: 0.3, log: true}",
    "min_child_weight: {low: 1, high: 50, log: true}",
    "subsample: {low: 0.5, high: 1}",
    "colsample_bytree: {low: 0.4, high: 1}",
    "reg_lambda: {low: 0.1, high: 100, log: true}",
)


def training_lines(
    task: str,
    days: Mapping[str, int],
    objective: str | None = None,
    cadence: Cadence = DAILY,
    features: int = 1,
    shuffled: bool = False,
) -> list[str]:
    """The section ``training``.

    Args:
        task: the model's task.
        days: number of rows of each partition of the sample, by key.
        objective: XGBoost objective, if it is not the first of the task.
        cadence: of the partitions.
        features: number of features, times that of classes.
        shuffled: whether rows were divided into partitions at random; then the latest ones are like all others.
    """
    rounds, patience = _rounds(sum(days.values()), features)
    return [
        "training:",
        *(["  candidates: [trees, linear]"] if objective not in LOG_OBJECTIVES else []),
        *([f"  objective: {objective}"] if objective else []),
        f"  holdout: {_holdout(list(days.values()), cadence)}",
        f"  rounds: {rounds}",
        f"  early_stopping_rounds: {patience}",
        *([] if shuffled else [f"  early_stopping_cuts: {STOPPING_CUTS}"]),
        "  # the first trial; the search can only improve on it",
        f"  params: {PARAMS}",
        "  search:",
        "    trials: 16",
        f"    budget: {SEARCH_BUDGET}",
        "    space:",
        *(f"      {line}" for line in SPACE),
    ]


def _rounds(rows: int, features: int) -> tuple[int, int]:
    """The most rounds, and rounds without an improvement: the larger the table, the longer each takes."""
    if rows <= FEW_ROWS:
        return FEW_ROWS_ROUNDS
    fewest, patience = LARGE_TABLE_ROUNDS
    rounds = int(TRIAL_SHARE * SEARCH_BUDGET * 1e6 / (rows * features))
    rounds = max(fewest, min(MOST_ROUNDS, rounds // 100 * 100))
    return rounds, max(patience, min(FEW_ROWS_ROUNDS[1], rounds // 20))


def monitoring_lines(days: Mapping[str, int], cadence: Cadence = DAILY) -> list[str]:
    """The section ``monitoring``.

    Args:
        days: number of rows of each partition of the sample, by key.
        cadence: of the partitions.
    """
    rows_by_date: dict[str, int] = {}
    for key, count in days.items():
        rows_by_date[date_of(key)] = rows_by_date.get(date_of(key), 0) + count
    window, rows = monitoring_window(rows_by_date)
    length = Duration(Duration(window, "day").partitions(cadence), cadence.unit)
    return ["monitoring:", f"  window: {length}", f"  min_rows: {rows}"]


def _holdout(rows: list[int], cadence: Cadence) -> Duration:
    """The hold-out, in the unit of the cadence; of hours whole days, if at least as many remain to train on."""
    count = min(holdout_partitions(rows), YEAR.partitions(cadence))
    whole_days = 24 * ceil(count / 24)
    if cadence.unit == "hour" and 2 * whole_days <= len(rows):
        count = whole_days
    return Duration(count, cadence.unit)


def holdout_partitions(rows: list[int]) -> int:
    """How many of a sample's partitions to hold out: a quarter of them, and of many partitions only the latest 14.

    More than 14 are held out if these have less than `HOLDOUT_ROWS` rows. What monitoring needs is held out if as many
    partitions remain to train on.

    Args:
        rows: number of rows of each partition, in order.
    """
    count = len(rows)
    needed = MIN_BASELINE_PARTITIONS if count >= 2 * MIN_BASELINE_PARTITIONS else 1
    latest = accumulate(reversed(rows))
    enough = next((n for n, total in enumerate(latest, 1) if total >= HOLDOUT_ROWS), count)
    return max(needed, min(count // 4, max(14, enough), MAX_HOLDOUT))


def monitoring_window(days: Mapping[str, int]) -> tuple[int, int]:
    """Days of the monitoring window, and rows that a column needs in it.

    Four weeks for a sample of at least twelve, else one week, or as much longer as `WINDOW_ROWS` rows or seven
    partitions take, so that a feed of few rows or of weeks is monitored, too.

    Args:
        days: number of rows of each partition of the sample, by date.
    """
    dates = [date.fromisoformat(d) for d in sorted(days)]
    gap = max(1, round(median((b - a).days for a, b in pairwise(dates)))) if len(dates) > 1 else 1
    rows = max(1, median(days.values()))
    partitions = 28 if len(days) * gap >= 84 else 7
    if gap > 1:
        partitions = max(7, partitions // gap)
    if rows * partitions < WINDOW_ROWS:
        wanted = min(ceil(WINDOW_ROWS / rows), max(partitions, len(days) // 4))
        partitions = max(wanted, ceil(2 * MIN_COLUMN_ROWS / rows))
    window = min(MAX_WINDOW_DAYS, partitions * gap)
    return window, max(MIN_COLUMN_ROWS, min(1000, int(rows * (window // gap)) // 4))
