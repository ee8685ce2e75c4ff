"""Categories as codes, numbers as float32; what is not a finite number is missing."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core.errors import DataError
from perennial.modeling.encoding import Encoding, hash_categories

INF = float("inf")


def matrix(
    values: Any, categories: dict[str, list[str]] | None = None, unseen: str = "missing"
) -> list[float]:
    return Encoding(("c",), categories or {}, unseen).encode(pa.table({"c": values}))[:, 0].tolist()


def same(actual: list[float], expected: list[float]) -> bool:
    return np.array_equal(actual, expected, equal_nan=True)


def test_codes_are_ranks_and_unseen_is_missing() -> None:
    assert same(matrix(["b", "a", "zz", None, ""], {"c": ["a", "b"]}), [1, 0, np.nan, np.nan, np.nan])


def test_unseen_stops_where_the_spec_says_so() -> None:
    with pytest.raises(DataError, match="'c' has 2 rows with a category unseen in training"):
        matrix(["b", "zz", "yy", None], {"c": ["a", "b"]}, "stop")
    assert same(matrix(["b", None], {"c": ["a", "b"]}, "stop"), [1, np.nan])


def test_the_message_of_an_unseen_category_does_not_show_it() -> None:
    with pytest.raises(DataError) as error:
        matrix(["secret"], {"c": ["a"]}, "stop")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1.5, None, float("nan"), INF, -INF]),
        pa.array([1.5, None, float("nan"), INF, -INF], pa.float32()),
    ],
)
def test_what_is_not_finite_is_missing(values: pa.Array) -> None:
    assert same(matrix(values), [1.5, np.nan, np.nan, np.nan, np.nan])


def test_both_infinities_at_once_and_sums_that_overflow() -> None:
    assert same(matrix(pa.array([INF, -INF, 1.0])), [np.nan, np.nan, 1])
    assert same(matrix(pa.array([3e38, 3e38, 3e38])), np.float32([3e38] * 3).tolist())
    assert same(matrix(pa.array([1e300, 1.0])), [np.nan, 1])


@pytest.mark.parametrize(
    "values",
    [
        pa.array([True, False, None]),
        pa.array([1, 0, None], pa.int8()),
        pa.array([1, 0, None], pa.uint64()),
        pa.array([Decimal(1), Decimal(0), None], pa.decimal128(38, 0)),
        pa.chunked_array([[1.0], [0.0, None]]),
    ],
    ids=str,
)
def test_number_types(values: Any) -> None:
    assert same(matrix(values), [1, 0, np.nan])


def test_large_integers_do_not_fail() -> None:
    assert same(matrix(pa.array([2**62 + 1, None])), [float(2**62), np.nan])


def test_no_rows() -> None:
    assert Encoding(("c", "d"), {"d": []}).encode(
        pa.table({"c": pa.array([], pa.float64()), "d": pa.array([], pa.string())})
    ).shape == (0, 2)


def test_a_feature_that_is_gone_is_told() -> None:
    with pytest.raises(DataError, match="feature 'c' is missing"):
        Encoding(("c",), {}).encode(pa.table({"d": [1]}))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([True, False, None]),
        pa.array([1, 2, None]),
        pa.array([1.0, 2.5, None]),
        pa.array([dt.date(2024, 1, 1), None]),
        pa.array([dt.datetime(2024, 1, 1, 12), None]),
        pa.array(["a", None]).dictionary_encode(),
        pa.array(["a", None], pa.large_string()),
    ],
    ids=lambda v: str(v.type),
)
def test_categories_of_any_type_are_found_again(values: pa.Array) -> None:
    """What training learns as a category is what scoring looks up."""
    from perennial.modeling.encoding import distinct_categories

    known = distinct_categories(pa.chunked_array([values]))
    assert None not in known
    codes = matrix(values, {"c": sorted(known)}, "stop")
    assert [np.isnan(v) for v in codes] == [v is None for v in values.to_pylist()]


def test_personal_categories_are_looked_up_by_their_keyed_hash() -> None:
    texts = ["ann", None, "bob", "ann", "eve"]
    hashes = hash_categories(pa.chunked_array([texts[:2], texts[2:]]), "00ff").to_pylist()
    assert hashes[0] == hashes[3] and hashes[1] is None and len(set(hashes)) == 4
    assert all(h is None or (len(h) == 32 and h not in texts) for h in hashes)
    assert hash_categories(pa.array(["ann"]), "01").to_pylist() != hashes[:1], "another key, another hash"
    encoding = Encoding(("c",), {"c": sorted({hashes[0], hashes[2]})}, hashed=("c",), salt="00ff")
    codes = encoding.encode(pa.table({"c": texts}))[:, 0].tolist()
    first = float(hashes[0] > hashes[2])
    assert same(codes, [first, np.nan, 1 - first, first, np.nan])
    dictionary = pa.array(texts).dictionary_encode()
    assert same(encoding.encode(pa.table({"c": dictionary}))[:, 0].tolist(), codes)
