"""Whether a challenger passes the gate, with a sentence for each criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from perennial.modeling.comparison import Comparison
from perennial.modeling.coverage import Coverage
from perennial.modeling.performance import Performance, SlicePerformance
from perennial.spec.constraints import MIN_SLICE_ROWS
from perennial.spec.model_spec import ModelSpec
from perennial.training.gate.fairness import Fairness

#: Most slices that the gate names.
MAX_NAMED_SLICES = 5


def gate_decision(
    spec: ModelSpec,
    values: Mapping[str, float],
    baselines: Mapping[str, Comparison],
    champion: Comparison | None,
    coverage: Coverage | None = None,
    not_compared: str = "",
    performance_by_slice: Performance | None = None,
    fairness: Fairness | None = None,
) -> tuple[bool, list[str]]:
    """Decide whether a challenger passes the gate.

    The confidence interval of its improvement must be above 0 compared with the constant model, and above the margin
    compared with the champion. Compared with the linear model, which is simpler, it must not be below 0. With a
    champion that cannot be compared, the baseline models always count, so that something is compared.

    Args:
        spec: the model.
        values: the challenger's metrics, by name.
        baselines: comparison with each baseline model, by name.
        champion: comparison with the champion; None if there is none, or it cannot be compared.
        coverage: how many rows all of these rest on, for the first sentence.
        not_compared: why the champion cannot be compared; empty if it can, or there is none.
        performance_by_slice: metrics of both models by slice, for ``gate.slices``.
        fairness: gaps between groups, for ``gate.fairness``.

    Returns:
        Whether it passes, and a sentence for each criterion.
    """
    criteria = [(coverage.evaluated > 0, f"evaluated on {coverage}")] if coverage else []

    def compare(name: str, result: Comparison, ok: bool, rule: str) -> None:
        remedy = "" if ok else _remedy(spec, name)
        criteria.append(
            (
                ok,
                f"{spec.metric} {result.loss:.4f}, {name} {result.other:.4f}: improvement "
                f"{result.improvement:+.2%} [{result.low:+.2%}, {result.high:+.2%}], {rule}{remedy}",
            )
        )

    if spec.gate.beat_baseline or not_compared:
        for name, result in baselines.items():
            if name == "constant":
                compare(name, result, result.low > 0, "must be above 0")
            else:
                compare(name, result, result.high >= 0, "must not be below 0")
        if len(baselines) < 2:
            criteria.append((True, "not compared with a linear model: its training rows have one class only"))
    if champion is not None:
        margin = spec.gate.margin
        compare("champion", champion, champion.low > margin, f"must be above {margin:.2%}")
    elif not_compared:
        criteria.append((True, f"not compared with the champion, only with the baselines: {not_compared}"))
    else:
        criteria.append((True, "there is no champion to compare with"))
    criteria += _bound_criteria(spec, values)
    criteria += _slice_criteria(spec, performance_by_slice if champion else None)
    criteria += [(verdict.met, verdict.sentence) for verdict in (fairness.verdicts if fairness else ())]
    return all(ok for ok, _ in criteria), [f"{'ok' if ok else 'FAILED'}: {text}" for ok, text in criteria]


def _remedy(spec: ModelSpec, name: str) -> str:
    """What to do about a challenger that is not better than a model, continuing a sentence.

    Args:
        spec: the model.
        name: what it was compared with: a baseline model, or the champion.
    """
    if name == "champion":
        return ": the champion stays"
    if name == "linear":
        return (
            ": set training.candidates to [trees, linear], so that the linear model can be the challenger"
            if "linear" not in spec.training.candidates
            else ": add features, or partitions to train on"
        )
    more = f"hold out more than {spec.training.holdout} (training.holdout), so that the interval "
    return (
        f": add features that say more about the label, or partitions to train on; or {more}becomes narrower"
    )


def _bound_criteria(spec: ModelSpec, values: Mapping[str, float]) -> Iterator[tuple[bool, str]]:
    """Whether each metric keeps the gate's bounds, with a sentence."""
    for name, bound in spec.gate.bounds.items():
        value = values.get(name)
        shown = "not known" if value is None else f"{value:.4f}"
        if bound.min is not None:
            ok = value is not None and value >= bound.min
            yield ok, f"{name} is {shown}, must not be below {bound.min:g}"
        if bound.max is not None:
            ok = value is not None and value <= bound.max
            yield ok, f"{name} is {shown}, must not be above {bound.max:g}"


def _slice_criteria(spec: ModelSpec, measured: Performance | None) -> Iterator[tuple[bool, str]]:
    """Whether no slice is clearly worse than ``gate.slices`` tolerates, with a sentence for each that is."""
    policy = spec.gate.slices
    if policy is None or measured is None:
        return
    judged = [s for s in measured.slices if s.improvement is not None and s.rows >= policy.min_rows]
    others = f"{len(measured.slices) - len(judged)} others have fewer rows and are not judged"
    if not judged:
        yield (
            False,
            f"no slice of {', '.join(spec.monitoring.slices)} has {policy.min_rows:,} held-out rows (gate.slices."
            f"min_rows), so none is judged: hold out more than {spec.training.holdout} (training.holdout), or lower "
            f"min_rows to {MIN_SLICE_ROWS} or more",
        )
        return
    rule = f"must not be clearly worse by more than {policy.max_worsening:.2%}"
    worse = [s for s in measured.worse_slices if s in judged and _worsening(s) > policy.max_worsening]
    for s in worse[:MAX_NAMED_SLICES]:
        yield (
            False,
            f"slice {s.name}: {spec.metric} {s.metrics[spec.metric].value:.4f}, champion "
            f"{s.champion[spec.metric].value:.4f}: improvement {s.improvement_text} on {s.rows:,} rows, {rule}: add "
            "features that say more about these rows, or partitions to train on that have more of them; or raise "
            "gate.slices.max_worsening",
        )
    if len(worse) > MAX_NAMED_SLICES:
        yield False, f"{len(worse) - MAX_NAMED_SLICES} more slices are worse: see the report of the training"
    if not worse:
        lowest = min(judged, key=lambda s: s.improvement.value if s.improvement else 0.0)
        yield (
            True,
            f"none of {len(judged)} slices with at least {policy.min_rows:,} rows is clearly worse than the champion "
            f"by more than {policy.max_worsening:.2%} ({others}), the lowest improvement is that of {lowest.name}: "
            f"{lowest.improvement_text} on {lowest.rows:,} rows",
        )


def _worsening(slice_: SlicePerformance) -> float:
    """By how much a slice is clearly worse than the champion, as a share of its loss."""
    return -slice_.improvement.high if slice_.improvement else 0.0
