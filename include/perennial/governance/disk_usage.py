"""Disk use of a model in the lake, by table."""

from __future__ import annotations

from typing import TypedDict

from perennial.core.settings import settings
from perennial.features import feature_tables, reference_tables
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, object_store

#: Folders of the lake, other than tables, that hold files of a model.
FOLDERS = ("reports", "checkpoints", "manifests")


class DiskUse(TypedDict):
    """What a table, or another folder, takes.

    Attributes:
        name: kind of the table, or ``features.<table>``, ``references.<table>``, or a folder of `FOLDERS`.
        bytes: of all files.
        older: of those, bytes of data files that only older versions of the table have.
        files: number of files.
    """

    name: str
    bytes: int
    older: int
    files: int


def of_model(spec: ModelSpec) -> list[DiskUse]:
    """What is stored of a model, largest first; feature and reference tables are shared with other models.

    Raises:
        StorageError: the lake cannot be read.
    """
    tables = {kind: delta_tables.table_uri(kind, spec.name) for kind in delta_tables.KINDS}
    tables |= {f"features.{table.name}": feature_tables.uri(table) for _, table in spec.feature_tables}
    tables |= {f"references.{r.name}": reference_tables.uri(r) for r in spec.references}
    uses = [_use(name, uri, is_table=True) for name, uri in tables.items()]
    uses += [_use(name, f"{settings().lake}/{name}/{spec.name}", is_table=False) for name in FOLDERS]
    return sorted((use for use in uses if use["files"]), key=lambda use: -use["bytes"])


def _use(name: str, uri: str, *, is_table: bool) -> DiskUse:
    files = object_store.list_files(uri, recursive=True)
    current = set(delta_tables.file_paths(uri)) if is_table and files else set()
    older = (
        sum(
            stat.size
            for path, stat in files.items()
            if path.endswith(".parquet") and not path.startswith("_delta_log/") and path not in current
        )
        if is_table
        else 0
    )
    return DiskUse(name=name, bytes=sum(stat.size for stat in files.values()), older=older, files=len(files))
