"""JSON files that describe a version, read from its stored files."""

from __future__ import annotations

from typing import Any

from perennial.core.errors import ArtifactError
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion


def load_document(version: ModelVersion, name: str, words: str) -> Any:
    """Load a JSON file that describes a version, checked against the ledger's digest.

    Args:
        version: the version.
        name: of the file.
        words: what it is, such as ``card``.

    Raises:
        ArtifactError: the version has none, or the file is not what was recorded.
    """
    if not registry.has_artifact(version, name):
        raise ArtifactError(
            f"version {version.version} has no {words}: it was trained before {words}s were stored, or the log of its "
            "training says why it could not be written",
            "read that of a later version",
            model=version.name,
        )
    return registry.load_json_artifact(version, name)
