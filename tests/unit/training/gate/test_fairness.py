"""Gaps between groups, compared with a direct computation, and what the gate makes of them."""

from __future__ import annotations

import json
import weakref
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import ArtifactError
from perennial.modeling.performance import EvaluatedRows
from perennial.spec.gate.fairness import FairnessGate
from perennial.training.gate import fairness
from perennial.training.gate.fairness import Fairness, FairnessVerdict
from perennial.training.gate.group_values import GroupValues

N = 4000
RANDOM = np.random.default_rng(7)
SEX = RANDOM.choice(["f", "m"], N)
REGION = RANDOM.choice(["north", "south", "east"], N, p=[0.55, 0.42, 0.03])
LABELS = (RANDOM.random(N) < 0.5).astype(float)


def judge(
    task: str, y: np.ndarray, predicted: np.ndarray, champion: np.ndarray | None = None, **policy: Any
) -> Fairness:
    """The fairness of predictions for the rows, in two tables, of the columns above and an age."""
    gate = FairnessGate(**policy)
    values = GroupValues(gate)
    table = pa.table({"sex": SEX, "region": REGION, "age": np.arange(N) % 80})
    for part in (table.slice(0, 1500), table.slice(1500)):
        values.add(part)
    rows = EvaluatedRows(task, "log_loss", y, predicted, champion)
    classes = ("x", "y", "z") if task == "multiclass" else ()
    return fairness.estimate_fairness(gate, rows, values, classes, confidence=0.95, samples=200, seed=0)


def only(result: Fairness) -> FairnessVerdict:
    (verdict,) = result.verdicts
    return verdict


def unfair(share: float = 0.3) -> np.ndarray:
    """Probabilities that are right, but for a share of the positive rows of ``sex = f``, which are refused."""
    missed = (SEX == "f") & (LABELS == 1) & (np.random.default_rng(1).random(N) < share)
    return np.where(missed, 0.1, np.where(LABELS == 1, 0.9, 0.1))


def rate(chosen: np.ndarray, rows: np.ndarray) -> float:
    return float(chosen[rows].mean())


DIRECT = {
    "demographic_parity": lambda p, g: rate(p >= 0.5, g),
    "equal_opportunity": lambda p, g: rate(p >= 0.5, g & (LABELS == 1)),
    "false_positive_rate": lambda p, g: rate(p >= 0.5, g & (LABELS == 0)),
    "error_rate": lambda p, g: rate((p >= 0.5) != LABELS, g),
    "mean_prediction": lambda p, g: rate(p, g),
}


@pytest.mark.parametrize("metric", [*DIRECT, "equalized_odds"])
def test_the_gap_is_that_of_a_direct_computation(metric: str) -> None:
    invited = (SEX == "m") & (LABELS == 0) & (np.random.default_rng(2).random(N) < 0.2)
    p = np.where(invited, 0.9, unfair())
    chosen = ("equal_opportunity", "false_positive_rate") if metric == "equalized_odds" else (metric,)
    gaps = [abs(DIRECT[m](p, SEX == "f") - DIRECT[m](p, SEX == "m")) for m in chosen]
    verdict = only(judge("binary", LABELS, p, groups=["sex"], bounds={metric: {"max_difference": 0.1}}))
    assert verdict.value == pytest.approx(max(gaps), abs=1e-12) and max(gaps) > 0.01
    assert verdict.met is (max(gaps) <= 0.1)
    assert {verdict.lowest, verdict.highest} == {"f", "m"}
    assert verdict.at_risk == ("m" if metric == "false_positive_rate" else "f")


