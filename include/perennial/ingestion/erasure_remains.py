"""What an erasure of rows removes as a whole, or cannot remove: reports, landed files, what was made of the rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from perennial.features import feature_tables
from perennial.spec import catalog
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, landing, object_store


def may_be_quoted(spec: ModelSpec, columns: Collection[str]) -> bool:
    """Whether reports may quote one of some columns: one that is not declared personal."""
    return not set(columns) <= set(spec.personal_columns)


def reports(spec: ModelSpec, columns: Collection[str], partitions: Iterable[str]) -> list[str]:
    """The data docs and profiles of partitions, if they may quote one of some columns."""
    if not may_be_quoted(spec, columns):
        return []
    root, days = delta_tables.table_uri("reports", spec.name), list(partitions)
    return [
        f"{root}/{kind}/{name}"
        for kind in ("validation", "profile")
        for name in object_store.list_files(f"{root}/{kind}")
        if any(_covers(name.partition(".html")[0].partition(".json")[0], day) for day in days)
    ]


def other_reports(spec: ModelSpec, columns: Collection[str]) -> list[str]:
    """The folders of other reports, if they may quote one of some columns."""
    if not may_be_quoted(spec, columns):
        return []
    root = delta_tables.table_uri("reports", spec.name)
    kinds = sorted({*object_store.list_folders(root)} - {"validation", "profile"})
    return [f"reports, which may quote frequent values ({root}/{kind})" for kind in kinds]


def other_entities(columns: Collection[str], readers: Sequence[FeatureTable]) -> list[str]:
    """The feature tables that read such rows, and have features of another entity."""
    return [
        f"feature table {table.name}, of {', '.join(table.entity)}, until it is computed again"
        for table in readers
        if not set(columns) <= set(table.entity)
    ]


def same_columns(spec: ModelSpec, columns: dict[str, str]) -> list[str]:
    """Other models whose rows have some columns, given with their types.

    Raises:
        SpecError: the folder of a model is invalid.
    """
    models, errors = catalog.load_models()
    if errors:
        raise errors[0]
    wanted = columns.items()
    return sorted(n for n, s in models.items() if n != spec.name and wanted <= s.data.columns.items())


def other_sources(spec: ModelSpec, readers: Sequence[FeatureTable]) -> list[str]:
    """The other models whose rows feature tables read."""
    return sorted({source.model for table in readers for source in table.sources} - {spec.name})


def _covers(name: str, day: str) -> bool:
    """Whether a report of this name is about a partition: ``day``, ``day.suffix`` or ``first..last``."""
    first, separator, last = name.partition("..")
    return first <= day <= last if separator else name.startswith(day)


def definitions() -> list[str]:
    """The definitions of feature tables in the lake, by name."""
    return sorted(object_store.list_folders(delta_tables.table_uri("features", "").rstrip("/")))


def without_folder() -> list[str]:
    """Definitions of feature tables whose folder is gone: nothing says whose rows they were computed from."""
    folders = catalog.find_folders(catalog.TABLE_FILE)
    return [
        f"feature table {n}, whose folder is gone"
        for n in definitions()
        if n.rpartition("-")[0] not in folders
    ]


def earlier_definitions() -> set[str]:
    """Definitions of feature tables that no folder has today, which may read the rows of any model.

    Raises:
        SpecError: the folder of a feature table is invalid.
    """
    tables = map(catalog.load_feature_table, catalog.find_folders(catalog.TABLE_FILE))
    return {*definitions()} - {*map(feature_tables.table_name, tables)}


def landed(spec: ModelSpec, partitions: Sequence[str]) -> list[str]:
    """The landed files of some partitions that are still there."""
    uris = [
        landing.source_uri(source, day)
        for source in (spec.data.source, spec.label.source)
        if isinstance(source, str)
        for day in partitions
    ]
    return [uri for uri in dict.fromkeys(uris) if landing.has_landed(uri)]
