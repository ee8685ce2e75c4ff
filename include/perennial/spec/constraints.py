"""Allowed metrics, objectives, parameters and names, and checks that types cannot express."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

__all__ = [
    "GATE_METRICS",
    "HOLDOUT_METRICS",
    "INTEGER_PARAMETERS",
    "LAKE_COLUMNS",
    "MIN_BASELINE_PARTITIONS",
    "MIN_BOOTSTRAP_DAYS",
    "OBJECTIVES",
    "PARAMETER_BOUNDS",
    "RESERVED_NAMES",
    "SignalState",
    "check_columns",
    "check_parameter",
    "check_template",
]

SignalState = Literal["ok", "suspected", "bad", "undetermined"]

#: Fewest held-out partitions from which a monitoring baseline can be fitted.
MIN_BASELINE_PARTITIONS = 5

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
#: Held-out days that `gate.bootstrap_unit: days` needs.
MIN_BOOTSTRAP_DAYS = 10
#: Metrics of the held-out rows that `gate.bounds` may limit.
HOLDOUT_METRICS: dict[str, tuple[str, ...]] = {
    "binary": (*GATE_METRICS["binary"], "auc", "average_precision"),
    "multiclass": (*GATE_METRICS["multiclass"], "accuracy"),
    "regression": (*GATE_METRICS["regression"], "rmse", "r2"),
    "ranking": (*GATE_METRICS["ranking"], "ndcg"),
}
#: Columns that the lake's tables have in addition to the key.
LAKE_COLUMNS = frozenset({
    "label", "arrived", "prediction", "probabilities", "model_version", "run_id", "scored_at", "feed", "feed_date",
    "row_values", "reasons", "features", "scored_from",
})  # fmt: skip
#: Names that are reserved for the engine of features.sql and the reader of landed files.
RESERVED_NAMES = {
    "references": {"rows", "published"},
    "columns": {"partition_date", "file_index", "file_row_number", "filename"},
}


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse column names that clash with those of the engine, or with each other in SQL.

    Raises:
        ValueError: a name clashes.
    """
    for column in columns:
        if column.lower() in RESERVED_NAMES["columns"] or column.startswith("__"):
            raise ValueError(f"columns must not contain {column!r}: the name is reserved")
    if len({c.lower() for c in columns}) < len(columns):
        raise ValueError("columns: two names differ only in case, and SQL ignores case")


def check_template(value: str, *, dated: bool) -> str:
    """Refuse a path template that is invalid or could point outside its folder.

    Args:
        value: the template.
        dated: whether the template must contain the date, because each partition has its own file.

    Raises:
        ValueError: the template is invalid.
    """
    names = set(re.findall(r"\{([^}]*)\}", value))
    if unknown := names - {"landing", "date", "year", "month", "day"}:
        raise ValueError(
            f"unknown placeholder {{{min(unknown)}}}; allowed: {{landing}} {{date}} {{year}} {{month}} {{day}}"
        )
    if re.search(r"[{}]", re.sub(r"\{[a-z]+\}", "", value)) or not value:
        raise ValueError("a brace is not closed")
    if ".." in re.split(r"[/\\]", value):
        raise ValueError("'..' is not allowed: a source is below its folder")
    if not value.startswith(("{landing}/", "s3://")):
        raise ValueError("a source starts with {landing}/ or s3://")
    if "\0" in value or any(c in value for c in "*?[]'\n"):
        raise ValueError("wildcards, quotes and control characters are not allowed")
    if not value.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError("a source is a .parquet, .csv or .csv.gz file")
    if dated and not ("date" in names or {"year", "month", "day"} <= names):
        raise ValueError("it needs {date}, or {year}, {month} and {day}: each partition has its own file")
    return value


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
