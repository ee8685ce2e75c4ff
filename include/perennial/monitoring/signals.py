"""The signals of a model: each a question about its nights, with an answer, its reason, and a limit set at training.

Every signal is one number a night (`nightly`), which `detect` follows against what the quiet nights of training showed,
or a bound that no quiet night came near. What cannot be told is ``undetermined``, never ``ok``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.monitoring import retraining_gain
from perennial.monitoring._change_detection import CusumBaseline, detect_change
from perennial.monitoring.nightly_sample import MIN_ROWS, NightlySample
from perennial.spec.constraints import MIN_BASELINE_NIGHTS, SignalState

if TYPE_CHECKING:
    import numpy as np

    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring._loss_estimation import LossEstimator
    from perennial.spec.model_spec import ModelSpec

#: Rows of a night whose attributions are computed: TreeSHAP costs a hundred predictions.
ATTRIBUTION_ROWS = 100
#: Values of a column that make a slice or group at most, the most frequent first.
MAX_GROUPS = 20
SLICE_PREFIX, FAIRNESS_PREFIX = "slice:", "fairness:"


@dataclass(frozen=True)
class Signal:
    """One answer.

    Attributes:
        value: what was seen, in the unit that the reason names; of a followed number, its mean since it began to move.
        limit: what is bad beyond it: of the value, or of a followed number's ``level``.
        since: the night on which it began; empty where nothing did.
    """

    state: SignalState
    reason: str
    value: float | None = None
    limit: float | None = None
    since: str = ""
    level: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For manifests, reports and tables."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def nightly_series(
    spec: ModelSpec,
    model: TrainedModel,
    seen: NightlySample,
    expected: LossEstimator,
    attributed: tuple[np.ndarray, np.ndarray],
    shares: np.ndarray,
    groups: Mapping[str, list[str]],
    since: int = 0,
) -> dict[str, np.ndarray]:
    """The numbers that are followed, one a night, shape (nights,) each; NaN for a night that does not tell.

    Args:
        attributed: the rows' `attributions`. shares: of each column in those at training, shape (columns,).
        groups: for each column of slices and of fairness, the values that are looked at.
        since: index of the first night that has to be told of.

    Returns:
        ``performance`` (loss beyond what the model itself expects of the rows), ``calibration`` (what happened less
        what was said), ``gain`` (loss that a correction saves), ``estimated`` (expected loss), ``attributions`` (share
        of them that moved to other columns), ``slice:<column>=<value>`` as performance, and ``fairness:<column>``
        (distance between the groups that were treated worst and best).
    """

    known = seen.labelled
    loss = known.losses(spec.task, spec.metric)
    hoped = expected.losses(known.x, known.predicted)
    excess = loss if hoped is None else loss - hoped
    found = {"performance": known.mean(excess)}
    if spec.task != "ranking":  # whose loss is a list's: it cannot be corrected or expected row by row
        found["calibration"] = known.mean(_residuals(spec.task, known))
        found["gain"] = retraining_gain.nightly_retraining_gain(
            spec.task, spec.metric, spec.objective, known, len(model.classes), since
        )
        guess = expected.losses(seen.x, seen.predicted)
        if guess is not None:
            found["estimated"] = seen.mean(guess)
    found["attributions"] = _attribution_shift(attributed, len(seen.dates), shares)
    for column in spec.monitoring.slices:
        for name in groups.get(column, []):
            rows = known.texts[column] == name
            found[f"{SLICE_PREFIX}{column}={name}"] = known.where(rows).mean(excess[rows])
    for column in spec.monitoring.fairness:
        found[f"{FAIRNESS_PREFIX}{column}"] = _group_gap(seen, column, groups.get(column, []))
    return found


def _residuals(task: str, known: NightlySample) -> np.ndarray:
    """What happened less what was said: the label less the prediction, or being right less the confidence."""
    import numpy as np

    if task != "multiclass":
        return np.asarray(known.y - known.predicted)
    best = known.predicted.argmax(axis=1)
    return np.asarray((best == known.y) - known.predicted.max(axis=1))


def null_and_unseen_shares(
    model: TrainedModel, seen: NightlySample
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Shares of each night's rows without a value, and with a category that training did not see, by column.

    Returns:
        Arrays of shape (nights,); the second has the categorical columns alone.
    """
    import numpy as np

    empty, unseen = {}, {}
    for j, column in enumerate(model.encoding.columns):
        odd = seen.unseen.get(column, np.zeros(len(seen.night), bool))
        empty[column] = seen.mean(np.isnan(seen.x[:, j]) & ~odd)
        if column in seen.unseen:
            unseen[column] = seen.mean(odd)
    return empty, unseen