def test_a_model_unfair_to_a_group_is_refused_and_names_group_metric_value_bound_and_rows() -> None:
    p = unfair()
    bounds = {"equal_opportunity": {"max_difference": 0.1, "min_ratio": 0.8}}
    result = judge("binary", LABELS, p, unfair(0.05), groups=["sex"], bounds=bounds)
    by_difference, by_ratio = result.verdicts
    of_f = rate(p >= 0.5, (SEX == "f") & (LABELS == 1))
    assert by_difference.value == pytest.approx(1 - of_f) and by_ratio.value == pytest.approx(of_f)
    assert not by_difference.met and not by_ratio.met and by_difference.lowest == "f"
    rows = int(((SEX == "f") & (LABELS == 1)).sum())
    (disparity,) = result.disparities
    champion = 1 - rate(unfair(0.05) >= 0.5, (SEX == "f") & (LABELS == 1))
    assert (
        disparity.champion == pytest.approx(champion)
        and disparity.low < disparity.difference < disparity.high
    )  # type: ignore[operator]
    sentence = by_difference.sentence
    for part in (
        "fairness by sex, equal opportunity: true positive rate ",
        f"{of_f:.4g} of f ({rows:,} rows), 1 of m (",
        f"difference {1 - of_f:.4g} [",
        f"champion {champion:.4g}, must not be above 0.1: find the features",
    ):
        assert part in sentence, (part, sentence)
    assert f"ratio {of_f:.4g}, must not be below 0.8" in by_ratio.sentence


def test_a_fair_model_passes() -> None:
    p = np.where(np.random.default_rng(2).random(N) < 0.1, 1 - LABELS, LABELS)  # errs as often for all
    bounds = {m: {"max_difference": 0.06} for m in ("demographic_parity", "equalized_odds", "error_rate")}
    result = judge("binary", LABELS, p, groups=["sex"], bounds=bounds)
    assert len(result.verdicts) == 3 and all(v.met for v in result.verdicts), result.verdicts


def test_groups_and_combinations_with_too_few_rows_are_counted_and_not_named() -> None:
    bounds = {"demographic_parity": {"max_difference": 0.5}}
    result = judge(
        "binary", LABELS, unfair(), groups=["region", ["sex", "region"]], bounds=bounds, min_rows=500
    )
    single, combined = result.disparities
    east = int((REGION == "east").sum())
    assert (single.few_groups, single.few_rows) == (1, east) and len(single.groups) == 2
    assert [g.group for g in combined.groups] == ["f × north", "f × south", "m × north", "m × south"]
    assert (combined.few_groups, combined.few_rows) == (2, east)
    sentence = result.verdicts[1].sentence
    assert sentence.startswith("fairness by sex × region, demographic parity: selection rate ")
    assert f"2 groups with {east} rows together have fewer than 500 each and are not judged" in sentence
    assert "east" not in json.dumps(result.as_dict())
    few = only(judge("binary", LABELS, unfair(), groups=["region"], bounds=bounds, min_rows=2000))
    assert not few.met and few.value is None
    assert "the selection rate cannot be compared, because fewer than two groups have 2,000" in few.sentence


def test_a_rate_rests_on_the_rows_that_count_for_it() -> None:
    """Fairlearn calls the true positive rate of a group without positive rows 0."""
    y = np.where(REGION == "south", 0.0, LABELS)
    bounds = {"equal_opportunity": {"max_difference": 0.1}}
    verdict = only(judge("binary", y, y, groups=["region"], bounds=bounds))
    assert not verdict.met and verdict.value is None
    assert "have 200 held-out rows of positive label" in verdict.sentence


def test_values_that_are_not_declared_form_no_group_and_appear_nowhere() -> None:
    policy = {"groups": ["sex", "age"], "values": {"sex": ["f"]}, "edges": {"age": [20, 60]}}
    bounds = {"mean_prediction": {"max_difference": 0.1}}
    result = judge("binary", LABELS, unfair(), bounds=bounds, **policy)
    sex, age = result.disparities
    assert sex.difference is None and sex.other_rows == int((SEX == "m").sum())
    assert not result.verdicts[0].met and result.declared == ("sex", "age")
    assert [g.group for g in age.groups] == ["below 20", "20 to below 60", "60 or more"]
    assert [g.rows for g in age.groups] == [1000, 2000, 1000]
    content = json.dumps(result.as_dict())
    assert '"m"' not in content and "\\u0000" not in content


