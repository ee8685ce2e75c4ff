"""Retention: deletes what is older than a model's spec keeps, and nothing that is in use or held.

In use are champion, the version that a rollback returns to, a challenger on trial, and each version with an alias. Kept
are their files, the partitions that they were trained and evaluated on, and the table versions that their trainings
read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

from perennial.core.errors import PerennialError
from perennial.core.partitions import PartitionRange
from perennial.features import feature_tables
from perennial.governance import _registered_versions, disk_usage, holds
from perennial.governance.disk_usage import DiskUse
from perennial.lifecycle import backlog, champion, trials
from perennial.modeling import registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, file_digests, ledger, object_store, storage_errors
from perennial.storage.ledger import Decision, LedgerKind
from perennial.training.runs import recipe as recipes
from perennial.training.runs.recipe import Recipe

#: Tables by the key of `retention` that their partitions are kept by.
_TABLES = {
    "rows": ("published", "labels", "quarantine"),
    "predictions": ("predictions",),
    "served": ("served",),
}
#: The partitions in the name of a report: ``2024-01-02.html``, ``2024-01-02..2024-01-05.json``.
_REPORT = re.compile(r"(?P<first>\d{4}-\d{2}[-\dT]*)(?:\.\.(?P<last>\d{4}-\d{2}[-\dT]*))?\.")
log = logging.getLogger("perennial")


class RetentionResult(TypedDict):
    """What `apply` deleted, or would delete.

    Attributes:
        as_of: the partition from which ages are counted.
        partitions: number of partitions that were emptied, by table.
        reports: number of reports.
        versions: numbers of the model versions.
        files: number of files of older table versions.
        bytes: their bytes.
        in_use: numbers of the versions in use, which nothing they need was deleted of.
        hold: why nothing was deleted, if the model is held; empty otherwise.
        disk: what is stored afterwards, by table.
    """

    as_of: str
    partitions: dict[str, int]
    reports: int
    versions: list[str]
    files: int
    bytes: int
    in_use: list[str]
    hold: str
    disk: list[DiskUse]


def apply(spec: ModelSpec, *, as_of: str, actor: str = "retention", dry_run: bool = False) -> RetentionResult:
    """Delete what is older than the spec keeps, and record it in the ledger.

    Args:
        spec: the model.
        as_of: the partition from which ages are counted.
        actor: who or what does it, for the ledger.
        dry_run: delete nothing, and say what would be deleted.

    Raises:
        RegistryError: MLflow cannot be reached: it is then not known what is in use, and nothing is deleted.
        StorageError: the lake cannot be read or written.
    """
    hold = holds.open_hold(spec.name)
    in_use = _versions_in_use(spec)
    plan = _Plan(spec, as_of, in_use, dry_run)
    result = RetentionResult(
        as_of=as_of, partitions={}, reports=0, versions=[], files=0, bytes=0, in_use=sorted(in_use, key=int),
        hold=f"{hold['actor']} since {hold['recorded_at']}: {hold['reason']}" if hold else "", disk=[],
    )  # fmt: skip
    if not hold:
        result["partitions"] = plan.empty_partitions()
        result["reports"] = plan.delete_reports()
        result["versions"] = plan.delete_versions()
        result["files"], result["bytes"] = plan.delete_history()
    result["disk"] = disk_usage.of_model(spec)
    if not dry_run and any(result[name] for name in ("partitions", "reports", "versions", "files")):
        ledger.append(
            spec.name,
            kind=LedgerKind.RETENTION,
            decision=Decision.DELETED,
            reason=summarise(result),
            actor=actor,
            partition=as_of,
            evidence={**result, "retention": spec.retention.model_dump(mode="json")},
        )
    return result


def summarise(result: RetentionResult) -> str:
    """What was deleted, in a sentence."""
    if result["hold"]:
        return f"nothing is deleted: held by {result['hold']}"
    parts = [f"{count} partitions of {table}" for table, count in result["partitions"].items()]
    parts += [f"{result['reports']} reports"] if result["reports"] else []
    parts += [f"versions {', '.join(result['versions'])}"] if result["versions"] else []
    parts += [f"{result['files']} files of older table versions ({result['bytes']:,} bytes)"] * bool(
        result["files"]
    )
    return f"older than the spec keeps as of {result['as_of']}: {'; '.join(parts) or 'nothing'}"


def _versions_in_use(spec: ModelSpec) -> dict[str, ModelVersion]:
    """The versions of which nothing that they need is deleted, by number.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    state, trial = champion.read_state(spec), trials.active_trial(spec)
    numbers = {state.champion, state.recorded, champion.predecessor(state.changes, state.recorded)}
    numbers |= {str(trial["model_version"])} if trial else set()
    numbers |= _registered_versions.aliased(spec.name)
    versions = (registry.find_version(spec.name, number) for number in sorted(filter(None, numbers)))
    return {version.version: version for version in versions if version is not None}


