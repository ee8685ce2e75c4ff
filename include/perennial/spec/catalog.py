"""Find and read the folders of models and feature sets."""

from __future__ import annotations

import difflib
from pathlib import Path

from perennial.core.errors import SpecError
from perennial.core.settings import settings
from perennial.spec import compute_profile
from perennial.spec.model_spec import FeatureSet, ModelSpec
from perennial.spec.yaml_reader import display_path, key_location, parse_yaml, read_text

__all__ = ["find_folders", "load_feature_set", "load_model", "load_model_by_name", "load_models"]


def find_folders(filename: str = "model.yaml") -> dict[str, Path]:
    """Find the folders of models, or of feature sets, by name.

    Searches ``include/models`` and the folders of ``PERENNIAL_MODELS``. Of two folders with the same name the first is
    used; `load_models` reports the other.

    Args:
        filename: file that such a folder contains: ``model.yaml`` or ``feature_set.yaml``.
    """
    return {folder.name: folder for folder in reversed(_folders(filename))}


def _folders(filename: str) -> list[Path]:
    return [path.parent for root in settings().models for path in sorted(root.glob(f"*/{filename}"))]


def load_model_by_name(name: str) -> ModelSpec:
    """Read the model called ``name``.

    Raises:
        SpecError: there is none, or its folder is invalid.
    """
    folders = find_folders()
    if name not in folders:
        close = difflib.get_close_matches(name, folders, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(folders)) or 'none'}"
        raise SpecError(f"there is no model called {name!r}", hint)
    return load_model(folders[name])


def load_models() -> tuple[dict[str, ModelSpec], list[SpecError]]:
    """Read every model; returns the valid models by name, and an error for each invalid one."""
    models: dict[str, ModelSpec] = {}
    errors: list[SpecError] = []
    sets: dict[str, FeatureSet] = {}
    first = find_folders()
    for folder in _folders("model.yaml"):
        try:
            if folder != first[folder.name]:
                raise SpecError(
                    f"{display_path(folder)} has the same name as {display_path(first[folder.name])}",
                    "rename one of them",
                    model=folder.name,
                )
            models[folder.name] = load_model(folder, sets)
        except SpecError as error:
            errors.append(error)
    return models, errors


def load_model(folder: Path, sets: dict[str, FeatureSet] | None = None) -> ModelSpec:
    """Read one model folder.

    Args:
        folder: the folder.
        sets: cache of feature sets, by name; those read here are added.

    Raises:
        SpecError: the folder is invalid; one line a problem.
    """
    folder = Path(folder)
    spec = parse_yaml(folder / "model.yaml", ModelSpec, folder.name)
    if spec.name != folder.name:
        raise SpecError(
            f"{display_path(folder / 'model.yaml')}: name is {spec.name!r}, the folder is {folder.name!r}",
            "a model has the name of its folder",
            model=folder.name,
        )
    spec._folder = folder
    spec._sql = read_text(folder / "features.sql", spec.name)
    spec._suite = read_text(folder / "expectations.json", spec.name)
    sets = {} if sets is None else sets
    for name in spec.features.sets:
        if name not in sets:
            where = key_location(folder / "model.yaml", "features", "sets")
            sets[name] = load_feature_set(name, spec.name, f"{where}: ")
    spec._sets = tuple(sets[name] for name in spec.features.sets)
    for step, profile in spec.compute.items():
        if profile != compute_profile.LOCAL:
            try:
                compute_profile.load_profile(profile)
            except SpecError as error:
                where = key_location(folder / "model.yaml", "compute", step)
                raise SpecError(
                    f"{where}: compute.{step}: {error.cause}", error.remedy, model=spec.name
                ) from None
    names = [r.name for r in spec.references]
    if duplicates := {n for n in names if names.count(n) > 1}:
        raise SpecError(
            f"{key_location(folder / 'model.yaml', 'features', 'references')}: reference table {min(duplicates)!r} "
            "is declared twice",
            "give each reference table its own name",
            model=spec.name,
        )
    return spec


def load_feature_set(name: str, model: str | None = None, where: str = "") -> FeatureSet:
    """Read the feature set called ``name``.

    Args:
        name: its name.
        model: the model that uses it, for errors.
        where: file and line at which the model names it, for errors.

    Raises:
        SpecError: there is none, or its folder is invalid; one line a problem.
    """
    folders = find_folders("feature_set.yaml")
    if name not in folders:
        raise SpecError(
            f"{where}features.sets names {name!r}; there are: {', '.join(folders) or 'none'}",
            "a feature set is a folder among the models, with feature_set.yaml and features.sql",
            model=model,
        )
    folder = folders[name]
    result = parse_yaml(folder / "feature_set.yaml", FeatureSet, name)
    if result.name != name:
        raise SpecError(
            f"{display_path(folder / 'feature_set.yaml')}: name is {result.name!r}, the folder is {name!r}",
            "a feature set has the name of its folder",
            model=model,
        )
    result._folder = folder
    result._sql = read_text(folder / "features.sql", model)
    return result
