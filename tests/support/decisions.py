"""Verdicts, decisions on retrainings and trainings of the model `toy`, written without running the steps."""

from __future__ import annotations

import time
from typing import Any

from perennial.spec.model_spec import ModelSpec
from perennial.steps.decide import decide
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest
from support.monitored import make_spec

DRIFTED = {
    "verdict": "drifted",
    "reason": "70% of the weight",
    "model_version": "1",
    "champion_as_of": "2024-01-01",
}
WORSE = {"state": "bad", "reason": "worse", "since": "2024-01-30", "value": 0.2}


def write_verdict(as_of: str, **result: Any) -> None:
    """Write the manifest of a monitoring that found drift, with some keys of its result changed."""
    manifests.write(Manifest("toy", "monitor", as_of, {}, DRIFTED | result), time.monotonic())


def decide_on(as_of: str, spec: ModelSpec | None = None, **result: Any) -> dict[str, Any]:
    """Write a verdict, and decide on it."""
    write_verdict(as_of, **result)
    return decide_again(spec or make_spec(), as_of)


def decide_again(spec: ModelSpec, as_of: str, *, backfill: bool = False) -> dict[str, Any]:
    """Decide on the verdict that was written before."""
    return dict(decide(spec, as_of=as_of, actor="test", backfill=backfill))


def record_training(as_of: str, decision: Decision = Decision.REJECTED, **fields: Any) -> None:
    """Write a training's record into the ledger."""
    defaults: dict[str, Any] = {"kind": LedgerKind.TRAINING, "reason": "", "actor": "gate"}
    ledger.append("toy", decision=decision, partition=as_of, **defaults | fields)


def make_policy(**policy: Any) -> ModelSpec:
    """A spec with changes of its section ``retraining``."""
    return make_spec(retraining=policy)


def make_signals(gain_state: str, gain: float = 0.0, **others: Any) -> dict[str, Any]:
    """Signals of a verdict: the gain that recent labels promise, and others."""
    return {
        "gain": {"state": gain_state, "reason": "it would save", "since": "2024-01-31", "value": gain}
    } | others