@dataclass
class _Plan:
    """One run of the retention of a model.

    Attributes:
        spec: the model.
        as_of: the partition from which ages are counted.
        in_use: the versions in use, by number.
        dry_run: whether nothing is deleted.
    """

    spec: ModelSpec
    as_of: str
    in_use: dict[str, ModelVersion]
    dry_run: bool

    def empty_partitions(self) -> dict[str, int]:
        """Remove the rows of old partitions; returns their number by table, of tables that have any."""
        counts = {}
        for key, kinds in _TABLES.items():
            for kind in kinds:
                uri = delta_tables.table_uri(kind, self.spec.name)
                days = [day for day in delta_tables.partitions(uri) if self._is_old(key, day)]
                if key == "rows":
                    days = [day for day in days if not self._is_needed(day)]
                if days and not self.dry_run:
                    delta_tables.remove_rows(uri, days)
                if days:
                    counts[kind] = len(days)
        return counts

    def _is_old(self, key: str, day: str) -> bool:
        return not backlog.is_kept(self.spec, key, day, self.as_of)  # type: ignore[arg-type]

    def _is_needed(self, day: str) -> bool:
        """Whether a version in use was fitted or evaluated on a partition."""
        return any(span.start <= day <= span.end for v in self.in_use.values() for span in _ranges(v))

    def delete_reports(self) -> int:
        """Delete old reports; returns their number."""
        needed, deleted = {version.as_of for version in self.in_use.values()}, 0
        root = delta_tables.table_uri("reports", self.spec.name)
        for path in sorted(object_store.list_files(root, recursive=True)):
            match = _REPORT.match(path.rpartition("/")[2])
            last = match and (match["last"] or match["first"])
            if not last or not self._is_old("reports", last) or (path.startswith("train") and last in needed):
                continue
            if not self.dry_run:
                object_store.delete_file(f"{root}/{path}")
            deleted += 1
        return deleted

    def delete_versions(self) -> list[str]:
        """Delete old versions, with their runs, in MLflow; returns their numbers."""
        if self.spec.retention.versions is None:
            return []
        numbers = dict.fromkeys(r.version for r in training_records.all_records(self.spec.name))
        present = [v for v in (registry.find_version(self.spec.name, n) for n in numbers) if v is not None]
        old = present[: -self.spec.retention.versions]
        deleted = [
            version for version in old if version.version not in self.in_use and registry.is_ours(version)
        ]
        for version in deleted if not self.dry_run else ():
            _registered_versions.delete(version)
        return [version.version for version in deleted]

    def delete_history(self) -> tuple[int, int]:
        """Delete files that only old versions of the tables have; returns their number and bytes."""
        pinned, count, size = self._pinned_versions(), 0, 0
        for uri in self._tables():
            for path, length in self._unneeded_files(uri, pinned.get(uri, set())):
                if not self.dry_run:
                    object_store.delete_file(f"{uri}/{path}")
                    file_digests.forget(uri, path)
                count, size = count + 1, size + length
        return count, size

    def _tables(self) -> list[str]:
        tables = [delta_tables.table_uri(kind, self.spec.name) for kind in delta_tables.KINDS]
        tables += [feature_tables.uri(table) for _, table in self.spec.feature_tables]
        return [uri for uri in tables if delta_tables.open_table(uri) is not None]

    def _unneeded_files(self, uri: str, pinned: Collection[int]) -> Iterator[tuple[str, int]]:
        """The files that were removed long ago, and that no pinned version has; with their bytes."""
        table = delta_tables.open_table(uri)
        assert table is not None, uri
        properties = table.metadata().configuration
        missing = {k: v for k, v in delta_tables.TABLE_PROPERTIES.items() if properties.get(k) != v}
        with storage_errors.writing(uri):
            if (
                missing and not self.dry_run
            ):  # of an earlier release, whose log would be deleted after 30 days
                table.alter.set_table_properties(missing, raise_if_not_exists=False)
            hours = int(self.spec.retention.table_history.length(self.spec.cadence).total_seconds() // 3600)
            unneeded = table.vacuum(
                retention_hours=hours,
                dry_run=True,  # a commit for it would be no version that anybody pins
                enforce_retention_duration=False,
                keep_versions=sorted(set(pinned)) or None,
            )
        files = object_store.list_files(uri, recursive=True)
        return ((path, files[path].size) for path in sorted(unneeded) if path in files)

    def _pinned_versions(self) -> dict[str, set[int]]:
        """The versions of each table, by URI, that the versions in use were trained on.

        Raises:
            ArtifactError: the recipe of one is not what was recorded: nothing is deleted.
        """
        pinned: dict[str, set[int]] = {}
        for version in self.in_use.values():
            for uri, number in self._read_by(version):
                if _can_be_opened(uri, number):
                    pinned.setdefault(uri, set()).add(number)
        return pinned

    def _read_by(self, version: ModelVersion) -> Iterable[tuple[str, int]]:
        """The tables that a version's training read, with their versions; none if it has no recipe."""
        recorded = registry.recorded(registry.as_recorded(version))
        if recipes.ARTIFACT not in recorded.digests:
            return
        recipe = Recipe.from_dict(registry.load_json_artifact(version, recipes.ARTIFACT))
        yield delta_tables.table_uri("published", self.spec.name), recipe.published
        if recipe.labels is not None:
            yield delta_tables.table_uri("labels", self.spec.name), recipe.labels
        for _, table in registry.load_spec(version).feature_tables:
            if table.name in recipe.tables:
                yield feature_tables.uri(table), recipe.tables[table.name]


def _ranges(version: ModelVersion) -> list[PartitionRange]:
    """The partitions that a version was fitted and evaluated on."""
    names = ("trained_range", "refit_range", "holdout_range")
    return [PartitionRange.parse(version.tags[name]) for name in names if version.tags.get(name)]


def _can_be_opened(uri: str, version: int) -> bool:
    """Whether a table's log still has a version; one that it has not cannot be kept."""
    try:
        return delta_tables.open_table(uri, version) is not None
    except PerennialError:
        return False
