"""Allowed metrics, objectives, parameters and names, and checks that types cannot express."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator

from perennial.core import file_formats
from perennial.core.durations import Duration
from perennial.core.partitions import Cadence, first_tick, nominal_start
from perennial.core.sql import INTERNAL_PREFIX, fold_identifier, same_identifier

__all__ = [
    "FAIRNESS_METRICS",
    "GATE_METRICS",
    "HIGHER_IS_BETTER",
    "HOLDOUT_METRICS",
    "INTEGER_PARAMETERS",
    "LOG_OBJECTIVES",
    "MIN_BASELINE_PARTITIONS",
    "MIN_BOOTSTRAP_PARTITIONS",
    "MIN_GROUP_ROWS",
    "MIN_SLICE_ROWS",
    "OBJECTIVES",
    "PARAMETER_BOUNDS",
    "ROWS",
    "UNBOUNDED_RATIOS",
    "UNSUPPORTED_IN_FEATURES",
    "LongDuration",
    "OptionalDuration",
    "ShortDuration",
    "SignalState",
    "TrainingWindow",
    "Within",
    "check_cadence",
    "check_columns",
    "check_parameter",
    "check_schedule",
    "check_template",
    "direction",
    "feature_name_fault",
]

SignalState = Literal["ok", "suspected", "bad", "undetermined"]

#: Fewest held-out partitions from which a monitoring baseline can be fitted.
MIN_BASELINE_PARTITIONS = 5

#: Partitions on which a schedule is tried, by their length: those of two days, half a year, two years.
_TRIED_PARTITIONS = {"hour": 48, "week": 26, "month": 24}
#: The date from which a schedule is tried.
_SCHEDULE_EPOCH = date(2024, 1, 1)
_SCHEDULE_EXAMPLES = {"hour": "10 * * * *", "week": "0 2 * * {weekday}", "month": "0 2 1 * *"}

#: Losses that the gate can compare; lower is better. Each is the mean of a loss per row (per list, for ranking),
#: so that champion and challenger can be compared by a paired bootstrap.
GATE_METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("log_loss", "brier"),
    "multiclass": ("log_loss", "error_rate"),
    "regression": ("squared_error", "absolute_error"),
    "ranking": ("ndcg_loss",),
}
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "binary": ("binary:logistic",),
    "multiclass": ("multi:softprob",),
    "regression": (
        "reg:squarederror",
        "reg:absoluteerror",
        "reg:pseudohubererror",
        "reg:tweedie",
        "count:poisson",
    ),
    "ranking": ("rank:ndcg", "rank:pairwise"),
}
#: Objectives whose predictions are the exponential of the raw scores.
LOG_OBJECTIVES = frozenset({"reg:tweedie", "count:poisson"})
#: XGBoost parameters that a spec may set or search, with their bounds.
PARAMETER_BOUNDS: dict[str, tuple[float, float]] = {
    "max_depth": (1, 16),
    "learning_rate": (1e-4, 1),
    "min_child_weight": (0, 1e6),
    "subsample": (0.05, 1),
    "colsample_bytree": (0.05, 1),
    "colsample_bylevel": (0.05, 1),
    "gamma": (0, 1e6),
    "reg_alpha": (0, 1e6),
    "reg_lambda": (0, 1e6),
    "max_bin": (16, 1024),
    "max_leaves": (0, 4096),
    "max_delta_step": (0, 100),
    "scale_pos_weight": (1e-3, 1e4),
}
INTEGER_PARAMETERS = {"max_depth", "max_bin", "max_leaves"}
#: Held-out partitions that `gate.bootstrap_unit: partitions` needs.
MIN_BOOTSTRAP_PARTITIONS = 10
#: Rows with which a slice of the held-out rows is evaluated.
MIN_SLICE_ROWS = 100
#: Metrics of the held-out rows that `gate.bounds` may limit.
HOLDOUT_METRICS: dict[str, tuple[str, ...]] = {
    "binary": (*GATE_METRICS["binary"], "auc", "average_precision"),
    "multiclass": (*GATE_METRICS["multiclass"], "accuracy"),
    "regression": (*GATE_METRICS["regression"], "rmse", "r2"),
    "ranking": (*GATE_METRICS["ranking"], "ndcg"),
}
#: Metrics by which `gate.fairness` compares groups; a ranking has none.
FAIRNESS_METRICS: dict[str, tuple[str, ...]] = {
    "binary": (
        "demographic_parity",
        "equalized_odds",
        "equal_opportunity",
        "false_positive_rate",
        "error_rate",
        "mean_prediction",
    ),
    "multiclass": ("demographic_parity", "equalized_odds", "equal_opportunity", "error_rate"),
    "regression": ("mean_prediction", "mean_error", "absolute_error"),
}
#: Those of them whose values need not be positive, so that ratios of them say nothing.
UNBOUNDED_RATIOS = {"regression": ("mean_prediction", "mean_error")}
#: Fewest rows with which `gate.fairness` may judge a group.
MIN_GROUP_ROWS = 50
#: Metrics of which a higher value is better; of every other metric, and of every loss, a lower one.
HIGHER_IS_BETTER = frozenset({"auc", "average_precision", "accuracy", "r2", "ndcg"})
#: The name of the model's rows in features.sql, which no reference table can have.
ROWS = "rows"
#: The column by which the lake's tables are partitioned.
_PARTITION_COLUMN = "partition_date"
#: Names that no feature can have, in lower case: the model's output and the partition stand beside the features.
_RESERVED_FEATURES = frozenset({"prediction", _PARTITION_COLUMN})
#: Characters that XGBoost refuses in the name of a feature, and control characters.
UNSUPPORTED_IN_FEATURES = re.compile(r"[\[\]<\x00-\x1f\x7f]")


def check_timezone(value: str) -> str:
    """Refuse a name that is no time zone.

    Raises:
        ValueError: it is none.
    """
    try:
        ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("not a time zone: give a name such as UTC or Europe/Berlin") from None
    return value


#: The IANA name of a time zone.
TimeZone = Annotated[str, AfterValidator(check_timezone)]


@dataclass(frozen=True)
class Within:
    """Bounds of a duration, which `check` compares in partitions of the model.

    Args:
        ge: the shortest that is allowed.
        le: the longest that is allowed.
    """

    ge: Duration
    le: Duration

    def check(self, key: str, value: Duration, cadence: Cadence) -> None:
        """Refuse a duration that is out of bounds.

        Args:
            key: where it is, for the message.
            value: the duration.
            cadence: of the model's partitions.

        Raises:
            ValueError: it is too short or too long.
        """
        count = value.partitions(cadence)
        if count < self.ge.partitions(cadence):
            raise ValueError(f"{key} is {value}, which is too short: write {self.ge} or more")
        if count > self.le.partitions(cadence):
            raise ValueError(f"{key} is {value}, which is too long: write {self.le} or less")


_ONE, _TWO, _YEAR, _TEN_YEARS = (
    Duration.parse(t) for t in ("1 partition", "2 partitions", "12 months", "120 months")
)
#: A duration of up to a year or ten; `OptionalDuration` may be 0.
OptionalDuration = Annotated[Duration, Within(Duration(0, "partition"), _YEAR)]
ShortDuration = Annotated[Duration, Within(_ONE, _YEAR)]
LongDuration = Annotated[Duration, Within(_ONE, _TEN_YEARS)]
#: The partitions that a model is fitted on, and stopped early by; all there are when not given.
TrainingWindow = Annotated[Duration | None, Within(_TWO, _TEN_YEARS)]


def direction(metric: str) -> str:
    """Which values of a metric are better: ``higher`` or ``lower``."""
    return "higher" if metric in HIGHER_IS_BETTER else "lower"


def check_columns(columns: Iterable[str]) -> None:
    """Refuse column names that clash with those of the library, or with each other in SQL.

    Raises:
        ValueError: a name clashes.
    """
    for column in columns:
        if column.startswith(INTERNAL_PREFIX):
            raise ValueError(
                f"columns must not contain {column!r}: names that begin with {INTERNAL_PREFIX} are reserved for this "
                "library; leave the column out, or rename it in the feed"
            )
        if fold_identifier(column) == _PARTITION_COLUMN:
            raise ValueError(
                f"columns must not contain {column!r}, by which the lake's tables are partitioned; leave the column "
                "out, or rename it in the feed"
            )
    if same := same_identifier(columns, str.lower):
        raise ValueError(
            f"columns: {same[0]!r} and {same[1]!r} differ only in case, which SQL or the lake's tables ignore: leave "
            "one of them out"
        )


def feature_name_fault(name: str) -> str:
    """Why a feature cannot have a name, continuing a sentence; empty if it can."""
    if fold_identifier(name) in _RESERVED_FEATURES:
        return "which is a reserved name"
    if match := UNSUPPORTED_IN_FEATURES.search(name):
        character = repr(match[0]) if match[0] < " " or match[0] == "\x7f" else match[0]
        return f"which contains {character}: XGBoost does not accept it"
    return ""


def check_template(value: str, *, dated: bool) -> str:
    """Refuse a path template that is invalid or could point outside its folder.

    Args:
        value: the template.
        dated: whether the template must contain the date, because each partition has its own file
            (`check_cadence`, with the length of a partition).

    Raises:
        ValueError: the template is invalid.
    """
    names = set(re.findall(r"\{([^}]*)\}", value))
    if unknown := names - {"landing", "date", "year", "month", "day", "hour"}:
        raise ValueError(
            f"unknown placeholder {{{min(unknown)}}}; allowed: {{landing}} {{date}} {{year}} {{month}} {{day}} {{hour}}"
        )
    if re.search(r"[{}]", re.sub(r"\{[a-z]+\}", "", value)) or not value:
        raise ValueError("a brace is not closed")
    if ".." in re.split(r"[/\\]", value):
        raise ValueError("'..' is not allowed: a source is below its folder")
    if not value.startswith(("{landing}/", "s3://")):
        raise ValueError("a source starts with {landing}/ or s3://")
    if "\0" in value or any(c in value for c in "*?[]'\n"):
        raise ValueError("wildcards, quotes and control characters are not allowed")
    endings = [end for end in file_formats.ENDINGS if dated or end != file_formats.EXCEL]
    if file_formats.ending(value) not in endings and not (dated and value.endswith("/")):
        folder = ", or with / if it is a folder of part files" if dated else ""
        raise ValueError(f"a source ends with one of {', '.join(endings)}{folder}")
    if dated and not ("date" in names or {"year", "month"} <= names):
        raise ValueError("it needs {date}, or {year}, {month} and {day}: each partition has its own file")
    return value


def check_cadence(key: str, template: str, every: str) -> None:
    """Refuse a path template that does not give each partition of a cadence its own file.

    Args:
        key: where the template is, for the message.
        template: the template.
        every: length of a partition.

    Raises:
        ValueError: it has too few placeholders, or {hour} where no partition is an hour.
    """
    names = set(re.findall(r"\{([^}]*)\}", template))
    if every != "month" and not ("date" in names or "day" in names):
        raise ValueError(
            f"{key} needs {{date}}, or {{year}}, {{month}} and {{day}}: each partition has its own file"
        )
    if every == "hour" and "hour" not in names:
        raise ValueError(f"{key} needs {{hour}}: each hour has its own file")
    if every != "hour" and "hour" in names:
        raise ValueError(
            f"{key} has {{hour}}, and a partition is a {every}: set data.every to hour, or remove it"
        )


def check_parameter(name: str, value: float) -> None:
    """Refuse an XGBoost parameter that is unknown, set by the training step, or out of bounds.

    Raises:
        ValueError: it is one of these.
    """
    if name not in PARAMETER_BOUNDS:
        raise ValueError(f"parameter {name!r} cannot be set here; allowed: {', '.join(PARAMETER_BOUNDS)}")
    low, high = PARAMETER_BOUNDS[name]
    if not low <= value <= high:
        raise ValueError(f"parameter {name} is {value:g}; allowed: {low:g} to {high:g}")
    if name in INTEGER_PARAMETERS and value != int(value):
        raise ValueError(f"parameter {name} is {value:g}; a whole number is needed")


def metric_in_words(metric: str) -> str:
    """A metric's name as people write it, such as ``log loss``.

    Args:
        metric: name of the metric.
    """
    return metric.replace("_", " ").replace("ndcg", "NDCG")


def check_schedule(key: str, cron: str, cadence: Cadence, *, each: bool) -> None:
    """Refuse a schedule with several runs for one partition, or without one.

    Args:
        key: where the schedule is, for the message.
        cron: the cron expression.
        cadence: of the partitions, not of days.
        each: whether each partition needs a run.

    Raises:
        ValueError: it does not fit.
    """
    first = cadence.key_of(_SCHEDULE_EPOCH)
    for n in range(_TRIED_PARTITIONS[cadence.unit]):
        start, end = (nominal_start(cadence.shift(first, m)) for m in (n, n + 1))
        tick = first_tick(cron, start)
        several = tick < end and first_tick(cron, tick + timedelta(seconds=1)) < end
        if several or (each and tick >= end):
            weekday = nominal_start(first).isoweekday() % 7
            example = _SCHEDULE_EXAMPLES[cadence.unit].format(weekday=weekday)
            often = "several runs" if several else "no run"
            raise ValueError(
                f"{key} is {cron!r}: it has {often} in some {cadence.unit}s, and a partition is one {cadence.unit} "
                f"(data.every); write for example {example!r}"
            )
