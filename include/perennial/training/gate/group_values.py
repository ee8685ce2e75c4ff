"""The groups of ``gate.fairness``, of which the held-out rows are collected table by table.

A group is the rows with one value of a column, between two edges of a column of numbers, or with one combination of
such. Rows whose value is not among ``gate.fairness.values`` are in no group, and their values are not kept: those of a
column of personal data never leave the table that was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from perennial.core.html import printable
from perennial.modeling.performance import NO_VALUE, SliceValues
from perennial.spec.gate.fairness import FairnessGate

#: Stands between the names of a combination.
_TIMES = " × "
#: The values of all rows that are in no group; a declared value cannot have this character.
_UNDECLARED = "\0"


@dataclass(frozen=True)
class Grouping:
    """The rows by one entry of ``gate.fairness.groups``.

    Attributes:
        columns: its columns.
        names: of its groups.
        codes: number of each row's group, shape (rows,); -1 for a row in none.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    codes: np.ndarray

    @property
    def title(self) -> str:
        """The columns as people write them."""
        return printable(_TIMES.join(self.columns), 80)


class GroupValues:
    """The groups of the held-out rows; none without ``gate.fairness``.

    Args:
        policy: the section; None if there is none.
    """

    def __init__(self, policy: FairnessGate | None) -> None:
        self._policy = policy
        self._values = SliceValues(policy.columns if policy else ())

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table that has the columns."""
        if self._policy is not None:
            self._values.add(pa.table({c: self._texts(c, table.column(c)) for c in self._policy.columns}))

    def groupings(self) -> Iterator[Grouping]:
        """Each entry of ``gate.fairness.groups``."""
        if self._policy is None:
            return
        numbered = {column: self._numbered(column) for column in self._policy.columns}
        for columns in self._policy.groups:
            names, codes = numbered[columns[0]]
            for column in columns[1:]:
                names, codes = _combine((names, codes), numbered[column])
            yield Grouping(tuple(columns), tuple(names), codes)

    def _texts(self, column: str, values: pa.ChunkedArray[Any]) -> pa.Array[Any]:
        """The name of each row's group."""
        assert self._policy is not None
        if edges := self._policy.edges.get(column):
            numbers = values.cast(pa.float64()).to_numpy()
            ranges = np.array(_ranges(edges), dtype=object)[np.searchsorted(edges, numbers, "right")]
            ranges[np.isnan(numbers)] = None
            return pa.array(ranges, pa.string())
        texts = values.cast(pa.string()).combine_chunks()
        if declared := self._policy.values.get(column):
            encoded = texts.dictionary_encode()
            known = {*declared, NO_VALUE}
            names = [n if n is None or n in known else _UNDECLARED for n in encoded.dictionary.to_pylist()]
            return pa.array(names, pa.string()).take(encoded.indices)
        return texts

    def _numbered(self, column: str) -> tuple[list[str], np.ndarray]:
        """The names of a column's groups in order, and the number of each row's group."""
        assert self._policy is not None
        names, codes = self._values.codes(column)
        if edges := self._policy.edges.get(column):
            order = [*_ranges(edges), NO_VALUE]
        else:
            order = [*self._policy.values.get(column, sorted(names)), NO_VALUE]
        present = set(names)
        ordered = [name for name in dict.fromkeys(order) if name in present]
        positions = {name: position for position, name in enumerate(ordered)} | {_UNDECLARED: -1}
        rank = np.array([positions[name] for name in names] or [-1])
        return ordered, rank[codes]


def _ranges(edges: Sequence[float]) -> list[str]:
    """The names of the groups that edges divide numbers into, from the lowest."""
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{low} to below {high}" for low, high in pairwise(shown)]
    return [f"below {shown[0]}", *between, f"{shown[-1]} or more"]


def _combine(
    first: tuple[list[str], np.ndarray], second: tuple[list[str], np.ndarray]
) -> tuple[list[str], np.ndarray]:
    """The combinations that rows have of two groups."""
    codes = np.where((first[1] < 0) | (second[1] < 0), -1, first[1] * len(second[0]) + second[1])
    present, combined = np.unique(codes, return_inverse=True)
    missing = int(len(present) > 0 and present[0] < 0)
    names = [
        f"{first[0][c // len(second[0])]}{_TIMES}{second[0][c % len(second[0])]}" for c in present[missing:]
    ]
    return names, combined - missing
