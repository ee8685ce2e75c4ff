"""The encoding of feature columns as a matrix: fixed at training and stored in the model.

A category's code is its position in an order: that of names, or of mean labels (`training._category_order`). XGBoost
splits on such codes three times as fast as on native categories, with the same accuracy on the sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import DataError


@dataclass(frozen=True)
class Encoding:
    """How feature columns become the matrix that a model reads.

    Attributes:
        columns: feature names, in the model's order.
        categories: categories of each categorical column, in the order of their codes.
        unseen: how a category unseen in training is encoded: ``missing`` (NaN), or ``stop`` (an error).
        hashed: categorical columns of personal data; their categories are `hash_categories` of the texts.
        salt: salt of these hashes, hexadecimal.
    """

    columns: tuple[str, ...]
    categories: dict[str, list[str]]
    unseen: str = "missing"
    hashed: tuple[str, ...] = ()
    salt: str = ""

    def encode(self, features: pa.Table, out: np.ndarray | None = None) -> np.ndarray:
        """Encode features; null, NaN and infinite values become NaN.

        Args:
            features: the features, a column each.
            out: float32 matrix of shape (rows, columns) to fill; a new one when not given.

        Returns:
            float32 matrix of shape (rows, columns).

        Raises:
            DataError: an unseen category where the policy is ``stop``, or a missing feature column.
        """
        if out is None:
            out = np.empty((features.num_rows, len(self.columns)), dtype=np.float32)
        for j, name in enumerate(self.columns):
            try:
                chunks = features.column(name)
            except KeyError:
                raise DataError(
                    f"feature {name!r} is missing",
                    "features.sql does not return what this version was trained on: train again",
                ) from None
            # combine_chunks would copy even a single chunk.
            combined = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
            column = cast("pa.Array[Any]", combined)
            if name in self.categories:
                column = self._codes(name, column)
            with np.errstate(over="ignore"):  # beyond float32: infinite, encoded as missing
                out[:, j] = _as_floats(column)
        # XGBoost refuses infinities.
        if not np.isfinite(out.sum(dtype=np.float64)):
            out[~np.isfinite(out)] = np.nan
        return out

    def recode(self, matrix: np.ndarray, source: Encoding) -> np.ndarray:
        """Encoded rows of an encoding of the same features, with the codes of this one; unknown categories are NaN.

        Args:
            matrix: rows as ``source`` encodes them, shape (rows, columns).
            source: the other encoding.
        """
        if self == source:
            return matrix
        result = matrix[:, [source.columns.index(name) for name in self.columns]]
        for j, name in enumerate(self.columns):
            if name in self.categories:
                codes = {category: code for code, category in enumerate(self.categories[name])}
                ranks = [codes.get(category, np.nan) for category in source.categories[name]]
                lookup = np.array([*ranks, np.nan], np.float32)
                known = np.where(np.isnan(result[:, j]), len(ranks), result[:, j]).astype(np.int64)
                result[:, j] = lookup[known]
        return result

    def _codes(self, name: str, column: pa.Array[Any]) -> pa.Array[Any]:
        """The code of each category; null for one that is missing or unseen."""
        text = hash_categories(column, self.salt) if name in self.hashed else _as_text(column)
        known = pa.array(self.categories[name], pa.string())
        codes: pa.Array[Any] = pc.index_in(text, value_set=known, skip_nulls=True)
        if self.unseen == "stop" and codes.null_count > text.null_count:
            raise DataError(
                f"feature {name!r} has {codes.null_count - text.null_count} rows with a category "
                "unseen in training",
                "train again on data that has it; or set features.unseen to missing, and train again (a version keeps "
                "the policy that it was trained with)",
            )
        return codes


def hash_categories(column: Any, salt: str) -> Any:
    """Replace each category of a column by a keyed hash of its text (BLAKE2b, 128 bits, hexadecimal).

    So the model file has no categories of personal data, and hashes of likely values that were computed for another
    model are of no use. Whoever has the file can still test whether a value that he guesses was among them.

    Args:
        column: an Arrow array of categories, or several chunks.
        salt: hexadecimal, at most 64 bytes.
    """
    if isinstance(column, pa.ChunkedArray):
        chunks: list[pa.Array[Any]] = [hash_categories(chunk, salt) for chunk in column.chunks]
        return pa.chunked_array(chunks, pa.string())
    encoded = _as_text(column).dictionary_encode()
    key = bytes.fromhex(salt)
    hashes = [
        hashlib.blake2b(text.encode(), digest_size=16, key=key).hexdigest()
        for text in encoded.dictionary.to_pylist()
    ]
    return pa.array(hashes, pa.string()).take(encoded.indices)


def distinct_categories(column: pa.ChunkedArray[Any]) -> list[str]:
    """The distinct categories of a column, as `Encoding.encode` looks them up, in order of appearance."""
    return [str(c) for c in pc.unique(_as_text(column)).to_pylist() if c is not None]


def _as_text(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> Any:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _as_floats(column: pa.Array[Any]) -> np.ndarray:
    if pa.types.is_boolean(column.type) or pa.types.is_decimal(column.type):
        column = column.cast(pa.int8() if pa.types.is_boolean(column.type) else pa.float64(), safe=False)
    if column.null_count:
        # Arrow converts nulls to NaN in float64 only; assignment to the matrix narrows it.
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    return np.asarray(column.to_numpy(zero_copy_only=False))
