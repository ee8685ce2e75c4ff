"""A fixture of `support.monitored`, and a model whose challengers all pass the gate."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perennial.spec.model_spec import ModelSpec
from support import toys
from support.monitored import make_world

__all__ = ["make_world"]


@pytest.fixture
def passing(make_model: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model of which every challenger passes, and trains quickly: here the moves matter, not the models."""
    toys.let_all_pass(monkeypatch)
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    return spec