def test_missing_values_are_a_group() -> None:
    gate = FairnessGate(
        groups=["sex", "age", ["sex", "age"]], edges={"age": [1.5]}, values={"sex": ["f"]},
        bounds={"error_rate": {"min_ratio": 0.5}},
    )  # fmt: skip
    values = GroupValues(gate)
    values.add(pa.table({"sex": ["f", None, "m"], "age": pa.array([1.0, None, float("nan")])}))
    sex, age, both = values.groupings()
    assert (sex.names, sex.codes.tolist()) == (("f", "(none)"), [0, 1, -1])
    assert (age.names, age.codes.tolist()) == (("below 1.5", "(none)"), [0, 1, 1])
    assert (both.names, both.codes.tolist()) == (("f × below 1.5", "(none) × (none)"), [0, 1, -1])


def test_classes_are_compared_one_by_one_and_the_worst_counts() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, N).astype(float)
    chosen = np.where((SEX == "f") & (y == 2) & (rng.random(N) < 0.5), 0, y).astype(int)
    predicted = np.eye(3)[chosen] * 0.9
    bounds = {m: {"max_difference": 0.2} for m in ("demographic_parity", "equalized_odds", "error_rate")}
    result = judge("multiclass", y, predicted, groups=["sex"], bounds=bounds)
    by_metric = {v.metric: v for v in result.verdicts}
    men, women = SEX == "m", SEX == "f"
    parity = max(abs(rate(chosen == c, men) - rate(chosen == c, women)) for c in range(3))
    assert (
        by_metric["demographic_parity"].value == pytest.approx(parity) and by_metric["demographic_parity"].met
    )
    odds = 1 - rate(chosen == 2, women & (y == 2))
    assert by_metric["equalized_odds"].value == pytest.approx(odds) and not by_metric["equalized_odds"].met
    assert "true positive rate of class z" in by_metric["equalized_odds"].sentence
    assert by_metric["error_rate"].value == pytest.approx(rate(chosen != y, women) - rate(chosen != y, men))


def test_the_rates_of_many_classes_are_not_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    compare, earlier = fairness._disparity, list[Any]()

    def watched(models: Any, *arguments: Any) -> Any:
        earlier.append([weakref.ref(rate) for rate in models])
        alive = {id(rate()) for rates in earlier for rate in rates if rate() is not None}
        assert len(alive) <= 4, "those of two models, and the first ones, which zip keeps"
        return compare(models, *arguments)

    monkeypatch.setattr(fairness, "_disparity", watched)
    y = RANDOM.integers(0, 3, N).astype(float)
    predicted = np.eye(3)[y.astype(int)]
    bounds = {"equalized_odds": {"max_difference": 0.2}}
    judge("multiclass", y, predicted, predicted, groups=["sex", "region"], bounds=bounds)
    assert len(earlier) == 3 * 2 * 2, "of each class, rate and entry of groups"


def test_groups_of_many_values_are_in_order() -> None:
    values = GroupValues(FairnessGate(groups=["k"], bounds={"error_rate": {"max_difference": 0.1}}))
    names = [f"{n:04}" for n in RANDOM.permutation(3000)]
    values.add(pa.table({"k": names}))
    (grouping,) = values.groupings()
    assert grouping.names == tuple(sorted(names))
    assert [grouping.names[code] for code in grouping.codes] == names


