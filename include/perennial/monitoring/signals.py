"""The signals of a model: the monitored quantities, and how they become states with reasons.

A signal is either a series of one value per partition (`monitored_series`), which a sequential test compares with the
held-out partitions of the training (`signal_from_series`), or a share that is compared with a bound well above those of
the held-out partitions (`signal_evaluation`). A signal that cannot be computed is ``undetermined``, never ``ok``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import numpy as np

from perennial.monitoring import retraining_gain
from perennial.monitoring._change_detection import CusumBaseline, detect_change
from perennial.monitoring.partition_sample import MIN_ROWS, PartitionSample
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, SignalState

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring._loss_estimation import LossEstimator
    from perennial.spec.model_spec import ModelSpec

#: Rows of a partition whose attributions are computed: TreeSHAP is a hundred times as slow as prediction.
ATTRIBUTION_ROWS = 100
#: Most values of a column that form slices or groups, the most frequent first.
MAX_GROUPS = 20
SLICE_PREFIX, FAIRNESS_PREFIX = "slice:", "fairness:"


class SignalResult(TypedDict):
    """A `Signal` as JSON."""

    state: SignalState
    reason: str
    value: float | None
    limit: float | None
    since: str
    level: float | None
    evaluated: int | None
    partitions: int | None


@dataclass(frozen=True)
class Signal:
    """The state of one monitored quantity.

    Attributes:
        state: ``bad`` if the limit is exceeded; a series is ``suspected`` from half its limit.
        reason: the numbers in words, with their unit.
        value: value in the unit that the reason states; for a series, the mean since the change began.
        limit: limit of the value; for a series, limit of the level.
        since: partition date at which the change began; empty without a change.
        level: series only: level of the sequential test (`_change_detection`), dimensionless.
        evaluated: number of partitions with a value, which the state rests on; None for a signal of the whole window.
        partitions: number of partitions that it is about.
    """

    state: SignalState
    reason: str
    value: float | None = None
    limit: float | None = None
    since: str = ""
    level: float | None = None
    evaluated: int | None = None
    partitions: int | None = None

    def as_dict(self) -> SignalResult:
        """The signal as JSON, for manifests, reports and tables."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return cast(SignalResult, rounded)


class Attributions(NamedTuple):
    """XGBoost's feature contributions by partition.

    Attributes:
        means: mean absolute contribution, in units of the raw score, shape (partitions with enough rows, columns).
        partitions: index of each of those partitions, shape (partitions with enough rows,).
    """

    means: np.ndarray
    partitions: np.ndarray


def monitored_series(
    spec: ModelSpec,
    model: TrainedModel,
    sample: PartitionSample,
    estimator: LossEstimator,
    attributions: Attributions,
    attribution_shares: np.ndarray,
    groups: Mapping[str, list[str]],
    since: int = 0,
) -> dict[str, np.ndarray]:
    """Compute the monitored series of a sample.

    Args:
        spec: the model.
        model: the champion.
        sample: rows of the partitions.
        estimator: estimates the model's expected loss.
        attributions: `attribution_means` of the sample.
        attribution_shares: share of each column in the attributions at training, shape (columns,).
        groups: for each column of ``monitoring.slices`` and ``monitoring.fairness``, the values that are compared.
        since: index of the first partition whose values are needed.

    Returns:
        By name, one value for each partition, shape (partitions,); NaN if a partition has too few rows:

        - ``performance``: mean loss minus the expected loss (`_loss_estimation`).
        - ``calibration``: mean of label minus prediction; for multiclass, of accuracy minus confidence.
        - ``gain``: mean loss that a correction saves (`retraining_gain`).
        - ``estimated``: mean expected loss.
        - ``attributions``: share of the attributions that moved to other columns, 0 to 1.
        - ``slice:<column>=<value>``: like ``performance``, for the rows with that value.
        - ``fairness:<column>``: distance between the groups' highest and lowest mean prediction; for multiclass, of
          the class for which it is largest.
    """
    labelled = sample.labelled
    loss = labelled.losses(spec.task, spec.metric)
    expected = estimator.estimate(labelled.x, labelled.predicted)
    excess = loss if expected is None else loss - expected
    series = {"performance": labelled.partition_means(excess)}
    if spec.task != "ranking":  # the loss of a list cannot be estimated or corrected for single rows
        series["calibration"] = labelled.partition_means(_residuals(spec.task, labelled))
        series["gain"] = retraining_gain.gain_by_partition(
            spec.task, spec.metric, spec.objective, labelled, len(model.classes), since
        )
        expected_of_all = estimator.estimate(sample.x, sample.predicted)
        if expected_of_all is not None:
            series["estimated"] = sample.partition_means(expected_of_all)
    series["attributions"] = _attribution_shift(attributions, len(sample.dates), attribution_shares)
    for column in spec.monitoring.slices:
        for name in groups.get(column, []):
            rows = labelled.groupings[column] == name
            series[f"{SLICE_PREFIX}{column}={name}"] = labelled.select(rows).partition_means(excess[rows])
    for column in spec.monitoring.fairness:
        series[f"{FAIRNESS_PREFIX}{column}"] = _group_gap(sample, column, groups.get(column, []))
    return series


