"""An A/B split: a challenger serves a share of each night's rows, and is judged by what came of them.

A challenger in the shadow is judged on rows that the champion served. Where what is served changes what happens (an
offer that is made, a flight that is rebooked) that says little; so with ``retraining.ab_share`` the challenger serves that
share of the rows of the nights after its training, and each version is judged on its own rows.

Which of them serves a row hangs on its key alone (for ranking, on its list): on the first half of the MD5 of model,
challenger and key as text. So a rerun gives each row to the same version, and the next challenger gets other rows.

The test looks at one number a night: the mean loss of the champion's rows less that of the challenger's, whose luck (a
storm, a fare) is the same. It is asked again after each verdict, so the interval of the mean has to hold at all looks
at once: it is the time-uniform one of normal numbers of unknown spread, the means at which a mixture of t-tests stays
below 1 / alpha (Wang and Ramdas, Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
variance, 2025; Lai, On confidence sequences, 1976). It holds for a handful of nights, where an asymptotic one would
need more of them than a trial has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core import dates
from perennial.core.sql import quote_identifier, text_literal
from perennial.lifecycle import trials
from perennial.monitoring import performance
from perennial.monitoring.nightly_sample import MIN_ROWS
from perennial.spec.constraints import MIN_BASELINE_NIGHTS
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from perennial.modeling import registry
    from perennial.spec.model_spec import ModelSpec

#: The difference that the test is keenest on, in standard deviations of a night's difference.
TARGET_EFFECT = 1.0


@dataclass(frozen=True)
class ABSplit:
    """Which rows of which nights a challenger serves.

    Attributes:
        columns: what a row is given to an arm by.
        since: the last night that the champion serves alone.
    """

    model: str
    version: str
    columns: tuple[str, ...]
    share: float
    since: str

    def rows(self, table: pa.Table) -> np.ndarray:
        """Whether the challenger serves each row, shape (rows,)."""
        import numpy as np

        salt = ", ".join(text_literal(part) for part in (self.model, self.version))
        texts = ", ".join(f"CAST({quote_identifier(c)} AS VARCHAR)" for c in self.columns)
        half = f"md5_number_upper(concat_ws(chr(31), {salt}, {texts}))"
        con = duckdb_session.connect(threads=1)
        con.register("rows", table.select(self.columns))
        found = con.sql(f"SELECT {half} < {int(self.share * 2**64)} AS served FROM rows").fetchnumpy()
        return np.asarray(found["served"], bool)


def active_split(spec: ModelSpec, champion: registry.ModelVersion) -> ABSplit | None:
    """The split of this champion's nights; None where there is none, or ``retraining.ab_share`` has been set to 0."""
    record = trials.active_trial(spec) if spec.retraining.ab_share else None
    if record is None or record["evidence"]["champion"] != champion.version:
        return None
    columns = (spec.group,) if spec.group else tuple(spec.data.key)
    return ABSplit(spec.name, record["model_version"], columns, spec.retraining.ab_share, record["partition"])


def compare_arms(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    challenger: registry.ModelVersion,
    since: str,
    as_of: str,
) -> dict[str, Any]:
    """Both arms on the nights after ``since`` whose labels are known by ``as_of``.

    Returns:
        ``split`` (the share), ``nights`` (compared), ``served`` (by both, labels due), ``gain`` with its interval
        ``low`` to ``high`` (shares of the champion's loss; None where they cannot be told) and ``state``.
    """
    import numpy as np

    first = dates.add_days(since, 1)
    old, new = (performance.nightly(spec, v, first, as_of, MIN_ROWS) for v in (champion, challenger))
    nights = sorted(old.keys() & new.keys())
    saved = np.array([old[d] - new[d] for d in nights])
    scale = max(float(np.mean([old[d] for d in nights])), 1e-12) if nights else 1.0
    low, high = (bound / scale for bound in confidence_interval(saved, spec.gate.confidence))
    served = _served(spec, challenger.version, first, performance.last_labelled_date(spec, as_of))
    return {
        "split": spec.retraining.ab_share,
        "first": first,
        "nights": len(nights),
        "served": served,
        "gain": round(float(saved.mean()) / scale, 6) if nights else None,
        "low": round(low, 6) if math.isfinite(low) else None,
        "high": round(high, 6) if math.isfinite(high) else None,
        "state": trial_state(low, high, spec.gate.margin, served >= spec.retraining.trial_days),
    }


def confidence_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The mean of the nights so far lies within, at this and at all earlier and later looks, with ``confidence``.

    Args:
        values: one a night, shape (nights,).
    """
    n = len(values)
    spread = 1 + n * TARGET_EFFECT**2
    reach = (spread / (1 - confidence) ** 2) ** (1 / max(n, 1))
    if n < MIN_BASELINE_NIGHTS or reach >= spread:
        return -math.inf, math.inf
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    radius = sd * math.sqrt((n - 1) / n * (reach - 1) / (1 - reach / spread))
    return mean - radius, mean + radius


def trial_state(low: float, high: float, margin: float, over: bool) -> str:
    """``passed`` when the gain is surely above ``margin``; ``failed`` when it surely is not, or time is ``over``."""
    if low > margin:
        return trials.PASSED
    return trials.FAILED if high <= margin or over else trials.BEGUN


def _served(spec: ModelSpec, version: str, start: str, end: str) -> int:
    """Nights of which a version served rows."""
    con = duckdb_session.connect()
    if start > end or not duckdb_session.create_view(
        con, "p", delta_tables.table_uri("predictions", spec.name), None, start, end
    ):
        return 0
    mine = f"CAST(model_version AS VARCHAR) = {text_literal(version)}"
    return int(
        con.execute(f"SELECT count(DISTINCT {delta_tables.PARTITION}) FROM p WHERE {mine}").fetchall()[0][0]
    )
