"""Categories in the order of their mean label in the rows to fit on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import read_labelled_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training._category_order import LabelSums, order_categories
from support import lake, training_rows

Make = Callable[..., ModelSpec]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(st.none() | st.integers(0, 5), FLOATS), min_size=1, max_size=40)


def block(codes: list[int | None] | np.ndarray, y: list[float] | np.ndarray) -> LabelSums:
    labels = LabelSums()
    labels.add(np.array(codes, np.float32), np.array(y, np.float32))
    return labels


def order(names: list[str], codes: np.ndarray, y: np.ndarray) -> list[str]:
    return order_categories([(names, block(codes, y))])


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_sums_are_exact_and_the_order_is_that_of_any_blocks(
    rows: list[tuple[int | None, float]], random: object, count: int
) -> None:
    names = [f"c{i}" for i in range(6)]
    whole = block([c for c, _ in rows], [y for _, y in rows])
    for code, (n, total) in enumerate(zip(whole.rows, whole.sums, strict=True)):
        labels = [Fraction(y) for c, y in rows if c == code]
        assert (n, Fraction(total, 2**173)) == (len(labels), sum(labels))
    assert Fraction(whole.squares, 2**346) == sum(Fraction(y) ** 2 for c, y in rows if c is not None)
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    blocks = []
    for part in (shuffled[i::count] for i in range(count)):
        present = list(dict.fromkeys(c for c, _ in part if c is not None))
        codes = [None if c is None else present.index(c) for c, _ in part]
        blocks.append(([names[c] for c in present], block(codes, [y for _, y in part])))
    known = sorted({names[c] for c, _ in rows if c is not None})
    expected = order_categories([(names[: len(whole.rows)], whole)])
    assert order_categories(blocks) == [c for c in expected if c in known]


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_a_single_split_is_the_best_partition_where_names_mislead(offset: float) -> None:
    rng = np.random.default_rng(0)
    names, effects = list("abcdefgh"), np.array([3, -2, 2, -3, 1, -1, 4, -4])
    codes = rng.integers(0, 8, 4000)
    y = (effects[codes] + offset + rng.normal(size=4000)).astype(np.float32)
    ordered = order(names, codes, y)
    assert ordered == ["h", "d", "b", "f", "e", "c", "a", "g"]

    def squared_error(groups: np.ndarray) -> float:
        return float(sum(y[groups == g].var() * (groups == g).sum() for g in (False, True)))

    best = min(
        squared_error(np.isin(codes, chosen))
        for size in range(1, 5)
        for chosen in itertools.combinations(range(8), size)
    )
    parameters = {"max_depth": 1, "learning_rate": 1, "reg_lambda": 0, "min_child_weight": 0, "nthread": 1}

    def error_of_stump(rank: dict[str, int]) -> float:
        x = np.array([rank[names[c]] for c in codes])[:, None]
        rows = xgboost.DMatrix(x, y)
        return float(((xgboost.train(parameters, rows, 1).predict(rows) - y) ** 2).sum())

    assert error_of_stump({c: r for r, c in enumerate(ordered)}) == pytest.approx(best, rel=1e-3)
    assert error_of_stump({c: r for r, c in enumerate(names)}) > 1.5 * best


def test_means_that_differ_by_chance_are_in_the_order_of_names() -> None:
    rng = np.random.default_rng(1)
    names = [f"{i:03d}" for i in range(400)]
    codes, y = rng.integers(0, 400, 2000), rng.normal(size=2000).astype(np.float32)
    assert order(names[::-1], codes, y) == names
    few = np.arange(400) % 5 == 0
    ordered = order(names, codes, np.where(few[codes], 5 + y, y))
    assert set(ordered[-80:]) == {c for c, big in zip(names, few, strict=True) if big}


def test_without_labels_or_differences_names_decide() -> None:
    assert order_categories([(["b", "a"], LabelSums()), (["c"], LabelSums())]) == ["a", "b", "c"]
    assert order_categories([(["b", "a"], block([0, 1], [0, 1]))]) == ["a", "b"]  # one row each
    assert order_categories([([], LabelSums())]) == []
    assert order_categories([(["b", "a"], block([None, None], [1, 2]))]) == ["a", "b"]
    assert order_categories([(["b", "a"], block([0, 0, 1, 1], [7, 7, 7, 7]))]) == ["a", "b"]
    assert order_categories([(["a", "b"], block([0, 0, 1, 1], [9, 9, 7, 7]))]) == ["b", "a"]
    # one that only rows for early stopping have is in the middle
    assert order_categories([(["a", "b"], block([0, 0, 1, 1], [9, 9, 7, 7])), (["z"], LabelSums())]) == [
        "b", "z", "a",
    ]  # fmt: skip
    assert order_categories([(["a", "b"], block([0, 0, 1, 1], [3e38, 3e38, -3e38, -3e38]))]) == ["b", "a"]


def with_labels(spec: ModelSpec, days: tuple[str, ...], y: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the labels of some dates by a function of the category."""
    tables = {
        kind: lake.read_table(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")
    }
    rows = dict(zip(tables["published"]["id"].to_pylist(), tables["published"]["k"].to_pylist(), strict=True))
    labels = tables["labels"]
    for day in days:
        of_day = labels.filter(pc.equal(labels[delta_tables.PARTITION], day))
        values = y(np.array([rows[i] for i in of_day["id"].to_pylist()]))
        at = of_day.column_names.index("label")
        column = pa.array(values).cast(of_day.schema.field("label").type)
        delta_tables.replace(
            delta_tables.table_uri("labels", spec.name), of_day.set_column(at, "label", column), day, day
        )


@pytest.mark.parametrize(
    ("task", "expected"),
    [("binary", "bca"), ("regression", "bca"), ("ranking", "bca")],
)
def test_only_labels_of_rows_to_fit_on_order_categories(
    make: Make, tmp_path: Path, task: str, expected: str
) -> None:
    spec = make(task, features={"category_order": "label"})
    windows = training_rows.windows(spec)
    rng = np.random.default_rng(0)
    share = {"a": 0.9, "b": 0.1, "c": 0.5}

    def values(k: np.ndarray, share: dict[str, float] = share) -> np.ndarray:
        drawn = rng.random(len(k)) < [share[c] for c in k]
        return drawn.astype(int)

    with_labels(spec, windows.fit, values)
    with_labels(spec, windows.valid, values)
    data = training_rows.in_process(spec, tmp_path)
    assert "".join(data.encoding.categories["k"]) == expected
    versions = [
        delta_tables.version(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")
    ]
    tables = list(read_labelled_rows(spec, windows.fit + windows.valid, *versions))
    encoded = [data.encoding.encode(FeatureQuery(spec).compute(t)) for t in tables]
    assert np.array_equal(np.concatenate(encoded), data.head(data.rows), equal_nan=True)
    for days in (windows.valid, windows.holdout):
        with_labels(spec, days, lambda k: values(k, {"a": 0.0, "b": 1.0, "c": 0.2}))
    (tmp_path / "again").mkdir()
    assert training_rows.in_process(spec, tmp_path / "again").encoding == data.encoding
    with_labels(spec, windows.fit, lambda k: values(k, {"a": 0.1, "b": 0.9, "c": 0.4}))
    (tmp_path / "other").mkdir()
    other = training_rows.in_process(spec, tmp_path / "other").encoding.categories["k"]
    assert "".join(other) == "acb"


def test_hashed_categories_are_ordered_by_the_mean_label(make: Make, tmp_path: Path) -> None:
    plain = make("regression", features={"category_order": "label"})
    rng = np.random.default_rng(0)

    def values(k: np.ndarray) -> np.ndarray:
        return np.array([{"a": 5.0, "b": 1.0, "c": 9.0}[c] for c in k]) + rng.normal(size=len(k))

    with_labels(plain, training_rows.windows(plain).fit, values)
    assert training_rows.in_process(plain, tmp_path).encoding.categories["k"] == ["b", "a", "c"]
    spec = make(
        "regression",
        data={"personal": ["k"]},
        features={"category_order": "label", "personal": {"k": "a test of hashes"}},
    )
    with_labels(spec, training_rows.windows(spec).fit, values)
    (tmp_path / "hashed").mkdir()
    encoding = training_rows.in_process(spec, tmp_path / "hashed").encoding
    assert encoding.hashed == ("k",) and all(len(c) == 32 for c in encoding.categories["k"])
    codes = encoding.encode(
        pa.table(
            {c: pa.array([0.0] * 3) if c != "k" else pa.array(["b", "a", "c"]) for c in encoding.columns}
        )
    )
    assert codes[:, encoding.columns.index("k")].tolist() == [0, 1, 2]
