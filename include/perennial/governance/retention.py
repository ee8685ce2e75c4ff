"""Retention: deletes what is older than a model's spec keeps, and nothing that is in use or held.

In use are champion, the version that a rollback returns to, a challenger on trial, a version that waits for its
approval, and each with an alias. Kept are their files, the partitions that they were trained and evaluated on, and the
table versions that their trainings read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypedDict, TypeVar

from perennial.core.durations import Duration
from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.features import feature_tables
from perennial.governance import _registered_versions, disk_usage, holds
from perennial.governance.disk_usage import DiskUse
from perennial.governance.holds import ModelHeldError
from perennial.ingestion import erasure_remains
from perennial.lifecycle import backlog, ledger_anchors, promotion
from perennial.lifecycle.promotion import VersionInUse
from perennial.modeling import registry
from perennial.spec import catalog
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.storage import (
    delta_tables,
    file_digests,
    generations,
    ledger,
    locks,
    object_store,
    storage_errors,
)
from perennial.storage.ledger import Decision, LedgerKind
from perennial.training import tracking

#: Tables by the key of `retention` that their partitions are kept by.
_TABLES = {
    "rows": ("published", "labels", "quarantine"),
    "predictions": ("predictions",),
    "served": ("served",),
}
#: Files that are deleted before a hold of the model, which waits for them, is looked for again.
_FILES_AT_ONCE = 100
#: The partitions in the name of a report: ``2024-01-02.html``, ``2024-01-02..2024-01-05.json``.
_REPORT = re.compile(r"(?P<first>\d{4}-\d{2}[-\dT]*)(?:\.\.(?P<last>\d{4}-\d{2}[-\dT]*))?\.")
_Item = TypeVar("_Item")
log = logging.getLogger("perennial")


class RetentionResult(TypedDict):
    """What `apply` deleted, or would delete.

    Attributes:
        as_of: the partition from which ages are counted.
        partitions: number of partitions that were emptied, by table.
        reports: number of reports.
        versions: numbers of the model versions.
        refused: numbers of the model versions that MLflow did not let this user delete.
        files: number of files of older table versions.
        bytes: their bytes.
        in_use: numbers of the versions in use, which nothing they need was deleted of.
        hold: why nothing was deleted, or nothing more, if the model is held; empty otherwise.
        interrupted: the partitions as of which runs did not end: what they deleted may not be counted.
        disk: what is stored afterwards, by table.
    """

    as_of: str
    partitions: dict[str, int]
    reports: int
    versions: list[str]
    refused: list[str]
    files: int
    bytes: int
    in_use: list[str]
    hold: str
    interrupted: str
    disk: list[DiskUse]


def apply(spec: ModelSpec, *, as_of: str, actor: str = "retention", dry_run: bool = False) -> RetentionResult:
    """Delete what is older than the spec keeps, and record it in the ledger.

    Args:
        spec: the model.
        as_of: the partition from which ages are counted.
        actor: who or what does it, for the ledger.
        dry_run: delete nothing, and say what would be deleted.

    Raises:
        PerennialError: ``as_of`` is in the future.
        RegistryError: MLflow cannot be reached, or lost the champion: it is then not known what is in use, and nothing
            is deleted.
        ArtifactError: what a version in use was trained on is not known; nothing is deleted.
        SpecError: the folder of a feature table is invalid, which may read the rows; or that of another model, where
            feature tables do.
        StorageError: the lake cannot be read or written.
    """
    newest = spec.cadence.key_of(datetime.now(UTC))
    if as_of > newest:
        raise PerennialError(
            f"{as_of} is in the future", f"name {newest} or an earlier partition", model=spec.name
        )
    with (
        ledger_anchors.anchored(spec.name),
        nullcontext() if dry_run else locks.hold(f"retention-{spec.name}"),
    ):
        plan = _Plan(spec, as_of, promotion.in_use(spec), dry_run)
        plan.result["interrupted"] = "" if dry_run else _interrupted(spec)
        try:
            plan.carry_out()
            plan.ended = True
        except ModelHeldError:
            plan.result["hold"] = "; ".join(map(holds.describe, ledger.open_holds(spec.name)))
            plan.ended = True
        finally:  # what was deleted before an error, too
            _record(plan, actor)
        plan.result["disk"] = disk_usage.of_model(spec)
    return plan.result


def _started_uri(spec: ModelSpec) -> str:
    """The file that a run leaves from its first deletion until it has ended and recorded what it deleted."""
    return f"{settings().lake}/retention/{spec.name}"


def _interrupted(spec: ModelSpec) -> str:
    """The partitions as of which runs did not end since one did; empty if there are none."""
    with suppress(FileNotFoundError):
        return object_store.read_text(_started_uri(spec))
    return ""


def _record(plan: _Plan, actor: str) -> None:
    """Record what was deleted, also that a run did not end which may not have recorded that."""
    result, spec = plan.result, plan.spec
    if plan.dry_run:
        return
    if any(result[name] for name in ("partitions", "reports", "versions", "files", "interrupted")):
        ledger.append(
            spec.name,
            kind=LedgerKind.RETENTION,
            decision=Decision.DELETED,
            reason=summarise(result),
            actor=actor,
            partition=plan.as_of,
            evidence={**result, "retention": spec.retention.model_dump(mode="json")},
        )
    if plan.ended and (plan.started or result["interrupted"]):
        object_store.delete_file(_started_uri(spec))


def summarise(result: RetentionResult) -> str:
    """What was deleted, in a sentence."""
    parts = [f"{count} partitions of {table}" for table, count in result["partitions"].items()]
    parts += [f"{result['reports']} reports"] if result["reports"] else []
    parts += [f"versions {', '.join(result['versions'])}"] if result["versions"] else []
    if result["refused"]:
        parts.append(
            f"not versions {', '.join(result['refused'])}, which only an administrator of MLflow deletes"
        )
    parts += [f"{result['files']} files of older table versions ({result['bytes']:,} bytes)"] * bool(
        result["files"]
    )
    text = f"older than the spec keeps as of {result['as_of']}: {'; '.join(parts) or 'nothing'}"
    if result["hold"]:
        text += f"{'; no more' if parts else ''}, since the model is held by {result['hold']}"
    if result["interrupted"]:
        text += f"; a run as of {result['interrupted']} did not end: what it deleted may not be counted"
    return text


@dataclass(frozen=True)
class _History:
    """What is deleted of the older versions of a table.

    Attributes:
        uri: the table.
        age: age of the files that go.
        pinned: versions that are kept.
        models: names of the models that join it; empty for a table of the model.
    """

    uri: str
    age: timedelta
    pinned: Collection[int]
    models: Collection[str]


@dataclass
class _Plan:
    """One run of the retention of a model.

    Attributes:
        spec: the model.
        as_of: the partition from which ages are counted.
        in_use: the versions in use, by number.
        dry_run: whether nothing is deleted.
        started: whether something was deleted.
        ended: whether nothing is left to delete, or the model is held.
        result: what was deleted so far.
    """

    spec: ModelSpec
    as_of: str
    in_use: dict[str, VersionInUse]
    dry_run: bool
    started: bool = False
    ended: bool = False
    result: RetentionResult = field(init=False)

    def __post_init__(self) -> None:
        self.result = RetentionResult(
            as_of=self.as_of, partitions={}, reports=0, versions=[], refused=[], files=0, bytes=0,
            in_use=list(self.in_use), hold="", interrupted="", disk=[],
        )  # fmt: skip

    def carry_out(self) -> None:
        """Delete what is old; what is in use is known before the first file goes.

        Raises:
            ModelHeldError: the model is held, also since some of it was deleted.
        """
        holds.refuse(self.spec.name, "old data is deleted")
        joining = _joining(self.spec, self.in_use)
        readers = catalog.load_feature_tables_of(self.spec.name)
        history, needed = _history(self.spec, joining), self._needed(joining)
        self._empty_partitions(needed, max((_lookback(self.spec, table) for table in readers), default=0))
        self._delete_reports()
        self._delete_versions()
        for table_history in history:
            self._delete_history(table_history)

    @contextmanager
    def _deleting(self, models: Collection[str] = ()) -> Iterator[None]:
        """Delete something in the block, for which a hold waits; nothing is done about a dry run.

        Args:
            models: other models that it is read by.

        Raises:
            ModelHeldError: the model, or one of the others, is held.
        """
        if self.dry_run:
            yield
            return
        with holds.deletion({self.spec.name, *models}, "old data is deleted"):
            if not self.started:
                since = ", ".join(filter(None, (self.result["interrupted"], self.as_of)))
                object_store.write_text(_started_uri(self.spec), since)
                self.started = True
            yield

    def _needed(self, joining: Sequence[_Joining]) -> set[tuple[str, str]]:
        """First and last partitions of the rows that versions in use depend on, of this model and of others.

        And those that the next trainings of others depend on.
        """
        needed = {(span.start, span.end) for used in self.in_use.values() for span in used.ranges}
        for model in joining:
            for number, used in model.in_use.items():
                for table in self._reading(model.tables(number)):
                    for span in used.ranges:
                        needed.add(self._read_by(model.spec, table, span.start, span.end))
            for table in self._reading(table for _, table in model.spec.feature_tables):
                if model.spec.name != self.spec.name:
                    needed.add(self._read_by_training(model.spec, table))
        return needed

    def _reading(self, tables: Iterable[FeatureTable]) -> Iterator[FeatureTable]:
        """Those of some feature tables that read the rows of the model."""
        return (t for t in tables if any(source.model == self.spec.name for source in t.sources))

    def _read_by(self, model: ModelSpec, table: FeatureTable, start: str, end: str) -> tuple[str, str]:
        """First and last partition that the features of partitions of a model depend on."""
        cadence = self.spec.cadence
        first = cadence.key_of(model.cadence.start_of(start))
        last = cadence.key_of(model.cadence.end_of(end) - timedelta(microseconds=1))
        return cadence.shift(first, -_lookback(self.spec, table)), last

    def _read_by_training(self, model: ModelSpec, table: FeatureTable) -> tuple[str, str]:
        """The same of what a training of a model reads that begins now; everything if its window has no length."""
        training, cadence = model.training, model.cadence
        last = cadence.key_of(self.spec.cadence.end_of(self.as_of) - timedelta(microseconds=1))
        if training.window is None:
            return "", self.spec.cadence.key_of(cadence.end_of(last))
        count = training.window.partitions(cadence) + training.holdout.partitions(cadence) + model.label_delay
        return self._read_by(model, table, cadence.shift(last, -count), last)

    def _empty_partitions(self, needed: Collection[tuple[str, str]], lookback: int) -> None:
        """Remove the rows of old partitions.

        Args:
            needed: first and last partitions of what versions in use were fitted and evaluated on.
            lookback: how many partitions longer rows are kept than the spec says, because feature tables read them.
        """
        for key, kinds in _TABLES.items():
            as_of = self.spec.cadence.shift(self.as_of, -lookback if key == "rows" else 0)
            for kind in kinds:
                uri = delta_tables.table_uri(kind, self.spec.name)
                days = [d for d in delta_tables.partitions(uri) if self._is_old(key, d, as_of)]
                if key == "rows":
                    days = [d for d in days if not any(first <= d <= last for first, last in needed)]
                if not days:
                    continue
                with self._deleting():
                    if not self.dry_run:
                        delta_tables.remove_rows(uri, days)
                    self.result["partitions"][kind] = len(days)

    def _is_old(self, key: str, day: str, as_of: str) -> bool:
        return not backlog.is_kept(self.spec, key, day, as_of)  # type: ignore[arg-type]

    def _delete_reports(self) -> None:
        """Delete old reports."""
        needed = {used.record.tags.get("as_of", "") for used in self.in_use.values()}
        root = delta_tables.table_uri("reports", self.spec.name)
        old = []
        for path in sorted(object_store.list_files(root, recursive=True)):
            match = _REPORT.match(path.rpartition("/")[2])
            last = match and (match["last"] or match["first"])
            is_old = last and self._is_old("reports", last, self.as_of)
            if is_old and not (path.startswith("train") and last in needed):
                old.append(f"{root}/{path}")
        for files in _some_at_once(old):
            with self._deleting():
                for file in files:
                    if not self.dry_run:
                        object_store.delete_file(file)
                    self.result["reports"] += 1

    def _delete_versions(self) -> None:
        """Delete old versions, with their runs, in MLflow."""
        if self.spec.retention.versions is None:
            return
        old = _registered_versions.present(self.spec.name)[: -self.spec.retention.versions]
        # a version may have come into use since the rows were deleted
        with nullcontext() if self.dry_run else locks.hold(f"promote-{self.spec.name}"):
            in_use = promotion.in_use(self.spec)
            for version in old:
                if version.version not in {*in_use, *self.in_use}:
                    with self._deleting():
                        deleted = self.dry_run or tracking.delete_version(version)
                    self.result["versions" if deleted else "refused"].append(version.version)

    def _delete_history(self, history: _History) -> None:
        """Delete files that only old versions of a table have; no more of them once a model that reads it is held."""
        for files in _some_at_once(list(_unneeded_files(history, self.dry_run))):
            try:
                with self._deleting(history.models):
                    for path, length in files:
                        if not self.dry_run:
                            object_store.delete_file(f"{history.uri}/{path}")
                            file_digests.forget(history.uri, path)
                        self.result["files"] += 1
                        self.result["bytes"] += length
            except ModelHeldError:
                holds.refuse(self.spec.name, "old data is deleted")
                return


def _some_at_once(items: list[_Item]) -> Iterator[list[_Item]]:
    return (items[i : i + _FILES_AT_ONCE] for i in range(0, len(items), _FILES_AT_ONCE))


@dataclass(frozen=True)
class _Joining:
    """A model whose versions in use may have been trained with feature tables.

    Attributes:
        spec: the model.
        in_use: its versions in use, by number.
        trained: the feature tables that each was trained with; none of a version that MLflow lost.
    """

    spec: ModelSpec
    in_use: dict[str, VersionInUse]
    trained: dict[str, list[FeatureTable]]

    def tables(self, number: str) -> list[FeatureTable]:
        """The feature tables that a version was trained with; those of the spec if that is not known."""
        return self.trained.get(number, [table for _, table in self.spec.feature_tables])

    def joins(self, name: str) -> bool:
        """Whether the spec, or a version in use, joins the feature table of a name."""
        tables = [table for _, table in self.spec.feature_tables]
        return any(
            t.name == name for t in (*tables, *(t for listed in self.trained.values() for t in listed))
        )


def _joining(spec: ModelSpec, in_use: dict[str, VersionInUse]) -> list[_Joining]:
    """The models, by name: a version in use may be of a spec that joined another feature table than today's."""
    models = {spec.name: spec}
    are_tables = bool(erasure_remains.definitions() or catalog.find_folders(catalog.TABLE_FILE))
    if are_tables:
        others, errors = catalog.load_models()
        readers = catalog.load_feature_tables_of(spec.name)
        if errors and (readers or spec.feature_tables or erasure_remains.earlier_definitions()):
            raise errors[0]  # it may need the rows, or the tables
        models = others | models
    result = []
    for name in sorted(models):
        used = in_use if name == spec.name else promotion.in_use(models[name])
        trained = {
            number: [table for _, table in registry.load_spec(version.version).feature_tables]
            for number, version in used.items()
            if are_tables and version.version is not None
        }
        result.append(_Joining(models[name], used, trained))
    return result


