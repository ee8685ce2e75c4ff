"""Old definitions of feature tables: deleted from the lake when no model uses them any more.

Another definition of a feature table is another table, so that a champion keeps the one that it was trained with. What
is deleted is computed again if it is needed after all, as after a rollback.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.core.errors import PerennialError, RegistryRequestError
from perennial.core.settings import settings
from perennial.lifecycle import promotion
from perennial.modeling import registry, training_records
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, ledger, locks, object_store

#: How long nothing was computed for a definition that is deleted: another process may know models that this one does
#: not know.
MIN_AGE = timedelta(days=30)
#: What the lake calls a definition (`feature_tables.table_name`).
_DEFINITION = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{8}")
log = logging.getLogger("perennial")


def delete_unused(min_age: timedelta = MIN_AGE) -> list[str]:
    """Delete the definitions for which nothing was computed for some time, and which nothing uses.

    In use is what the folders of feature tables define, and what versions in use were trained with; of a model that is
    held, all versions.

    Args:
        min_age: how long nothing was computed for a definition that is deleted.

    Returns:
        Names of the deleted definitions in the lake.

    Raises:
        PerennialError: a folder is invalid, or MLflow or the lake cannot be reached; it is then not known what is used.
    """
    folder = f"{settings().lake}/features"
    old = [n for n in object_store.list_folders(folder) if _DEFINITION.fullmatch(n) and _is_old(n, min_age)]
    if not old:
        return []
    used = set(_used())
    deleted = [name for name in old if name not in used]
    for name in deleted:
        with locks.hold(f"features-{name}", timeout=0):
            _delete(name)
        log.info("Feature table %s was deleted: nothing uses this definition", name)
    return deleted


def delete_unused_quietly() -> None:
    """As `delete_unused`; what cannot be found out or deleted is left to the next day, as no step depends on it."""
    try:
        delete_unused()
    except (PerennialError, OSError) as error:
        text = error.cause if isinstance(error, PerennialError) else type(error).__name__
        log.warning("Unused feature tables were not deleted: %s", text)


def _is_old(name: str, min_age: timedelta) -> bool:
    table = delta_tables.open_table(delta_tables.table_uri("features", name))
    if table is None:
        return False
    written = datetime.fromtimestamp(table.history(1)[0]["timestamp"] / 1e3, UTC)
    return written < datetime.now(UTC) - min_age


def _used() -> Iterator[str]:
    """The definitions in use, or of a model that is held.

    Raises:
        PerennialError: that is not known.
    """
    from perennial.features import feature_tables  # not at the top: it imports DuckDB

    models, broken = catalog.load_models()
    if broken:
        raise broken[0]
    for name in catalog.find_folders(catalog.TABLE_FILE):
        yield feature_tables.table_name(catalog.load_feature_table(name))
    for spec in models.values():
        for trained in _trained_specs(spec):
            yield from (feature_tables.table_name(table) for _, table in trained.feature_tables)


def _trained_specs(spec: ModelSpec) -> Iterator[ModelSpec]:
    """What the versions in use of a model were trained from; all of its versions while it is held.

    Raises:
        PerennialError: MLflow lost a version in use.
    """
    used = promotion.in_use(spec)
    lost = [number for number, version in used.items() if version.version is None]
    if lost:
        raise RegistryRequestError(
            f"MLflow does not have version {lost[0]}, which is in use: it is not known what it was trained on",
            "restore MLflow from a backup",
            model=spec.name,
        )
    numbers = {*used}
    if ledger.open_holds(spec.name):
        numbers |= {record.version for record in training_records.all_records(spec.name)}
    for number in sorted(numbers, key=int):
        version = registry.find_version(spec.name, number)
        if version is not None:
            yield registry.load_spec(version)


def _delete(name: str) -> None:
    """Delete a definition: first what says that its partitions are computed, and last what says that it is there."""
    lake, uri = settings().lake, delta_tables.table_uri("features", name)
    for folder in (f"{lake}/manifests/{name}", f"{lake}/digests/features/{name}", uri):
        files = object_store.list_files(folder, recursive=True)
        for file in sorted(files, key=lambda path: (path.startswith("_delta_log"), path)):
            object_store.delete_file(f"{folder}/{file}")
        if not object_store.is_remote(folder):
            shutil.rmtree(Path(folder), ignore_errors=True)
