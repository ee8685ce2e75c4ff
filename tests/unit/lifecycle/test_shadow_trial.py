"""A shadow trial: the challenger is evaluated on new partitions without serving, and is promoted if it was better."""

from __future__ import annotations

import pytest

from perennial.core import dates
from perennial.core.durations import Duration
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.conclude import conclude
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind
from support import toys

pytestmark = pytest.mark.usefixtures("without_drift_report")

EARLY, LATE = dates.add_days(toys.LAST, -1), toys.LAST


def champion_version(spec: ModelSpec) -> str | None:
    version = registry.get_champion(spec)
    return version.version if version else None


@pytest.mark.parametrize("better", [True, False])
def test_a_challenger_is_promoted_after_its_shadow_trial_if_it_was_better(
    passing: ModelSpec, better: bool
) -> None:
    """Labels shuffled among the rows make a bad model; here both it and a good one pass the gate."""
    policy = passing.retraining.model_copy(update={"trial": Duration(4, "day")})
    spec = passing.model_copy(update={"retraining": policy})
    toys.publish(spec, shuffled=better)
    train(spec, as_of=EARLY)
    assert promote(spec, as_of=EARLY, actor="test")["promoted"] is True, (
        "without a champion there is no trial"
    )
    toys.publish(spec, shuffled=not better)
    challenger = train(spec, as_of=LATE)["version"]
    answer = promote(spec, as_of=LATE, actor="test")
    assert answer["promoted"] is False and "is evaluated on 4 days without serving" in answer["reason"]
    assert champion_version(spec) == "1" and promote(spec, as_of=LATE, actor="test")["promoted"] is False

    toys.publish(spec, LATE, 8)
    soon, end = dates.add_days(LATE, 3), dates.add_days(LATE, 7)
    for day in (soon, end):
        trial = monitor(spec, as_of=day)["trial"]
        assert trial["version"] == challenger
        concluded = conclude(spec, as_of=day, actor="scheduler")
        assert concluded["promoted"] is (better and day == end), concluded
    assert trial["days"] >= 4 and (trial["low"] > 0 if better else trial["high"] < 0)
    assert champion_version(spec) == (challenger if better else "1")
    ledger.verify(spec.name)
    assert registry.get_version_by_alias(spec.name, "challenger") is None
    trials = [
        (r["model_version"], r["decision"], r["actor"], r["evidence"]["triggered_by"])
        for r in ledger.records(spec.name, LedgerKind.TRIAL)
    ]
    assert trials == [
        (challenger, "started", "gate", "test"),
        (challenger, "passed" if better else "failed", "trial policy", "scheduler"),
    ]
    promotion = ledger.records(spec.name, LedgerKind.PROMOTION)[-1]
    assert (promotion["actor"], promotion["evidence"]["triggered_by"]) == (
        ("trial policy", "scheduler") if better else ("gate", "test")
    )
    assert monitor(spec, as_of=end, force=True)["trial"] is None