def _lookback(spec: ModelSpec, table: FeatureTable) -> int:
    """The partitions of a model before a row's that the features of the row depend on."""
    partition = Duration(1, "partition").length(spec.cadence)
    counts = (-(-d.length(table.cadence) // partition) for d in (table.lookback, table.age_limit))
    # months differ in length, and partitions of another cadence begin at other times
    return sum(counts) + (spec.cadence.unit == "month" or table.cadence != spec.cadence)


def _history(spec: ModelSpec, joining: Sequence[_Joining]) -> list[_History]:
    """What is deleted of older versions of tables: nothing while it is not known what a version in use was trained on.

    The history of a feature table is deleted with the first of the models that join it, for all of them.
    """
    uris = [delta_tables.table_uri(kind, spec.name) for kind in delta_tables.KINDS]
    ages = dict.fromkeys(uris, spec.retention.table_history.length(spec.cadence))
    tables = {table.name: table for _, table in spec.feature_tables}
    readers: dict[str, list[str]] = {}
    for table in tables.values():
        models = [model.spec for model in joining if model.joins(table.name)]
        first = next(m.name for m in models if any(t.name == table.name for _, t in m.feature_tables))
        if first == spec.name and not any(ledger.open_holds(model.name) for model in models):
            uri = feature_tables.uri(table)
            ages[uri] = max(model.retention.table_history.length(model.cadence) for model in models)
            readers[uri] = [model.name for model in models]
    pinned: dict[str, set[int]] = {}
    for other in joining:
        model = other.spec
        if model.name != spec.name and not any(map(other.joins, tables)):
            continue
        for number, used in other.in_use.items():
            if used.version is None:
                log.warning("Model %s: MLflow does not have version %s, so that it is not known which table versions "
                            "it was trained on: none is deleted", model.name, number)  # fmt: skip
                return []
            for uri, version in _registered_versions.tables_read(model, used.version):
                pinned.setdefault(uri, set()).add(version)
    present = [uri for uri in ages if delta_tables.open_table(uri) is not None]
    return [
        _History(uri, ages[uri], _in_log(uri, pinned.get(uri, ())), readers.get(uri, ())) for uri in present
    ]


def _in_log(uri: str, versions: Collection[int]) -> list[int]:
    """The versions that a table's log still has; one that it has not cannot be kept."""
    if not versions:
        return []
    names = [name for name in object_store.list_files(f"{uri}/_delta_log") if name[:20].isdigit()]
    commits = {int(name[:20]) for name in names if name[20:] == ".json"}
    checkpoints = {int(name[:20]) for name in names if name[20:].startswith(".checkpoint")}

    def has(version: int) -> bool:
        first = max((number for number in checkpoints if number <= version), default=-1)
        return all(number in commits for number in range(first + 1, version + 1))

    lost = sorted(version for version in set(versions) if not has(version))
    if lost:
        log.warning("%s: the log does not have versions %s any more, which a model version in use was trained on: it "
                    "cannot be reproduced", uri, ", ".join(map(str, lost)))  # fmt: skip
    return sorted(set(versions) - set(lost))


def _unneeded_files(history: _History, dry_run: bool) -> Iterator[tuple[str, int]]:
    """The files that were removed long ago, and that no pinned version has; with their bytes."""
    table = delta_tables.open_table(history.uri)
    assert table is not None, history.uri
    if not dry_run:
        generations.add_properties(history.uri, table, history.age)
    with storage_errors.writing(history.uri):
        unneeded = table.vacuum(
            retention_hours=int(history.age.total_seconds() // 3600),
            dry_run=True,  # a commit for it would be no version that anybody pins
            enforce_retention_duration=False,
            keep_versions=list(history.pinned) or None,
        )
    files = object_store.list_files(history.uri, recursive=True)
    return ((path, files[path].size) for path in sorted(unneeded) if path in files)