def _residuals(task: str, labelled: PartitionSample) -> np.ndarray:
    """Label minus prediction, shape (rows,); for multiclass, 1 if correct (else 0) minus confidence."""
    if task != "multiclass":
        return np.asarray(labelled.y - labelled.predicted)
    best = labelled.predicted.argmax(axis=1)
    return np.asarray((best == labelled.y) - labelled.predicted.max(axis=1))


def null_and_unseen_shares(
    model: TrainedModel, sample: PartitionSample
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Shares of each partition's rows with a null, and with a category unseen in training, by column.

    Args:
        model: the champion.
        sample: rows of the partitions.

    Returns:
        Arrays of shape (partitions,), 0 to 1; the second has the categorical columns only.
    """
    nulls, unseen = {}, {}
    for j, column in enumerate(model.encoding.columns):
        is_unseen = sample.unseen_categories.get(column, np.zeros(len(sample.partition_index), bool))
        nulls[column] = sample.partition_means(np.isnan(sample.x[:, j]) & ~is_unseen)
        if column in sample.unseen_categories:
            unseen[column] = sample.partition_means(is_unseen)
    return nulls, unseen


def unlabelled_shares(sample: PartitionSample) -> np.ndarray:
    """Share of each partition's rows without a label, shape (partitions,); NaN for a partition without rows."""
    missing = ~np.isfinite(sample.y)
    if sample.impossible_labels is not None:
        missing &= ~sample.impossible_labels
    return sample.partition_means(missing, 1)


def attribution_means(model: TrainedModel, sample: PartitionSample, since: int = 0) -> Attributions:
    """Mean absolute feature contributions of each partition, from its first `ATTRIBUTION_ROWS` rows.

    Contributions are those of `TrainedModel.contributions` (TreeSHAP: Lundberg et al., From local explanations to
    global understanding with explainable AI for trees, 2020); those of several classes are summed.

    Args:
        model: the champion.
        sample: rows of the partitions.
        since: index of the first partition to compute.
    """
    first = np.searchsorted(sample.partition_index, np.arange(len(sample.dates)))
    position = np.arange(len(sample.partition_index))
    rank = position - first[sample.partition_index] if len(position) else position
    rows = np.flatnonzero((rank < ATTRIBUTION_ROWS) & (sample.partition_index >= since))
    if not len(rows):
        return Attributions(np.zeros((0, sample.x.shape[1])), np.zeros(0, np.int64))
    absolute = np.abs(model.contributions(sample.x[rows]))
    absolute = absolute.reshape(len(rows), -1, absolute.shape[-1]).sum(axis=1)
    index = sample.partition_index[rows]
    counts = np.bincount(index, minlength=len(sample.dates))
    sums = np.zeros((len(sample.dates), absolute.shape[1]))
    np.add.at(sums, index, absolute)
    partitions = np.flatnonzero(counts >= MIN_ROWS)
    return Attributions(sums[partitions] / counts[partitions, None], partitions)


def _attribution_shift(attributions: Attributions, partitions: int, shares: np.ndarray) -> np.ndarray:
    """Total variation distance between the columns' shares in the attributions and those at training.

    Half the sum over columns of abs(share - share at training).

    Args:
        attributions: attributions of the sample.
        partitions: number of partitions of the sample.
        shares: shares at training, shape (columns,).

    Returns:
        Shape (partitions,), 0 to 1; NaN if a partition has too few rows.
    """
    shift = np.full(partitions, np.nan)
    if len(attributions.partitions):
        totals = np.maximum(attributions.means.sum(axis=1, keepdims=True), 1e-12)
        shift[attributions.partitions] = np.abs(attributions.means / totals - shares).sum(axis=1) / 2
    return shift


def _group_gap(sample: PartitionSample, column: str, names: list[str]) -> np.ndarray:
    """Distance between the groups' highest and lowest mean prediction in each partition.

    The demographic parity difference (Agarwal et al., A reductions approach to fair classification, 2018), of
    probabilities and values instead of decisions; for multiclass, the largest of all classes. A spec of task ranking
    has no fairness columns, because scores of different lists cannot be compared.

    Returns:
        Shape (partitions,), in the unit of the prediction; NaN if fewer than two groups have enough rows.
    """
    gap = np.full(len(sample.dates), np.nan)
    if len(names) < 2:
        return gap
    groups = [sample.groupings[column] == name for name in names]
    predicted = sample.predicted.reshape(len(sample.predicted), -1)
    means = np.stack(
        [
            [sample.select(rows).partition_means(of_class) for of_class in predicted[rows].T]
            for rows in groups
        ],
        axis=-1,
    )  # one mean for each class (or one value), partition and group
    comparable = np.isfinite(means[0]).sum(axis=-1) >= 2
    compared = means[:, comparable]
    gap[comparable] = (np.nanmax(compared, axis=-1) - np.nanmin(compared, axis=-1)).max(axis=0)
    return gap


def frequent_groups(sample: PartitionSample) -> dict[str, list[str]]:
    """The most frequent values of each grouping column, with enough rows for a baseline."""
    groups = {}
    for column, values in sample.groupings.items():
        names, counts = np.unique(values.astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        frequent = [str(names[i]) for i in order if counts[i] >= MIN_BASELINE_PARTITIONS * MIN_ROWS]
        groups[column] = frequent[:MAX_GROUPS]
    return groups


def signal_from_series(
    values: np.ndarray, dates: tuple[str, ...], baseline: CusumBaseline | None, unit: str
) -> Signal:
    """Test a series for a change.

    Args:
        values: one value for each partition, shape (partitions,); NaN if it has none.
        dates: dates of the partitions.
        baseline: baseline of the series; None if the training had too few held-out partitions.
        unit: quantity of the values, for the reason.
    """
    evaluated, partitions = int(np.isfinite(values).sum()), len(values)
    if baseline is None:
        return Signal(
            "undetermined",
            f"no baseline: fewer than {MIN_BASELINE_PARTITIONS} held-out partitions at training had enough rows and "
            f"labels; train again with training.holdout of {MIN_BASELINE_PARTITIONS} partitions or more",
            partitions=partitions,
        )
    if not evaluated:
        reason = "no partition has enough rows, or labels, to evaluate it"
        return Signal("undetermined", reason, None, baseline.limit, evaluated=0, partitions=partitions)
    detection = detect_change(values, baseline)
    level, limit = detection.level, baseline.limit
    state: SignalState = "bad" if level >= limit else "suspected" if level >= limit / 2 else "ok"
    usual = f"usual {baseline.mean:.2g} ± {baseline.sd:.2g}"
    alarm = f"level of the test {level:.1f}, limit {limit:.1f}"
    if state == "ok":
        mean = float(np.nanmean(values))
        reason = (
            f"{unit}: {mean:.2g} on average over {evaluated} of {partitions} partitions ({usual}); {alarm}"
        )
        return Signal(state, reason, mean, limit, "", level, evaluated, partitions)
    since = values[detection.start :]
    count = int(np.isfinite(since).sum())
    mean = float(np.nanmean(since))
    reason = (
        f"{unit}: {mean:.2g} on average over the {count} partition{'s' * (count != 1)} since {dates[detection.start]} "
        f"({usual}); {alarm}"
    )
    return Signal(state, reason, mean, limit, dates[detection.start], level, evaluated, partitions)
