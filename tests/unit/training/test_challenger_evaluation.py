"""What the gate makes of comparisons and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.modeling.comparison import Comparison
from perennial.spec.model_spec import ModelSpec
from perennial.training.challenger_evaluation import gate_decision
from support import toys


@pytest.fixture
def spec_of(tmp_path: Path) -> Any:
    def make(**gate: Any) -> ModelSpec:
        return toys.model(tmp_path, "toy", gate=gate)

    return make


def better(low: float, improvement: float = 0.05) -> Comparison:
    return Comparison(0.95, 1.0, improvement, low, 0.1, 100)


def judge(spec: ModelSpec, champion: Comparison | None, values: dict[str, float] | None = None) -> Any:
    simple = {"constant": better(0.01), "linear model": better(0.01)}
    return gate_decision(spec, values or {}, simple, champion)


def test_the_interval_must_lie_above_the_margin(spec_of: Any) -> None:
    assert judge(spec_of(margin=0.0), better(0.001))[0] is True
    assert judge(spec_of(margin=0.0), better(0.0))[0] is False
    assert judge(spec_of(margin=0.02), better(0.019))[0] is False
    assert judge(spec_of(margin=0.02), better(0.021))[0] is True
    passed, reasons = judge(spec_of(margin=0.02), None)
    assert passed
    assert any("there is no champion yet" in r for r in reasons)


def test_simple_models(spec_of: Any) -> None:
    """The constant must surely be beaten; the linear model must not surely be better."""
    spec, worse = spec_of(), Comparison(1.1, 1.0, -0.1, -0.2, -0.05, 100)
    unsure = Comparison(1.0, 1.0, 0.0, -0.1, 0.1, 100)

    def passes(constant: Comparison, linear: Comparison, spec: ModelSpec = spec) -> bool:
        return gate_decision(spec, {}, {"constant": constant, "linear model": linear}, None)[0]

    assert passes(better(0.01), better(0.01))
    assert passes(better(0.01), unsure)
    assert not passes(better(0.01), worse)
    assert not passes(unsure, better(0.01))
    assert passes(worse, worse, spec_of(beat_baseline=False))


def test_bounds_are_looked_at_and_an_unknown_metric_does_not_pass(spec_of: Any) -> None:
    spec = spec_of(bounds={"brier": 0.2})
    assert judge(spec, None, {"brier": 0.2})[0] is True
    assert judge(spec, None, {"brier": 0.21})[0] is False
    passed, reasons = judge(spec, None, {})
    assert not passed
    assert any("brier is not known" in r for r in reasons)


def test_every_reason_is_given_where_one_would_do(spec_of: Any) -> None:
    passed, reasons = judge(spec_of(bounds={"brier": 0.1}), better(-0.1), {"brier": 0.5})
    assert not passed
    assert [r.split(":")[0] for r in reasons] == ["ok", "ok", "FAILED", "FAILED"]
