"""What a version does in general: the contributions of its features, by value, without personal values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core import dates
from perennial.features.engine import FeatureQuery
from perennial.governance import model_explanation
from perennial.governance.model_explanation import MISSING, OTHERS, GlobalExplanation, explain_model, parse
from perennial.modeling import registry
from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring.partition_sample import PartitionSample
from perennial.spec.model_spec import ModelSpec
from support import toys

#: Held-out partitions of a toy.
HELD_OUT = [dates.add_days(toys.FIRST, n) for n in range(14, 19)]


def sample_of(spec: ModelSpec, model: TrainedModel) -> PartitionSample:
    """All rows of the held-out partitions."""
    rows = pa.concat_tables([toys.rows(spec.task, day) for day in HELD_OUT])
    x = model.encoding.encode(FeatureQuery(spec).compute(rows))
    zero = np.zeros(len(x))
    return PartitionSample(tuple(HELD_OUT), np.zeros(len(x), np.int64), x, zero, zero, zero)


def model_of(world: Any) -> TrainedModel:
    return registry.load_model(registry.get_version(world.spec.name, world.result["version"]))


def explained(world: Any, model: TrainedModel, spec: ModelSpec | None = None) -> GlobalExplanation:
    sample = sample_of(world.spec, model)
    explanation = explain_model(spec or world.spec, model, sample, model.encoding)
    assert explanation is not None
    return explanation


def test_the_stored_explanation_is_that_of_the_held_out_rows(world: Any) -> None:
    model, version = model_of(world), registry.get_version(world.spec.name, world.result["version"])
    explanation = model_explanation.read(version, world.spec)
    x = sample_of(world.spec, model).x
    parts = model.contributions(x)
    assert (explanation.rows, explanation.partitions) == (len(x), f"{HELD_OUT[0]}..{HELD_OUT[-1]}")
    by_feature = dict(zip(model.encoding.columns, np.abs(parts).mean(axis=0), strict=True))
    assert {i.feature: i.contribution for i in explanation.importance} == pytest.approx(by_feature, rel=1e-4)
    assert {i.feature for i in explanation.importance[:2]} == {"x", "z"}
    for dependence in explanation.dependence:
        j = model.encoding.columns.index(dependence.feature)
        assert sum(b.rows for b in dependence.bins) == len(x), "every row is in one bin"
        mean = sum(b.rows * b.mean[0] for b in dependence.bins) / len(x)
        assert mean == pytest.approx(float(parts[:, j].mean()), abs=1e-4)
        assert all(b.low[0] <= b.high[0] for b in dependence.bins)
    assert parse(json.loads(json.dumps(explanation.as_dict()))) == explanation
    page = model_explanation.to_html("toy", explanation)
    assert page.count("<figure") == 1 + len(explanation.dependence) and "<script" not in page


def test_missing_values_rare_categories_and_classes_are_shown_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=100).astype(np.float32)
    x[:20] = np.nan
    parts = np.stack([np.nan_to_num(x) * 2, np.where(np.isnan(x), 5.0, 0.0)], axis=1)
    *known, missing = model_explanation._bins(x, parts, None)
    assert (missing.label, missing.rows, missing.mean) == (MISSING, 20, [0.0, 5.0])
    assert [b.value for b in known] == sorted(b.value or 0.0 for b in known) and len(known) > 3
    assert all(b.mean[0] == pytest.approx(2 * (b.value or 0.0), rel=1e-4) for b in known)
    codes = np.repeat(np.arange(12, dtype=np.float32), [40, 30, *[3] * 10])
    bins = model_explanation._bins(codes, codes[:, None], [f"c{i}" for i in range(12)])
    assert [(b.label, b.rows) for b in bins] == [("c1", 30), ("c0", 40), (OTHERS, 30)]
    assert model_explanation._bins(codes[:5], codes[:5, None], ["c0"]) == []


@settings(max_examples=60, database=None)
@given(st.lists(st.sampled_from([*range(40), *[7] * 40, None]), max_size=150))
def test_bins_divide_the_rows_whatever_their_values(drawn: list[int | None]) -> None:
    values = np.array([np.nan if v is None else v for v in drawn], np.float32)
    bins = model_explanation._bins(values, np.nan_to_num(values)[:, None], None)
    counts = {
        name: int(np.isnan(values).sum() if name else (~np.isnan(values)).sum()) for name in ("", MISSING)
    }
    for name, count in counts.items():
        rows = [b.rows for b in bins if (b.label == MISSING) == bool(name)]
        assert sum(rows) == (count if count >= 10 else 0) and all(n >= 10 for n in rows)
    means = [b.value for b in bins if b.value is not None]
    assert means == sorted(set(means)) and len(means) <= model_explanation.MAX_BINS
    assert all(b.mean[0] == pytest.approx(b.value, rel=1e-4) for b in bins if b.value is not None)


def test_values_of_personal_features_are_not_shown(world: Any) -> None:
    model = model_of(world)
    columns = {"data": world.spec.data.model_copy(update={"personal": ["k", "x"]})}
    spec = world.spec.model_copy(update=columns)
    explanation = explained(world, model, spec)
    assert set(explanation.hidden) == {"k", "x"}
    assert not {"k", "x"} & {d.feature for d in explanation.dependence}
    assert {"k", "x"} <= {i.feature for i in explanation.importance}
    later = model_explanation.without_features(explained(world, model), ["x"])
    assert "x" in later.hidden and "x" not in {d.feature for d in later.dependence}


def test_fewer_rows_of_a_large_model_are_explained(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(world)
    monkeypatch.setattr(model_explanation, "MIN_ROWS", 50)
    monkeypatch.setattr(model_explanation, "MAX_ROW_BYTES", 1)
    assert explained(world, model).rows == 50
    monkeypatch.setattr(model_explanation, "MAX_CELLS", 30 * len(model.encoding.columns))
    assert explained(world, model).rows == 30


CATEGORIES = st.lists(st.sampled_from("abcdef"), unique=True, min_size=1, max_size=6)


@settings(max_examples=50, database=None)
@given(CATEGORIES, CATEGORIES, st.lists(st.sampled_from([*"abcdefg", None]), min_size=1, max_size=20))
def test_recoded_rows_are_those_that_the_other_encoding_makes(
    first: list[str], second: list[str], values: list[str | None]
) -> None:
    table = pa.table({"k": pa.array(values, pa.string()), "x": np.arange(len(values), dtype=np.float64)})
    source, target = Encoding(("k", "x"), {"k": first}), Encoding(("x", "k"), {"k": second})
    expected, known = target.encode(table), np.isin(np.array(values, object), first)
    recoded = target.recode(source.encode(table), source)
    assert np.array_equal(recoded[known], expected[known], equal_nan=True)
    assert np.isnan(recoded[~known, 1]).all(), "what the source does not know is missing"
