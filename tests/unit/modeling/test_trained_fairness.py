"""Trainings whose challengers err more often for one group of the held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core.settings import settings
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import read_labelled_rows
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.training.gate import fairness
from support import toys

Make = Callable[..., ModelSpec]
#: ``place`` is personal data: no feature depends on it, and ``south`` may not be named.
SQL = "SELECT id, x, z, k FROM rows"
FAIRNESS = {
    "groups": ["k", "place", ["k", "x"]], "values": {"place": ["north"]}, "edges": {"x": [0, 2.5]},
    "bounds": {"error_rate": {"max_difference": 0.15}}, "min_rows": 100,
}  # fmt: skip


def make_unfair(make: Make, patch: pytest.MonkeyPatch, **policy: Any) -> ModelSpec:
    """A model whose labels follow no rule where ``k = a``, with rows."""
    gate = {"fairness": FAIRNESS | policy}
    spec = make(sql=SQL, gate=gate, data={"personal": ["place"]}, training={"rounds": 10})
    true_labels = toys.labels

    def labels(task: str, table: pa.Table, **_: Any) -> pa.Table:
        guess = np.random.default_rng(3).integers(0, 2, len(table))
        of_a = np.asarray(table["k"].to_pylist()) == "a"
        true = true_labels(task, table)
        return true.set_column(1, "y", pa.array(np.where(of_a, guess, true["y"].to_numpy())))

    with patch.context() as patched:
        patched.setattr(toys, "labels", labels)
        toys.publish(spec, n=180)
    return spec


def error_rates(spec: ModelSpec, version: str) -> dict[str, float]:
    """Of each value of ``k`` in the held-out rows, by the registered model."""
    registered = registry.get_version(spec.name, version)
    start, _, end = registered.tags["holdout_range"].partition("..")
    days = tuple(spec.cadence.range(start, end))
    table = pa.concat_tables(read_labelled_rows(spec, days, None, None))
    predicted = registry.load_model(registered).predict(FeatureQuery(spec).compute(table))
    wrong = (predicted >= 0.5) != table["__label"].to_numpy()
    groups = np.asarray(table["k"].to_pylist())
    return {k: float(wrong[groups == k].mean()) for k in sorted(set(groups))}


def test_a_challenger_unfair_to_a_group_is_refused_and_the_version_says_why(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no champion: bounds between groups hold all the same."""
    caplog.set_level("INFO")
    spec = make_unfair(make_model, monkeypatch)
    result = train(spec, as_of=toys.LAST)
    rates = error_rates(spec, result["version"])
    stored = fairness.parse(
        registry.load_json_artifact(registry.get_version(spec.name, result["version"]), fairness.ARTIFACT)
    )
    by_k, by_place, by_both = stored.verdicts
    assert by_k.value == pytest.approx(rates["a"] - min(rates.values()), abs=1e-6)
    assert not by_k.met and by_k.highest == "a" and by_place.value is None and not by_place.met
    assert by_both.columns == ("k", "x") and not by_both.met
    assert [d.few_groups for d in stored.disparities] == [0, 0, 3]
    failed = [r for r in result["gate"]["reasons"] if r.startswith("FAILED: fairness")]
    assert not result["gate"]["passed"] and len(failed) == 3
    assert f"error rate {min(rates.values()):.4g} of " in failed[0]
    assert "3 groups with " in failed[2] and "fewer than 100 each and are not judged" in failed[2]
    refused = promote(spec, as_of=toys.LAST, actor="test")
    assert not refused["promoted"] and failed[0] in refused["reason"]
    page = Path(result["report"]).read_text()
    assert "Fairness: gaps between groups" in page and "Error rate by k" in page and "exceeded" in page
    everything = [page, caplog.text, str(result), str(ledger.records(spec.name)), str(stored)]
    cached = [p.read_bytes() for p in Path(settings().home).rglob("fairness.json")]
    assert "north" in str(FAIRNESS) and cached
    assert not any("south" in text for text in everything) and not any(b"south" in c for c in cached)


def test_a_challenger_within_the_bounds_passes_and_is_compared_with_the_champion(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"groups": ["k"], "values": {}, "edges": {}, "bounds": {"error_rate": {"max_difference": 0.9}}}
    spec = make_unfair(make_model, monkeypatch, **policy)
    first = train(spec, as_of=toys.LAST)
    assert first["gate"]["passed"], first["gate"]["reasons"]
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    again = train(spec, as_of=toys.LAST, force=True)
    last = again["gate"]["reasons"][-1]
    value = max(error_rates(spec, "1").values()) - min(error_rates(spec, "1").values())
    assert (
        last.startswith("ok: fairness by k, error rate: ")
        and f"champion {value:.4g}, must not be above 0.9" in last
    )
