"""Copies of reference tables by date: the rows of a partition join the copy that was there when it was due.

Otherwise a training would join rows of the past with what became known later, and a partition that is scored again
would get other features than it had.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.partitions import first_tick, nominal_start
from perennial.features import reference_tables
from perennial.features.reference_tables import Copy
from perennial.spec.model_spec import ModelSpec, ReferenceTable
from perennial.storage.delta_tables import PARTITION

log = logging.getLogger("perennial")


def due_at(spec: ModelSpec, partition: str) -> datetime:
    """When the rows of a partition are due by the schedule, in UTC: what lands later is not used for it."""
    tick = first_tick(spec.schedule.data, nominal_start(spec.cadence.shift(partition, 1)))
    return tick.replace(tzinfo=ZoneInfo(spec.cadence.zone)).astimezone(UTC)


def versions_of(
    spec: ModelSpec, versions: Mapping[str, int], partitions: Iterable[str]
) -> dict[str, dict[str, int]]:
    """The copy of each reference table that the rows of each partition join.

    Args:
        spec: the model.
        versions: version of each reference table by name; later copies are not used.
        partitions: keys of partitions.

    Returns:
        The version of each table by name, by partition.

    Raises:
        DataError: a table is not in the lake.
    """
    copies, days = _copies(spec, versions), sorted(partitions)
    for reference in spec.references:
        first = copies[reference.name][0].landed_at
        earlier = bisect_left(days, first, key=lambda day: due_at(spec, day))
        if earlier and reference.versions == "by_date":
            log.info(
                "%s: partitions %s to %s were due before the first copy of reference table %s (%s): they join that one",
                spec.name, days[0], days[earlier - 1], reference.name, first.isoformat(" ", "minutes"),
            )  # fmt: skip
    return {day: _versions_of(copies, spec, day) for day in days}


def are_joined(spec: ModelSpec, versions: Mapping[str, int], partition: str) -> bool:
    """Whether these versions of the reference tables, by name, are the copies that the rows of a partition join."""
    return _versions_of(_copies(spec, versions), spec, partition) == versions


def _versions_of(copies: Mapping[str, list[Copy]], spec: ModelSpec, partition: str) -> dict[str, int]:
    return {r.name: _copy_of(copies[r.name], spec, partition).version for r in spec.references}


def versions_within(
    spec: ModelSpec, versions: Mapping[str, int], partitions: Iterable[str]
) -> dict[str, list[int]]:
    """The copies of each reference table, by name, that the rows of some partitions join, oldest first."""
    chosen = versions_of(spec, versions, partitions).values()
    return {r.name: sorted({of_day[r.name] for of_day in chosen}) for r in spec.references}


def _copies(spec: ModelSpec, versions: Mapping[str, int]) -> dict[str, list[Copy]]:
    """The copies of each reference table that partitions may join, oldest first."""
    copies = {}
    for reference in spec.references:
        listed = reference_tables.copies(
            reference_tables.open_copy(spec, reference, versions[reference.name])
        )
        copies[reference.name] = listed if reference.versions == "by_date" else listed[-1:]
    return copies


def _copy_of(copies: list[Copy], spec: ModelSpec, partition: str | None) -> Copy:
    """The copy that the rows of a partition join: the newest one that was there; the first if there was none."""
    if partition is None or len(copies) == 1:
        return copies[-1]
    due = due_at(spec, partition)
    return next((copy for copy in reversed(copies) if copy.landed_at <= due), copies[0])


class ReferenceCopies:
    """The reference tables of a model on one connection: of each, the copy that the rows at hand join.

    The newest copies are loaded at first; more than one copy of a table is never loaded at a time.

    Args:
        con: the connection, on which each table is a temporary table of its name.
        spec: the model.
        versions: version of each reference table by name; later copies are not used.

    Raises:
        DataError: a table is not in the lake.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, spec: ModelSpec, versions: Mapping[str, int]) -> None:
        self._con, self._spec, self._newest = con, spec, versions
        self._copies = _copies(spec, versions)
        self._loaded: dict[str, int] = {}
        self._chosen: dict[str | None, tuple[int, ...]] = {}
        self.bind(None)

    @property
    def folders(self) -> list[str]:
        """The folders that `bind` reads."""
        return [reference_tables.uri(r) for r in self._spec.references if len(self._copies[r.name]) > 1]

    def bind(self, partition: str | None) -> None:
        """Let the tables be what the rows of a partition join; the newest copies for None.

        Raises:
            StorageError: a copy is gone, or is not what was written.
        """
        for reference, version in zip(self._spec.references, self._versions(partition), strict=True):
            if self._loaded.get(reference.name) != version:
                self._load(reference, version)
                self._loaded[reference.name] = version

    def _load(self, reference: ReferenceTable, version: int) -> None:
        newest = self._newest[reference.name]
        table = reference_tables.open_copy(self._spec, reference, version)
        later = None if version == newest else reference_tables.open_copy(self._spec, reference, newest)
        reference_tables.load_copy(self._con, self._spec, reference, table, later)

    def _versions(self, partition: str | None) -> tuple[int, ...]:
        if partition not in self._chosen:
            self._chosen[partition] = tuple(
                _copy_of(self._copies[r.name], self._spec, partition).version for r in self._spec.references
            )
        return self._chosen[partition]

    def group(self, partitions: Iterable[str]) -> list[list[str]]:
        """Divide partitions, in order, into groups whose rows join the same copies."""
        return [list(days) for _, days in groupby(partitions, self._versions)]

    def split(self, rows: pa.Table) -> list[tuple[str | None, np.ndarray]]:
        """Divide rows by the copies that they join.

        Args:
            rows: the rows; those without ``partition_date`` join the newest copies.

        Returns:
            A partition, and the positions of all rows that join the same copies as its rows, for each group.
        """
        if PARTITION not in rows.column_names or not self.folders or not len(rows):
            return [(None, np.arange(len(rows)))]
        encoded: Any = pc.dictionary_encode(rows.column(PARTITION).cast(pa.string()).combine_chunks())
        days = encoded.dictionary.to_pylist()
        numbers = {versions: i for i, versions in enumerate(dict.fromkeys(map(self._versions, days)))}
        group_of = np.array([numbers[self._versions(day)] for day in days])[encoded.indices.to_numpy()]
        first = {numbers[self._versions(day)]: day for day in reversed(days)}
        return [(first[i], np.flatnonzero(group_of == i)) for i in range(len(numbers))]