def attributions(model: TrainedModel, seen: NightlySample, since: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean size of XGBoost's own contributions (TreeSHAP; Lundberg et al., 2020) by night and column, and the nights.

    Args:
        since: index of the first night that is looked at.

    Returns:
        Shape (nights with enough rows, columns), and the index of each of those nights.
    """
    import numpy as np
    import xgboost

    first = np.searchsorted(seen.night, np.arange(len(seen.dates)))
    rank = np.arange(len(seen.night)) - first[seen.night] if len(seen.night) else np.zeros(0, np.int64)
    rows = np.flatnonzero((rank < ATTRIBUTION_ROWS) & (seen.night >= since))
    if not len(rows):
        return np.zeros((0, seen.x.shape[1])), np.zeros(0, np.int64)
    matrix = xgboost.DMatrix(seen.x[rows], feature_names=list(model.encoding.columns))
    each = np.abs(model.booster.predict(matrix, pred_contribs=True))[..., :-1]
    each = each.reshape(len(rows), -1, each.shape[-1]).sum(axis=1)
    night = seen.night[rows]
    counts = np.bincount(night, minlength=len(seen.dates))
    sums = np.zeros((len(seen.dates), each.shape[1]))
    np.add.at(sums, night, each)
    enough = np.flatnonzero(counts >= MIN_ROWS)
    return sums[enough] / counts[enough, None], enough


def _attribution_shift(
    attributed: tuple[np.ndarray, np.ndarray], nights: int, shares: np.ndarray
) -> np.ndarray:
    """Total variation between each night's shares of the attributions and those at training, shape (nights,)."""
    import numpy as np

    found = np.full(nights, np.nan)
    means, enough = attributed
    if len(enough):
        whole = np.maximum(means.sum(axis=1, keepdims=True), 1e-12)
        found[enough] = np.abs(means / whole - shares).sum(axis=1) / 2
    return found


def _group_gap(seen: NightlySample, column: str, names: list[str]) -> np.ndarray:
    """Distance between the groups' highest and lowest mean prediction, night by night, shape (nights,).

    The demographic parity difference (Agarwal et al., A reductions approach to fair classification, 2018), of
    probabilities and values instead of decisions. For multiclass and ranking, whose scores have no order: none.
    """
    import numpy as np

    nothing = np.full(len(seen.dates), np.nan)
    if seen.predicted.ndim > 1 or seen.lists is not None or len(names) < 2:
        return nothing
    groups = [seen.texts[column] == name for name in names]
    means = np.stack([seen.where(rows).mean(seen.predicted[rows]) for rows in groups])
    both = np.isfinite(means).sum(axis=0) >= 2
    nothing[both] = np.nanmax(means[:, both], axis=0) - np.nanmin(means[:, both], axis=0)
    return nothing


def frequent_groups(seen: NightlySample) -> dict[str, list[str]]:
    """For each column kept as text, the values that enough rows have, the most frequent first."""
    import numpy as np

    found = {}
    for column, values in seen.texts.items():
        names, counts = np.unique(values.astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        found[column] = [str(names[i]) for i in order if counts[i] >= MIN_BASELINE_NIGHTS * MIN_ROWS][
            :MAX_GROUPS
        ]
    return found


def signal_from_series(
    values: np.ndarray, dates: tuple[str, ...], quiet: CusumBaseline | None, unit: str
) -> Signal:
    """Follow one number.

    Args:
        values: one a night, shape (nights,). dates: of the nights. quiet: None: there were too few held-out nights.
        unit: what the number is, for the reason.
    """
    import numpy as np

    if quiet is None:
        return Signal(
            "undetermined",
            f"fewer than {MIN_BASELINE_NIGHTS} held-out nights at training: nothing to compare with",
        )
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return Signal(
            "undetermined", "no night to judge by: too few rows, or no label yet", None, quiet.limit
        )
    trace = detect_change(values, quiet)
    state: SignalState = (
        "bad" if trace.level >= quiet.limit else "suspected" if trace.level >= quiet.limit / 2 else "ok"
    )
    usual = f"{quiet.mean:.4g} ± {quiet.sd:.2g} on quiet nights"
    if state == "ok":
        mean = float(np.nanmean(values))
        return Signal(state, f"{unit} {mean:.4g}, {usual}", mean, quiet.limit, level=trace.level)
    since = values[trace.since :]
    nights = int(np.isfinite(since).sum())
    reason = (
        f"{unit} {np.nanmean(since):.4g} in the {nights} night{'s' * (nights != 1)} since {dates[trace.since]}, "
        f"{usual}; "
        f"evidence {trace.level:.1f}, certain from {quiet.limit:.1f}"
    )
    return Signal(state, reason, float(np.nanmean(since)), quiet.limit, dates[trace.since], trace.level)
