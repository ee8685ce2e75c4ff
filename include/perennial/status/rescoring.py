"""What a version scored: what has to be scored again when another version replaces it."""

from __future__ import annotations

from perennial.core.partitions import PartitionRange
from perennial.spec.model_spec import ModelSpec
from perennial.status import history


def ranges(spec: ModelSpec, version: str) -> list[PartitionRange]:
    """The partitions whose latest scores are of a version, in ranges without gaps.

    Args:
        spec: the model.
        version: number of the version.

    Raises:
        StorageError: the lake cannot be read.
    """
    scored = history.load(spec.name)[0].of("score")
    keys = [key for key, entry in scored.items() if entry.version == version]
    return list(spec.cadence.contiguous_ranges(keys))
