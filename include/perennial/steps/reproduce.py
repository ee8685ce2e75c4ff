"""The reproduction step: train a version again from its recipe, and compare it."""

from __future__ import annotations

from perennial.governance import reproduction
from perennial.governance.reproduction import ReproductionResult
from perennial.spec.model_spec import ModelSpec


def reproduce(spec: ModelSpec, *, version: str | None = None, actor: str = "") -> ReproductionResult:
    """Train a version again, the champion by default: `reproduction.reproduce`."""
    return reproduction.reproduce(spec, version=version or "", actor=actor)
