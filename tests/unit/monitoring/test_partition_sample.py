"""The sample of rows that monitoring evaluates, whatever the width of the table."""

from __future__ import annotations

import numpy as np
import pytest

from perennial.core.partitions import DAILY, cadence_of
from perennial.features.engine import FeatureQuery
from perennial.monitoring import partition_sample
from perennial.monitoring.partition_sample import PartitionSample
from support.monitored import FIRST, World

LAST = "2024-01-02"


def test_wide_tables_have_smaller_samples() -> None:
    rows = partition_sample.rows_per_partition
    assert [rows(DAILY, columns) for columns in (20, 400, 2000, 100_000)] == [1500, 1500, 300, 150]
    assert rows(cadence_of("2024-01-01T05"), 20) == 150


def _sample(world: World) -> PartitionSample:
    """A sample of the first two partitions."""
    assert world.model is not None
    return partition_sample.sample_partitions(
        world.spec, world.model, FeatureQuery(world.spec), FIRST, LAST, labels_until=LAST, columns=["k"]
    )


def test_features_in_parts_are_those_of_all_rows_at_once(
    monitored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _sample(monitored)
    monkeypatch.setattr(partition_sample, "batch_rows", lambda most, columns: min(most, 7))
    parts = _sample(monitored)
    assert len(whole.x) == 400
    for name in ("x", "margin", "predicted", "y", "partition_index"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.unseen_categories.keys() == whole.unseen_categories.keys() == {"k", "who"}
    for column in ("k", "who"):
        np.testing.assert_array_equal(parts.unseen_categories[column], whole.unseen_categories[column])
    np.testing.assert_array_equal(parts.groupings["k"], whole.groupings["k"])
