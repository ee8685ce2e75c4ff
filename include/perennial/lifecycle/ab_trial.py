"""The A/B trial: champion and challenger each serve a share of the rows; their losses are compared.

A shadow trial compares both versions on rows that the champion served. If predictions influence outcomes (an offer that
is made, a flight that is rebooked), that is not conclusive. With ``retraining.ab_share`` the challenger serves that
share of the rows of the partitions after its training.

The version that serves a row depends only on the row's key (for ranking, on its list): on the first half of the MD5 of
model, challenger and key as text. So a rerun assigns each row to the same version, and the next challenger gets other
rows.

The test uses one number for each partition: the mean loss of the champion's rows minus that of the challenger's rows,
in which effects on both (a storm, a fare) cancel out. It is repeated after each verdict, so the interval of the mean
must hold for all repetitions together: it is the time-uniform interval for normal numbers of unknown variance, the
means at which a mixture of t-tests stays below 1 / alpha (Wang and Ramdas, Anytime-valid t-tests and confidence
sequences for Gaussian means with unknown variance, 2025; Lai, On confidence sequences, 1976). It is valid for small
samples, unlike an asymptotic interval, which would need more partitions than a trial has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from perennial.core.sql import quote_identifier, text_literal
from perennial.lifecycle import trials
from perennial.lifecycle.trials import TrialEvaluation, TrialState
from perennial.monitoring import performance
from perennial.monitoring.partition_sample import MIN_ROWS
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.modeling import registry
    from perennial.spec.model_spec import ModelSpec

#: The difference at which the interval is narrowest, in standard deviations of one day's difference.
TARGET_EFFECT = 1.0


@dataclass(frozen=True)
class ABSplit:
    """The rows that a challenger serves.

    Attributes:
        model: name of the model.
        version: version of the challenger.
        columns: columns on which the assignment of a row depends.
        share: share of the rows that the challenger serves.
        starts_after: the last partition date on which only the champion serves.
    """

    model: str
    version: str
    columns: tuple[str, ...]
    share: float
    starts_after: str

    def served_by_challenger(self, table: pa.Table) -> np.ndarray:
        """Whether the challenger serves each row, shape (rows,)."""
        salt = ", ".join(text_literal(part) for part in (self.model, self.version))
        # The separator within a text is another text, so that no two keys are the same text.
        texts = ", ".join(
            f"replace(replace({quote_identifier(c)}::VARCHAR, chr(30), chr(30) || '0'), chr(31), chr(30) || '1')"
            for c in self.columns
        )
        half = f"md5_number_upper(concat_ws(chr(31), {salt}, {texts}))"
        con = duckdb_session.connect(threads=1)
        con.register("__rows", table.select(self.columns))
        columns = con.sql(f"SELECT {half} < {int(self.share * 2**64)} AS __served FROM __rows").fetchnumpy()
        return np.asarray(columns["__served"], bool)


def active_split(spec: ModelSpec, champion: registry.ModelVersion) -> ABSplit | None:
    """The split between a champion and the challenger on trial; None without an A/B trial."""
    record = trials.active_trial(spec) if spec.retraining.ab_share else None
    if record is None or record["evidence"]["champion"] != champion.version:
        return None
    columns = (spec.group,) if spec.group else tuple(spec.data.key)
    return ABSplit(spec.name, record["model_version"], columns, spec.retraining.ab_share, record["partition"])


def evaluate(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    challenger: registry.ModelVersion,
    trained_as_of: str,
    as_of: str,
) -> TrialEvaluation:
    """Compare the losses of both versions on the rows that they served since the challenger's training.

    Only partitions whose labels are due by ``as_of`` are compared.

    Args:
        spec: the model.
        champion: the version that serves the other rows.
        challenger: the version on trial.
        trained_as_of: the partition date as of which the challenger was trained.
        as_of: the last partition date.
    """
    first = spec.cadence.shift(trained_as_of, 1)
    champion_losses, challenger_losses = (
        performance.losses_by_partition(spec, version, first, as_of, MIN_ROWS)
        for version in (champion, challenger)
    )
    days = sorted(champion_losses.keys() & challenger_losses.keys())
    differences = np.array([champion_losses[d] - challenger_losses[d] for d in days])
    scale = max(float(np.mean([champion_losses[d] for d in days])), 1e-12) if days else 1.0
    low, high = (bound / scale for bound in confidence_interval(differences, spec.gate.confidence))
    served = _served_partitions(spec, challenger.version, first, performance.last_labelled_date(spec, as_of))
    return {
        "version": challenger.version,
        "as_of": trained_as_of,
        "first": first,
        "state": trial_state(
            low, high, spec.gate.margin, served >= spec.retraining.trial.partitions(spec.cadence)
        ),
        "days": len(days),
        "due": served,
        "gain": round(float(differences.mean()) / scale, 6) if days else None,
        "low": round(low, 6) if math.isfinite(low) else None,
        "high": round(high, 6) if math.isfinite(high) else None,
        "ab_share": spec.retraining.ab_share,
        "served": served,
    }


def confidence_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Time-uniform interval of the mean, which may be computed again after every new number.

    Args:
        values: one number for each day, shape (days,).
        confidence: probability that the mean lies within the intervals of all days.

    Returns:
        Lower and upper bound, infinite if there are too few numbers.
    """
    n = len(values)
    spread = 1 + n * TARGET_EFFECT**2
    ratio = (spread / (1 - confidence) ** 2) ** (1 / max(n, 1))
    if n < MIN_BASELINE_PARTITIONS or ratio >= spread:
        return -math.inf, math.inf
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    radius = deviation * math.sqrt((n - 1) / n * (ratio - 1) / (1 - ratio / spread))
    return mean - radius, mean + radius


def trial_state(low: float, high: float, margin: float, time_is_over: bool) -> TrialState:
    """Decide whether a trial has passed or failed, or is still running, from the interval of the gain.

    Args:
        low: lower bound of the gain.
        high: upper bound of the gain.
        margin: gain that is required.
        time_is_over: whether the trial has lasted its maximum number of partitions.
    """
    if low > margin:
        return "passed"
    return "failed" if high <= margin or time_is_over else "running"


def _served_partitions(spec: ModelSpec, version: str, start: str, end: str) -> int:
    """Number of partition dates on which a version served rows."""
    con = duckdb_session.connect()
    if start > end or not duckdb_session.create_view(
        con, "__predictions", delta_tables.table_uri("predictions", spec.name), None, start, end
    ):
        return 0
    by_version = f"CAST({spec.lake_column('model_version')} AS VARCHAR) = {text_literal(version)}"
    counted = f"SELECT count(DISTINCT {delta_tables.PARTITION}) FROM __predictions WHERE {by_version}"
    return int(con.execute(counted).fetchall()[0][0])
