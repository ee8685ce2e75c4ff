"""Find and read the folders of models, feature sets and feature tables."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn, TypeVar

from perennial.core.errors import SpecError
from perennial.core.settings import ROOT, settings
from perennial.core.sql import fold_identifier
from perennial.spec import compute_profile
from perennial.spec.constraints import check_columns
from perennial.spec.feature_table import SOURCE_SECTIONS, FeatureTable
from perennial.spec.model_spec import CUT, MAX_README, FeatureSet, ModelSpec
from perennial.spec.yaml_reader import display_path, key_location, parse_yaml, read_text

__all__ = [
    "TABLE_FILE",
    "find_folders",
    "load_feature_set",
    "load_feature_table",
    "load_feature_tables_of",
    "load_model",
    "load_model_by_name",
    "load_models",
    "load_models_joining",
]

_Named = TypeVar("_Named", ModelSpec, FeatureSet, FeatureTable)
#: File of a feature table's folder.
TABLE_FILE = "feature_table.yaml"


def find_folders(filename: str = "model.yaml") -> dict[str, Path]:
    """Find the folders of models, or of feature sets, by name.

    Searches ``include/models`` and the folders of ``PERENNIAL_MODELS``. Of two folders with the same name the first is
    used; `load_models` reports the other.

    Args:
        filename: file that such a folder contains: ``model.yaml``, ``feature_set.yaml`` or ``feature_table.yaml``.
    """
    return {folder.name: folder for folder in reversed(_folders(filename))}


def _folders(filename: str) -> list[Path]:
    roots = settings().models
    if filename == TABLE_FILE:
        roots = (ROOT / "include" / "features", *roots)
    return [path.parent for root in roots for path in sorted(root.glob(f"*/{filename}"))]


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
    spec = _parse(folder / "model.yaml", ModelSpec, folder.name)
    spec._folder = folder
    spec._sql = read_text(folder / "features.sql", spec.name)
    spec._suite = read_text(folder / "expectations.json", spec.name)
    spec._readme = _read_readme(folder / "README.md")
    sets = {} if sets is None else sets
    for name in spec.features.sets:
        if name not in sets:
            where = key_location(folder / "model.yaml", "features", "sets")
            sets[name] = load_feature_set(name, spec.name, f"{where}: ")
    spec._sets = tuple(sets[name] for name in spec.features.sets)
    spec._tables = tuple(
        load_feature_table(
            join.table, spec.name, f"{key_location(folder / 'model.yaml', 'features', 'tables')}: "
        )
        for join in spec.features.tables
    )
    _check_joins(spec)
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


def _read_readme(path: Path) -> str:
    """The beginning of a README, with `CUT` at the end if there is more.

    No step depends on it: what is no UTF-8 is replaced, and one that cannot be read is as good as none.
    """
    if not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(MAX_README + 1)
    except OSError:
        return ""
    return text if len(text) <= MAX_README else text[: MAX_README - len(CUT)] + CUT


def _parse(path: Path, kind: type[_Named], model: str | None) -> _Named:
    """Read the YAML file of a folder, whose name is that of the folder.

    Args:
        path: the file.
        kind: what it describes.
        model: the model that errors name.

    Raises:
        SpecError: it is invalid, or has another name; one line a problem.
    """
    name = path.parent.name
    result = parse_yaml(path, kind, name)
    if result.name != name:
        raise SpecError(
            f"{display_path(path)}: name is {result.name!r}, the folder is {name!r}",
            "give it the name of its folder",
            model=model,
        )
    return result


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
    result = _parse(folder / "feature_set.yaml", FeatureSet, model)
    result._folder = folder
    result._sql = read_text(folder / "features.sql", model)
    return result


def load_feature_table(name: str, model: str | None = None, where: str = "") -> FeatureTable:
    """Read the feature table called ``name``, and what is needed of the models that are its sources.

    Args:
        name: its name.
        model: the model that uses it, for errors.
        where: file and line at which the model names it, for errors.

    Raises:
        SpecError: there is none, its folder is invalid, or one of its sources is; one line a problem.
    """
    folders = find_folders(TABLE_FILE)
    if name not in folders:
        raise SpecError(
            f"{where}there is no feature table called {name!r}; there are: {', '.join(sorted(folders)) or 'none'}",
            "a feature table is a folder of include/features, or among the models, with feature_table.yaml and "
            "features.sql",
            model=model,
        )
    path = folders[name] / TABLE_FILE
    table = _parse(path, FeatureTable, model)
    models = find_folders()
    sources = []
    for source in table.sources:
        if source.model not in models:
            raise SpecError(
                f"{key_location(path, 'sources')}: there is no model called {source.model!r}",
                "a source of history is a model, whose published rows are read",
                model=model,
            )
        spec = parse_yaml(models[source.model] / "model.yaml", ModelSpec, source.model)
        if source.label and source.label in spec.data.columns and source.label != spec.label.expression:
            raise SpecError(
                f"{key_location(path, 'sources')}: label is {source.label!r}, a column of {source.model}",
                "choose another name for the label",
                model=model,
            )
        sources.append(ModelSpec.model_validate(spec.model_dump(mode="json", include=SOURCE_SECTIONS)))
    return FeatureTable.from_parts(
        table, read_text(folders[name] / "features.sql", model), tuple(sources), folders[name]
    )


def load_feature_tables_of(model: str) -> list[FeatureTable]:
    """Read the feature tables that read the rows of a model.

    Raises:
        SpecError: the folder of a feature table is invalid: it may read them.
    """
    tables = [load_feature_table(name) for name in sorted(find_folders(TABLE_FILE))]
    return [table for table in tables if any(source.model == model for source in table.sources)]


def load_models_joining(tables: Collection[str]) -> list[ModelSpec]:
    """Read the models whose features join one of some feature tables.

    Args:
        tables: names of the tables; where there are none, no model is read.

    Raises:
        SpecError: the folder of a model is invalid: it may join one.
    """
    if not tables:
        return []
    models, errors = load_models()
    if errors:
        raise errors[0]
    return [spec for spec in models.values() if any(join.table in tables for join in spec.features.tables)]


def _check_joins(spec: ModelSpec) -> None:
    """Refuse feature tables that cannot be joined with the rows.

    Raises:
        SpecError: a column is missing, has another type or another column's name, or there is no event time.
    """
    if not spec.features.tables:
        return
    where = key_location(spec.folder / "model.yaml", "features", "tables")

    def refuse(cause: str, remedy: str) -> NoReturn:
        raise SpecError(f"{where}: {cause}", remedy, model=spec.name)

    if spec.data.event_time is None:
        refuse("data.event_time is missing", "name the column by which what was known before can be found")
    taken = {fold_identifier(c): "data.columns" for c in spec.data.columns}
    references = {reference.name for reference in spec.references}
    for join, table in spec.feature_tables:
        if unknown := [c for c in join.on if c not in table.entity]:
            refuse(f"on names {unknown[0]!r}", f"the entity of {table.name} is {', '.join(table.entity)}")
        for column, kind in table.entity.items():
            column_of_rows = join.on.get(column, column)
            declared = spec.data.columns.get(column_of_rows, "no column")
            if declared != kind:
                refuse(
                    f"{table.name} is joined by {column_of_rows!r}, which is {declared} in data.columns and {kind} "
                    "in the table",
                    "name the column of the rows in on, or correct its type",
                )
        if table.name in references:
            refuse(f"{table.name} is also a reference table", "rename one of them")
        try:
            check_columns([join.prefix + column for column in table.features])
        except ValueError as error:
            refuse(f"prefix {join.prefix!r} of {table.name}: {error}", "choose another prefix")
        for column in table.features:
            name = fold_identifier(join.prefix + column)
            if name in taken:
                refuse(
                    f"{table.name} adds a column {join.prefix + column!r}, as {taken[name]} does",
                    "set a prefix for the columns of the table",
                )
            taken[name] = table.name