def test_a_class_that_no_model_knows_and_a_missing_prediction_are_errors() -> None:
    y = np.where(SEX == "f", -1.0, 0.0)
    predicted = np.tile([0.9, 0.05, 0.05], (N, 1))
    bounds = {"error_rate": {"max_difference": 0.1}}
    assert only(judge("multiclass", y, predicted, groups=["sex"], bounds=bounds)).value == 1.0
    predicted[SEX == "f"] = np.nan
    assert only(judge("multiclass", np.zeros(N), predicted, groups=["sex"], bounds=bounds)).value == 1.0
    p = np.where(SEX == "f", np.nan, LABELS)
    assert only(judge("binary", LABELS, p, groups=["sex"], bounds=bounds)).value == 1.0


def test_a_regression_is_compared_by_predictions_and_errors() -> None:
    y = RANDOM.normal(10, 3, N)
    predicted = (y + np.where(SEX == "f", -2.0, 0.5)).astype(np.float32)
    bounds = {m: {"max_difference": 1} for m in ("mean_prediction", "mean_error", "absolute_error")}
    result = judge("regression", y, predicted, groups=["sex"], bounds=bounds)
    values = {v.metric: v.value for v in result.verdicts}
    women, men = SEX == "f", SEX == "m"
    direct = abs(float(predicted[women].mean(dtype=np.float64) - predicted[men].mean(dtype=np.float64)))
    assert values == pytest.approx(
        {"mean_prediction": direct, "mean_error": 2.5, "absolute_error": 1.5}, abs=1e-5
    )
    assert not any(v.met for v in result.verdicts)
    broken = np.where(SEX == "f", np.nan, predicted)
    verdict = only(
        judge("regression", y, broken, groups=["sex"], bounds={"absolute_error": {"max_difference": 1}})
    )
    assert not verdict.met and verdict.value is not None and verdict.value > 1e30


def test_where_no_row_is_selected_no_group_is_behind() -> None:
    verdict = only(
        judge(
            "binary", LABELS, np.zeros(N), groups=["sex"], bounds={"demographic_parity": {"min_ratio": 0.8}}
        )
    )
    assert verdict.met and verdict.value == 1.0


def test_the_file_is_read_as_it_was_written() -> None:
    bounds = {"equalized_odds": {"max_difference": 0.1}}
    result = judge("binary", LABELS, unfair(), groups=["sex", "region"], bounds=bounds)
    stored = json.loads(json.dumps(result.as_dict()))
    assert fairness.parse(stored).as_dict() == result.as_dict()
    for broken in ({}, {**stored, "format": 9}, {**stored, "verdicts": [{}]}):
        with pytest.raises(ArtifactError, match=r"fairness\.json cannot be used"):
            fairness.parse(broken)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.booleans(), st.booleans(), st.integers(60, 90)),
        min_size=1,
        max_size=12,
    )
)
def test_any_counts_give_the_gap_of_a_direct_computation(blocks: list[tuple[str, bool, bool, int]]) -> None:
    """Blocks of rows of one group, label and decision."""
    group = np.repeat([b[0] for b in blocks], [b[3] for b in blocks])
    y = np.repeat([float(b[1]) for b in blocks], [b[3] for b in blocks])
    p = np.repeat([float(b[2]) for b in blocks], [b[3] for b in blocks])
    gate = FairnessGate(groups=["g"], bounds={"equalized_odds": {"max_difference": 0.5}}, min_rows=50)
    values = GroupValues(gate)
    values.add(pa.table({"g": group}))
    rows = EvaluatedRows("binary", "log_loss", y, p)
    verdict = only(fairness.estimate_fairness(gate, rows, values, (), confidence=0.9, samples=100, seed=0))
    gaps = []
    for label in (1, 0):
        counted = [(group == g) & (y == label) for g in "ab"]
        if min(c.sum() for c in counted) < 50:
            assert verdict.value is None and not verdict.met
            return
        gaps.append(abs(p[counted[0]].mean() - p[counted[1]].mean()))
    assert verdict.value == pytest.approx(max(gaps), abs=1e-9)
    assert verdict.met == (max(gaps) <= 0.5 + 1e-9)
