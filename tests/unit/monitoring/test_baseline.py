from __future__ import annotations

from dataclasses import replace

from perennial.monitoring import baseline
from support.streamed import HOLDOUT, SPEC, build_baseline, evaluate, fit_monitored


def test_with_too_few_holdout_partitions_every_series_is_undetermined() -> None:
    monitored = fit_monitored()
    parsed = baseline.parse_baseline(build_baseline(monitored.model, range(56, 60)), SPEC, None)
    assert parsed.series == {}
    result = evaluate(replace(monitored, baseline=parsed), monitored.live)
    assert {s.state for s in result.values()} == {"undetermined"}


def test_a_model_with_few_holdout_partitions_inherits_the_champions_baseline() -> None:
    model = fit_monitored().model
    champion, new = build_baseline(model, HOLDOUT), build_baseline(model, range(58, 60))
    completed = baseline.inherit_from_champion(new, champion)
    assert completed["baselines"] == champion["baselines"] and completed["groups"]["region"] == ["n", "s"]
    shares = champion["max_null_shares"]
    assert all(completed["max_null_shares"][column] >= share for column, share in shares.items())


def test_a_champion_without_a_baseline_of_this_format_is_not_inherited_from() -> None:
    new = build_baseline(fit_monitored().model, range(58, 60))
    assert baseline.inherit_from_champion(new, None) == new
    assert baseline.inherit_from_champion(new, {"format": 0}) == new
