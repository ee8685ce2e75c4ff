"""The A/B test: a challenger serves a share of the rows of each partition, and each version is judged on its own rows.

A shadow test compares on rows that the champion served. Where what is served changes what happens (an offer that is
made, a flight that is rebooked) that says little; with ``retraining.ab_share`` the challenger serves that share of the
rows of the partitions after its training.

The version that serves a row follows from the row's key alone (for ranking, from its list): from the first half of the
MD5 of model, challenger and key as text. So a rerun gives each row to the same version, and the next challenger gets
other rows.

The test uses one number a partition: the mean loss of the champion's rows less that of the challenger's, which cancels
what both share (a storm, a fare). It is repeated after each verdict, so the interval of the mean has to hold at all
repetitions at once: it is the time-uniform interval for normal numbers of unknown spread, the means at which a mixture
of t-tests stays below 1 / alpha (Wang and Ramdas, Anytime-valid t-tests and confidence sequences for Gaussian means
with unknown variance, 2025; Lai, On confidence sequences, 1976). It is valid from a handful of numbers on, where an
asymptotic one would need more of them than a trial has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from perennial.core import dates
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
        version: the challenger's.
        columns: columns of the rows that the choice depends on.
        share: share of the rows that the challenger serves.
        starts_after: the last partition date that the champion serves alone.
    """

    model: str
    version: str
    columns: tuple[str, ...]
    share: float
    starts_after: str

    def served_by_challenger(self, table: pa.Table) -> np.ndarray:
        """Whether the challenger serves each row, shape (rows,)."""
        salt = ", ".join(text_literal(part) for part in (self.model, self.version))
        texts = ", ".join(f"CAST({quote_identifier(c)} AS VARCHAR)" for c in self.columns)
        half = f"md5_number_upper(concat_ws(chr(31), {salt}, {texts}))"
        con = duckdb_session.connect(threads=1)
        con.register("rows", table.select(self.columns))
        columns = con.sql(f"SELECT {half} < {int(self.share * 2**64)} AS served FROM rows").fetchnumpy()
        return np.asarray(columns["served"], bool)


def active_split(spec: ModelSpec, champion: registry.ModelVersion) -> ABSplit | None:
    """The split beside a champion; None where no challenger is on trial, or ``retraining.ab_share`` is 0."""
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
    """Compare what both versions served after the challenger's training, where labels are known by ``as_of``.

    Args:
        spec: the model.
        champion: the version that serves the other rows.
        challenger: the version on trial.
        trained_as_of: the partition date as of which the challenger was trained.
        as_of: the last partition date.
    """
    first = dates.add_days(trained_as_of, 1)
    champion_losses, challenger_losses = (
        performance.losses_by_partition(spec, version, first, as_of, MIN_ROWS)
        for version in (champion, challenger)
    )
    days = sorted(champion_losses.keys() & challenger_losses.keys())
    differences = np.array([champion_losses[d] - challenger_losses[d] for d in days])
    scale = max(float(np.mean([champion_losses[d] for d in days])), 1e-12) if days else 1.0
    low, high = (bound / scale for bound in confidence_interval(differences, spec.gate.confidence))
    served = _served_days(spec, challenger.version, first, performance.last_labelled_date(spec, as_of))
    return {
        "version": challenger.version,
        "as_of": trained_as_of,
        "first": first,
        "state": trial_state(low, high, spec.gate.margin, served >= spec.retraining.trial_days),
        "days": len(days),
        "gain": round(float(differences.mean()) / scale, 6) if days else None,
        "low": round(low, 6) if math.isfinite(low) else None,
        "high": round(high, 6) if math.isfinite(high) else None,
        "ab_share": spec.retraining.ab_share,
        "served": served,
    }


def confidence_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Time-uniform interval of the mean: it holds after every number at once.

    Args:
        values: one a day, shape (days,).
        confidence: that the mean lies within the intervals of all days.

    Returns:
        Lower and upper bound, infinite where there are too few numbers.
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
    """``passed`` if the gain is clearly above ``margin``; ``failed`` if it clearly is not, or the time is over."""
    if low > margin:
        return "passed"
    return "failed" if high <= margin or time_is_over else "running"


def _served_days(spec: ModelSpec, version: str, start: str, end: str) -> int:
    """Number of partition dates of which a version served rows."""
    con = duckdb_session.connect()
    if start > end or not duckdb_session.create_view(
        con, "p", delta_tables.table_uri("predictions", spec.name), None, start, end
    ):
        return 0
    by_version = f"CAST(model_version AS VARCHAR) = {text_literal(version)}"
    counted = f"SELECT count(DISTINCT {delta_tables.PARTITION}) FROM p WHERE {by_version}"
    return int(con.execute(counted).fetchall()[0][0])
