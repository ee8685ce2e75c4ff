"""The content of ``feature_table.yaml``: features of an entity, computed from the history of published rows.

DAG files load every spec when Airflow parses them, so no heavy libraries are imported here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from perennial.core.durations import Duration
from perennial.core.partitions import Cadence
from perennial.core.sql import INTERNAL_PREFIX, same_identifier
from perennial.spec.constraints import check_columns
from perennial.spec.sections import Column, ColumnType, DataSpec, FolderSpec, Name, StrictModel

__all__ = ["SOURCE_SECTIONS", "VALID_FROM", "FeatureTable", "FeatureTest", "HistorySource"]

#: Column of a feature table with the time from which a row's values are known.
VALID_FROM = "valid_from"
#: Sections of a model that its rows as a source of history depend on, and that a spec must have.
SOURCE_SECTIONS = {"name", "task", "owner", "description", "group", "data", "label", "schedule"}
#: Keys that do not influence the values.
_NOT_IN_DIGEST = {"owner", "description", "known_after", "max_age", "tests"}


class HistorySource(StrictModel):
    """A model whose published rows are the history."""

    model: Name = Field(description="Name of the model; the SQL reads its rows under this name.")
    label: Column | None = Field(
        None,
        description="Name of the column that has the rows' label, null until it is known: labels that arrived before "
        "the partition began. When not given, the SQL sees no label.",
    )


class FeatureTest(StrictModel):
    """Rows of the history, and features that the SQL must compute from them."""

    name: str = Field(min_length=1, max_length=200, description="What is tested.")
    partition: str | None = Field(
        None,
        description="Key of the partition that is computed; that of the latest expected valid_from by default.",
    )
    history: list[dict[Column, Any]] = Field(
        [], description="Rows of the first source; columns left out are null."
    )
    sources: dict[Name, list[dict[Column, Any]]] = Field(
        {}, description="Rows of the other sources, by model."
    )
    features: list[dict[Column, Any]] = Field(
        min_length=1,
        description="Expected rows: entity, valid_from, and some or all of the features.",
    )


class FeatureTable(FolderSpec):
    """The content of ``feature_table.yaml``: features of an entity, computed from the history of published rows."""

    name: Name = Field(description="Name of the folder.")
    owner: str = Field(min_length=1, max_length=100, description="Who is responsible for it.")
    description: str = Field(min_length=1, max_length=1000, description="What it tells about the entity.")
    sources: list[HistorySource] = Field(
        min_length=1,
        max_length=8,
        description="Models whose published rows are the history. The table has the partitions of the first one, whose "
        "rows the SQL also reads as history.",
    )
    entity: dict[Column, ColumnType] = Field(
        min_length=1, max_length=4, description="Columns that identify the entity, and their types."
    )
    features: dict[Column, ColumnType] = Field(
        min_length=1, description="Columns that the SQL adds to the entity and valid_from, and their types."
    )
    lookback: Duration = Field(
        description="How much history before a partition the SQL reads: as long as its longest window."
    )
    known_after: Duration = Field(
        Duration(0, "hour"),
        description="How long after valid_from the values are really known; rows of a model see them from then on.",
    )
    max_age: Duration | None = Field(
        None, description="Age from which a value counts as unknown; the lookback when not given."
    )
    personal: list[Column] = Field(
        [],
        description="Features that depend on columns of personal data; a model's features that depend on them are "
        "personal, too.",
    )
    tests: list[FeatureTest] = Field(
        [], description="Tests of the SQL, which `perennial features check` runs."
    )
    # Models: `model_spec.source_specs` gives them their type, which this module cannot import.
    _sources: tuple[Any, ...] = ()

    @property
    def cadence(self) -> Cadence:
        """How often a partition begins: as in the first source."""
        data: DataSpec = self._sources[0].data
        return data.cadence

    @property
    def age_limit(self) -> Duration:
        """Age from which a value counts as unknown."""
        return self.max_age or self.lookback

    @property
    def digest(self) -> str:
        """SHA-256 of everything that influences the values: SQL, columns, lookback, and what the sources' rows are."""
        data = {"every", "timezone", "week_starts", "key", "event_time", "columns"}
        sources = [
            spec.model_dump(mode="json", include={"name": True, "label": True, "data": data})
            for spec in self._sources
        ]
        content = [self.model_dump(mode="json", exclude=_NOT_IN_DIGEST), self._sql, sources]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def bundle(self) -> dict[str, Any]:
        """The folder as one JSON-serialisable value, with what is needed of its sources."""
        return {
            "table": self.model_dump(mode="json"),
            "sql": self._sql,
            "sources": [spec.model_dump(mode="json", include=SOURCE_SECTIONS) for spec in self._sources],
        }

    @classmethod
    def from_parts(cls, table: Any, sql: str, sources: tuple[Any, ...], folder: Path = Path()) -> Self:
        """A table with its SQL and its sources.

        Args:
            table: content of ``feature_table.yaml``, or the table.
            sql: text of ``features.sql``.
            sources: the models of ``sources``, in order.
            folder: the folder that it was read from.
        """
        result = table if isinstance(table, cls) else cls.model_validate(table)
        result._sql, result._sources, result._folder = sql, sources, folder
        return result

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        names = [*self.entity, *self.features, VALID_FROM]
        check_columns(names)
        if same := same_identifier(names, str.lower):
            raise ValueError(f"entity and features: {same[0]!r} and {same[1]!r} are one name in SQL")
        if unknown := [c for c in self.personal if c not in self.features]:
            raise ValueError(f"personal names {unknown[0]!r}, which is not in features")
        models = [s.model for s in self.sources]
        if taken := [m for m in models if m in ("history", "period")]:
            raise ValueError(f"sources names {taken[0]!r}, a name that the SQL reads something else by")
        if repeated := [m for m in models if models.count(m) > 1]:
            raise ValueError(f"sources names {repeated[0]!r} twice")
        if reserved := [s.label for s in self.sources if s.label and s.label.startswith(INTERNAL_PREFIX)]:
            raise ValueError(
                f"sources[].label is {reserved[0]!r}: names that begin with {INTERNAL_PREFIX} are reserved"
            )
        if not self.lookback:
            raise ValueError("lookback is 0: write how much history the SQL needs, such as 7 days")
        return self
