"""A version to which a rollback goes must predict what it predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError
from perennial.lifecycle import promotion
from perennial.modeling import registry
from perennial.steps.score import score
from support import toys


def test_a_target_predicts_again_what_it_predicted(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world.spec
    version = registry.get_version(spec.name, world.result["version"])
    assert promotion.check_servable(spec, version) == 0, "it has scored nothing"
    score(spec, start=toys.FIRST, end=dates.add_days(toys.FIRST, 1))
    assert promotion.check_servable(spec, version) == 2 * toys.ROWS
    model = registry.load_model(version)
    fewer_trees = replace(model, booster=model.booster[:1])
    monkeypatch.setattr(registry, "load_model", lambda *_, **__: fewer_trees)
    cause = rf"predicts other values now for \d+ of {2 * toys.ROWS} logged rows"
    with pytest.raises(ArtifactError, match=cause):
        promotion.check_servable(spec, version)
