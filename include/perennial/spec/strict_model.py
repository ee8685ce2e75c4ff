"""The base of all sections of a spec, and the type of a column's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

__all__ = ["Column", "FolderSpec", "StrictModel"]

Column = Annotated[
    str,
    StringConstraints(strip_whitespace=False, min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$"),
]


class StrictModel(BaseModel):
    """Base of every section: unknown keys are refused, and values are immutable."""

    # Validated defaults: a default of 10 for a float becomes 10.0, as after a round trip through JSON, so that a spec
    # has the same digest wherever it is read.
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, validate_default=True)


class FolderSpec(StrictModel):
    """Base of what a folder with a YAML file and ``features.sql`` describes."""

    _folder: Path = Path()
    _sql: str = ""

    @property
    def folder(self) -> Path:
        """The folder that it was read from."""
        return self._folder

    @property
    def sql(self) -> str:
        """The text of ``features.sql``."""
        return self._sql
