"""The recipe of a version: all that its training read and ran with, so that it can be trained again.

It is stored with the version (``recipe.json``), and its digest is in the ledger like those of the other files.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from perennial.core import runtime
from perennial.core.errors import ArtifactError
from perennial.core.partitions import Cadence
from perennial.core.settings import settings
from perennial.spec.model_spec import ModelSpec
from perennial.training.runs.training_inputs import PinnedData, TrainingRequest
from perennial.training.windows import Windows

#: Name of the file among those of a version.
ARTIFACT = "recipe.json"
FORMAT = 1
#: Distributions whose version may change a model.
_PACKAGES = ("xgboost", "xgboost-cpu", "numpy", "scipy", "duckdb", "pyarrow", "optuna", "dask", "distributed")


@dataclass(frozen=True)
class Recipe:
    """What a training read and ran with.

    Attributes:
        as_of: partition date of the training.
        published: version of the published rows.
        labels: version of the labels; None if the rows contain them.
        tables: version of each reference table and feature table, by name.
        windows: partitions of each candidate window by what they are for, as ranges ``start..end``.
        inputs: digests of what was read.
        champion: version of the champion that it was compared with; None if there was none.
        not_compared: why there was no comparison; empty otherwise.
        workers: number of processes that fitted the model together.
        threads: threads of the training, on which the sums of floating-point numbers depend.
        memory_mb: its memory, on which the binning of many rows depends.
        environment: versions of what it ran with, by name.
    """

    as_of: str
    published: int
    labels: int | None
    tables: dict[str, int]
    windows: dict[str, dict[str, list[str]]]
    inputs: dict[str, Any]
    champion: str | None
    not_compared: str
    workers: int
    threads: int
    memory_mb: int
    environment: dict[str, str]

    @classmethod
    def of(cls, spec: ModelSpec, request: TrainingRequest, pinned: PinnedData, not_compared: str) -> Recipe:
        """The recipe of a training that starts now, in this environment.

        Args:
            spec: the model.
            request: what was asked for.
            pinned: what is read.
            not_compared: why the champion is not compared with; empty otherwise.
        """
        return cls(
            as_of=request.as_of,
            published=pinned.version,
            labels=pinned.labels_version,
            tables=pinned.reference_versions,
            windows={name: _as_ranges(spec.cadence, windows) for name, windows in pinned.windows.items()},
            inputs=pinned.inputs,
            champion=pinned.champion_version,
            not_compared=not_compared,
            workers=request.workers,
            threads=settings().threads,
            memory_mb=settings().memory_mb,
            environment=environment(),
        )

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_dict` returned.

        Raises:
            ArtifactError: it is not one.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            return cls(**{name: content[name] for name in cls.__dataclass_fields__})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{ARTIFACT} is not a recipe: {error}", "another version of the library wrote it"
            ) from error

    def candidate_windows(self, cadence: Cadence) -> dict[str, Windows]:
        """The windows that were tried, by name."""
        return {
            name: Windows(*(_keys(cadence, parts[part]) for part in ("fit", "valid", "holdout")))
            for name, parts in self.windows.items()
        }

    @contextmanager
    def same_limits(self) -> Iterator[None]:
        """Let this process train with the threads and the memory of the recipe while the block runs."""
        names = {"PERENNIAL_THREADS": str(self.threads), "PERENNIAL_MEMORY_MB": str(self.memory_mb)}
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def differences(self) -> list[str]:
        """What this environment has other than that of the recipe, in words."""
        here = environment()
        names = {**self.environment, **here}
        return [
            f"{name}: {self.environment.get(name, 'absent')} then, {here.get(name, 'absent')} now"
            for name in names
            if self.environment.get(name) != here.get(name)
        ]


def environment() -> dict[str, str]:
    """Versions of what a training runs with, by name."""
    versions = {
        "library": runtime.library_digest()[:12],
        "Python": platform.python_version(),
        "processor": platform.machine(),
    }
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _as_ranges(cadence: Cadence, windows: Windows) -> dict[str, list[str]]:
    parts = {"fit": windows.fit, "valid": windows.valid, "holdout": windows.holdout}
    return {part: [str(span) for span in cadence.contiguous_ranges(keys)] for part, keys in parts.items()}


def _keys(cadence: Cadence, spans: Iterable[str]) -> tuple[str, ...]:
    return tuple(key for span in spans for key in cadence.range(*span.split("..")))
