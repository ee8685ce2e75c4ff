"""What a model of high risk must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.cli.check import preflight
from support import toys

REASON = "no column says who is concerned"
GATE: dict[str, Any] = {
    "approval": {"who": ["ada"]},
    "fairness": {"groups": ["k"], "bounds": {"error_rate": {"max_difference": 0.1}}},
    "slices": {},
}


@pytest.mark.parametrize("missing", [None, *GATE, "retention"])
@pytest.mark.parametrize("task", ["binary", "ranking"])
def test_a_high_risk_demands_parts_of_the_gate_and_retention_or_reasons(
    tmp_path: Path, task: str, missing: str | None
) -> None:
    gate = {k: v for k, v in GATE.items() if k != missing and not (task == "ranking" and k == "fairness")}
    monitoring, retention = {"slices": ["k"]}, {} if missing == "retention" else {"predictions": "24 months"}

    def problems(risk: dict[str, Any]) -> list[str]:
        spec = toys.model(
            tmp_path, "toy", task, gate=gate, monitoring=monitoring, retention=retention, risk=risk
        )
        return preflight._risk_problems(spec)

    lacking = [missing] if missing and not (task == "ranking" and missing == "fairness") else []
    reported = problems({"level": "high"})
    assert [f"risk.without.{name}" in text for name, text in zip(lacking, reported, strict=True)] == [
        True
    ] * len(lacking)
    assert problems({"level": "high", "without": dict.fromkeys(lacking, REASON)}) == []
    assert problems({"level": "low"}) == []
    for name in {*GATE, "retention"} - {*lacking}:  # a reason for what is there, or is not demanded
        risk = {"level": "high", "without": dict.fromkeys([*lacking, name], REASON)}
        (needless,) = problems(risk)
        assert f"risk.without.{name} gives a reason for something that " in needless
    assert len(problems({"level": "low", "without": dict.fromkeys(GATE, REASON)})) == len(GATE)
