"""Right to erasure: the rows of keys leave the tables of a model, and a record says so without the keys.

What is removed: published rows, labels, predictions, logged features, records in quarantine, rows of feature tables,
and each file of an older table version that has one of them. What is landed is not ours to change: the files that hold
the keys are named, and what they still have of them is not published again. A version that was trained on such rows is
named, too: it has to be trained again, and then to be deleted.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypedDict

from perennial.core.errors import DataError, PerennialError
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.features import feature_tables, reference_tables
from perennial.governance import _registered_versions, erased_rows, holds
from perennial.governance.erased_rows import Condition
from perennial.ingestion import erasure_remains, erasure_requests, manifest_corrections
from perennial.ingestion.erasure_requests import Attempt, ErasureRequest, RemovedCounts
from perennial.lifecycle import champion
from perennial.spec import catalog
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, ledger, locks, object_store
from perennial.storage.ledger import Decision, LedgerKind

#: Tables of a model with rows of its keys, in the order in which they are searched.
TABLES = ("published", "labels", "quarantine", "predictions", "served")
#: Of these, those whose rows are of the partition that they are stored in.
_OF_PARTITIONS = ("published", "labels", "predictions", "served")
#: Columns by which records in quarantine are counted, by their usual names.
_FEED, _FEED_DATE = "feed", "feed_date"
#: Landed files that a record names.
MAX_NAMED_FILES = 50
log = logging.getLogger("perennial")


class ErasureResult(TypedDict):
    """What `erase` did, in all runs of the request, those that were interrupted included.

    Attributes:
        request: name of the request.
        rows: number of rows that were removed, by table.
        files: number of files of all table versions that had such rows, and were deleted.
        reports: number of data docs and profiles that were deleted, because they may quote columns that are not
            declared personal.
        partitions: the partitions that had such rows, in order.
        emptied: those of which every prediction was of the keys.
        versions: numbers of the versions that were fitted or evaluated on these partitions, to be trained again.
        champion: whether the champion is one of them.
        joining: numbers of the versions of other models that were trained on features of such rows, by model.
        landed: files of the landing area that hold such rows, or did when they were published.
        hidden: records of quarantine that hide a column of the request, and may be of its keys.
        references: reference tables that have such rows: land them without.
        other_models: models whose own rows the feature tables read, or have the same columns: erase there, too.
        remaining: what else may have such values, and is not searched.
    """

    request: str
    rows: dict[str, int]
    files: int
    reports: int
    partitions: list[str]
    emptied: list[str]
    versions: list[str]
    champion: bool
    joining: dict[str, list[str]]
    landed: list[str]
    hidden: int
    references: list[str]
    other_models: list[str]
    remaining: list[str]


def erase(spec: ModelSpec, *, request: str, actor: str = "", hidden: bool = False) -> ErasureResult:
    """Erase the rows of a request, and record that in the ledger; it is safe to repeat.

    Args:
        spec: the model.
        request: name of the request.
        actor: who asks for it, for the ledger; the one who made the request when empty.
        hidden: also remove the records of quarantine of which is not known whose they are, because they hide a column
            of the request.

    Raises:
        PerennialError: there is no such request, or the model is held for an audit, or one that joins a feature table
            that reads its rows.
        SpecError: a feature table or a model that may read such rows is invalid; nothing was removed.
        StorageError: the lake cannot be read or written; repeat it.
    """
    tables = catalog.load_feature_tables_of(spec.name)
    models = {spec.name} | {model.name for model in catalog.load_models_joining([t.name for t in tables])}
    with holds.deletion(models, f"rows of {spec.name} are erased"):
        wanted = erasure_requests.load(spec.name, request)
        erasure = _Erasure(spec, wanted, hidden)
        result = erasure.run()
        erasure_requests.completed(erasure.request)
        ledger.append(
            spec.name,
            kind=LedgerKind.ERASURE,
            decision=Decision.ERASED,
            reason=summarise(result),
            actor=actor or wanted.requested_by or "erasure",
            partition=_span(result["partitions"]),
            evidence={
                **result,
                "columns": sorted(wanted.columns),
                "keys": len(wanted.hashes),
                "requested_by": wanted.requested_by,
                "requested_at": wanted.requested_at,
            },
        )
        for name, versions in result["joining"].items():
            ledger.append(
                name,
                kind=LedgerKind.ERASURE,
                decision=Decision.ERASED,
                reason=f"features of rows of {spec.name} (request {result['request']}); train again: versions "
                f"{', '.join(versions)}, which learned them",
                actor=actor or wanted.requested_by or "erasure",
                evidence={"request": result["request"], "model": spec.name, "versions": versions},
            )
    log.info("Model %s: %s", spec.name, summarise(result))
    return result


def summarise(result: ErasureResult) -> str:
    """What was erased, in a sentence or two."""
    rows = ", ".join(f"{n:,} of {table}" for table, n in result["rows"].items() if n) or "none"
    text = f"request {result['request']}: rows removed: {rows}; {result['files']} older files deleted"
    if result["versions"]:
        numbers = ", ".join(result["versions"])
        also = ", the champion among them" if result["champion"] else ""
        text += f"; train again: versions {numbers} were trained or evaluated on these partitions{also}"
    for model, versions in result["joining"].items():
        text += f"; train model {model} again: versions {', '.join(versions)} learned features of such rows"
    return text


def erasure_of(model: str, version: str) -> ledger.LedgerRecord | None:
    """The last erasure of rows of the partitions that a version was trained or evaluated on; None if there is none."""
    records = ledger.records(model, LedgerKind.ERASURE)
    return next((r for r in reversed(records) if version in r["evidence"].get("versions", ())), None)


def _span(partitions: Sequence[str]) -> str | None:
    if not partitions:
        return None
    first, last = partitions[0], partitions[-1]
    return first if first == last else f"{first}..{last}"


class _Table(NamedTuple):
    """A table that is searched.

    Attributes:
        name: its name in results: ``published``, or ``features.weather`` for each definition of one.
        uri: the table.
        condition: which of its rows go.
        count_by: columns by whose values they are counted.
        lock: name of the lock of whoever computes it; empty if there is none.
    """

    name: str
    uri: str
    condition: Condition
    count_by: tuple[str, ...] = ()
    lock: str = ""

    def locked(self) -> AbstractContextManager[None]:
        """Wait for a run that computes it from rows that it read before, and keep others from doing so."""
        return locks.hold(self.lock, timeout=feature_tables.LOCK_SECONDS) if self.lock else nullcontext()


@dataclass
class _Erasure:
    """One request, carried out.

    Attributes:
        spec: the model.
        request: the request, which gets what is found before it is removed.
        hidden: whether also those records of quarantine go of which is not known whose they are.
        readers: the feature tables that read the model's rows.
        remaining: files that this run does not delete, or whose rows it cannot follow to other tables.
    """

    spec: ModelSpec
    request: ErasureRequest
    hidden: bool
    readers: list[FeatureTable] = field(init=False)
    remaining: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.readers = catalog.load_feature_tables_of(self.spec.name)

    @property
    def _key(self) -> dict[str, str]:
        return {column: self.spec.data.columns[column] for column in self.spec.data.key}

    def run(self) -> ErasureResult:
        """Remove the rows, and all that was made of them and can be removed."""
        others = [
            *erasure_remains.other_sources(self.spec, self.readers),
            *erasure_remains.same_columns(self.spec, self.request.columns),
        ]
        self.request = replace(self.request, rows=self._row_keys())
        tables = [*self._tables(), *self._features()]
        if self.request.attempt:  # a run that was killed may have committed files without their digests
            for table in tables:
                erased_rows.record_unrecorded(table.uri, self._attempted(table.name))
        self._store_plan(tables)
        removed: dict[str, dict[str, int]] = {}
        for table in tables:
            with table.locked():
                result = erased_rows.remove(table.uri, table.condition, table.count_by)
            _add(removed.setdefault(table.name, {}), result.rows)
            self.remaining += result.remaining
        self._store(RemovedCounts(removed), ())  # other runs may have written more
        assert self.request.attempt is not None
        manifest_corrections.correct(self.spec, self.request.partitions, self.request.attempt.published)
        for uri in self._reports():
            object_store.delete_file(uri)
        return self._result(list(dict.fromkeys(others)))

    def _attempted(self, table: str) -> set[str]:
        """The partitions of a table that a run which was killed has written, or was about to."""
        assert self.request.attempt is not None
        days = {*self.request.partitions, *self.request.attempt.counts.rows.get(table, ())}
        if table == "quarantine":  # of a file of labels it has the partition of their rows
            days |= {self.spec.cadence.shift(day, -self.spec.label_delay) for day in days}
        return days

    def _store_plan(self, tables: Sequence[_Table]) -> None:
        """Find the rows, and store what is about to be removed: a run after an interruption does not find it again."""
        rows: dict[str, dict[str, int]] = {}
        files: dict[str, int] = {}
        # what a run that was killed removed is not found any more; a training may have read it since
        partitions = {*self.request.partitions} if self.request.attempt else set[str]()
        for table in tables:
            matching = erased_rows.search(table.uri, table.condition, table.count_by)
            counts = rows.setdefault(table.name, {})
            _add(counts, matching.rows)
            if table.name not in TABLES:
                # a feature table: versions were trained on older files, too
                counts.update({day: counts.get(day, 0) for day in matching.partitions})
            files[table.name] = files.get(table.name, 0) + matching.files
            if table.name in _OF_PARTITIONS:
                partitions |= matching.partitions
        predictions = delta_tables.rows_by_partition(delta_tables.table_uri("predictions", self.spec.name))
        erased = rows.get("predictions", {})
        emptied = {*self.request.emptied, *erased} - {
            d for d, n in predictions.items() if n > erased.get(d, 0)
        }
        self.request = replace(self.request, emptied=sorted(emptied))
        self._store(RemovedCounts(rows, files), partitions)
        self._store(RemovedCounts(reports=len(self._reports())), ())  # of these partitions

    def _store(self, counts: RemovedCounts, partitions: Collection[str]) -> None:
        """Add to the request what this run removes, and the versions that were trained on it.

        Args:
            counts: what is removed.
            partitions: partitions of files that are removed.
        """
        removed = {*partitions}
        for table in _OF_PARTITIONS:
            removed |= {*counts.rows.get(table, ())}
        removed |= {*counts.rows.get("quarantine", ())}  # of the records' files
        days = {*self.request.partitions, *removed}
        # a version that is trained after the rows are gone is none of them when the erasure is repeated
        trained = self._trained(counts)
        trained_here = _registered_versions.trained_on(self.spec, sorted(removed))
        versions = [*self.request.versions, *trained_here, *trained.pop(self.spec.name, ())]
        joining = {
            name: list(dict.fromkeys([*self.request.joining.get(name, ()), *trained.get(name, ())]))
            for name in sorted({*self.request.joining, *trained})
        }
        attempt = self.request.attempt or Attempt()
        published = (
            manifest_corrections.digests(delta_tables.table_uri("published", self.spec.name)) if days else {}
        )
        before = {day: published.get(day, "") for day in sorted(days)} | attempt.published
        self.request = replace(
            self.request,
            partitions=sorted(days),
            versions=list(dict.fromkeys(versions)),
            joining=joining,
            attempt=Attempt(attempt.counts.at_least(counts), before),
        )
        erasure_requests.store(self.request)

    def _result(self, others: list[str]) -> ErasureResult:
        spec, removed, partitions = self.spec, self.request.total, self.request.partitions
        versions = self.request.versions
        state = champion.read_state(spec) if versions else None
        return ErasureResult(
            request=self.request.identifier,
            rows={table: sum(counts.values()) for table, counts in removed.rows.items()},
            files=sum(removed.files.values()),
            reports=removed.reports,
            partitions=partitions,
            emptied=self.request.emptied,
            versions=versions,
            champion=bool(state and state.recorded in versions),
            joining=self.request.joining,
            landed=erasure_remains.landed(spec, partitions)[:MAX_NAMED_FILES],
            hidden=0 if self.hidden else self._hidden_records(),
            references=self._references(),
            other_models=others,
            remaining=self._remaining(),
        )

    def _trained(self, counts: RemovedCounts) -> dict[str, list[str]]:
        """Versions that were trained on features of the rows of this run, by model."""
        versions: dict[str, list[str]] = {}
        for table in self.readers:
            days = counts.rows.get(f"features.{table.name}", {})
            for model in catalog.load_models_joining([table.name] if days else []):
                numbers = _registered_versions.trained_with(model, table, days)
                if numbers:
                    versions.setdefault(model.name, []).extend(numbers)
        return versions

    def _condition(self, present: Collection[str], partition: str = delta_tables.PARTITION) -> str:
        return erasure_requests.condition_sql([self.request], present, self._key, quote_identifier(partition))

    def _condition_or(self, also: str, present: Collection[str]) -> str:
        parts = [self._condition(present), also if set(self._key) <= set(present) else ""]
        return " OR ".join(filter(None, parts))

    def _condition_of_values(self, present: Collection[str]) -> str:
        """SQL of the rows of a table whose rows are not those of the model, by the columns of the request."""
        return erasure_requests.condition_sql([self.request], present, {})

    def _row_keys(self) -> list[str]:
        """Hashes of the rows that have, or had, the keys; not of those that are of somebody else by now."""
        key, columns, name = self._key, self.request.columns, self.spec.lake_column
        published = delta_tables.table_uri("published", self.spec.name)
        digest = erasure_requests.row_hash_sql(key, delta_tables.PARTITION)
        unreadable: list[str] = []
        rows = {*self.request.rows} | erased_rows.matching(
            published, self._condition, digest, needs=key, unreadable=unreadable
        )
        self.remaining += [
            f"labels and predictions of rows of {path}, which lacks a column of data.key"
            for path in unreadable
        ]
        quarantine = delta_tables.table_uri("quarantine", self.spec.name)
        digest_of_record = erasure_requests.row_hash_sql(key, name(_FEED_DATE))
        rows |= erased_rows.matching(quarantine, self._in_quarantine, digest_of_record, needs=key)

        def of_others(present: Collection[str]) -> str:
            if not {*columns, *key} <= set(present):
                return ""
            among = erasure_requests.among_sql(key, rows, delta_tables.PARTITION)
            known, wanted = (
                erasure_requests.known_sql(columns),
                erasure_requests.among_sql(columns, self.request.hashes),
            )
            return f"{among} AND {known} AND NOT {wanted}"

        return sorted(rows - erased_rows.matching(published, of_others, digest, latest=True))

    def _tables(self) -> Iterator[_Table]:
        """The tables of the model."""
        name, unpublished = self.spec.lake_column, self._unpublished_rows()
        for kind in TABLES:
            uri = delta_tables.table_uri(kind, self.spec.name)
            if kind == "quarantine":
                condition = (
                    self._with_cells if self.hidden and self._hidden_columns() else self._in_quarantine
                )
                yield _Table(kind, uri, condition, (name(_FEED), name(_FEED_DATE)))
            elif kind == "labels" and unpublished:
                also = erasure_requests.among_sql(self._key, unpublished, delta_tables.PARTITION)
                yield _Table(kind, uri, functools.partial(self._condition_or, also))
            else:
                yield _Table(kind, uri, self._condition)

    def _features(self) -> Iterator[_Table]:
        """All definitions of the feature tables that have rows of the keys."""
        for table in self.readers:
            for name in erasure_remains.definitions():
                if name.rpartition("-")[0] == table.name:
                    uri = delta_tables.table_uri("features", name)
                    yield _Table(
                        f"features.{table.name}", uri, self._condition_of_values, lock=f"features-{name}"
                    )

    def _in_quarantine(self, present: Collection[str]) -> str:
        """SQL of the records of quarantine: by key, and by the cells that they show as JSON."""
        cells = quote_identifier(self.spec.lake_column("row_values"))
        parts = [self._condition(present, self.spec.lake_column(_FEED_DATE))]
        if not self._hidden_columns():
            shown = ", ".join(
                f"TRY_CAST(json_extract_string({cells}, {text_literal(path)}) AS {SQL_TYPES[kind]}) "
                f"AS {quote_identifier(c)}"
                for c, kind in self.request.columns.items()
                for path in [erasure_requests.json_path(c)]
            )
            among = erasure_requests.among_sql(self.request.columns, self.request.hashes)
            parts.append(f"(SELECT {among} FROM (SELECT {shown}))")
        return " OR ".join(filter(None, parts))

    def _with_cells(self, present: Collection[str]) -> str:
        """SQL of the records of quarantine that are of a row, not of a partition."""
        return f"{quote_identifier(self.spec.lake_column('row_values'))} IS NOT NULL"

    def _unpublished_rows(self) -> list[str]:
        """Hashes of the rows that are in quarantine only, where it hides a column of the request and is emptied."""
        if not self.hidden or not self._hidden_columns():
            return []
        quarantine = delta_tables.table_uri("quarantine", self.spec.name)
        digest = erasure_requests.row_hash_sql(self._key, self.spec.lake_column(_FEED_DATE))
        rows = erased_rows.matching(quarantine, self._with_cells, digest, needs=self._key)
        among = erasure_requests.among_sql(self._key, rows, delta_tables.PARTITION)
        published = delta_tables.table_uri("published", self.spec.name)
        digest = erasure_requests.row_hash_sql(self._key, delta_tables.PARTITION)

        def known(present: Collection[str]) -> str:
            return among if set(self._key) <= set(present) else ""

        return sorted(rows - erased_rows.matching(published, known, digest))

    def _hidden_columns(self) -> list[str]:
        """Columns of the request whose values quarantine hides, unless they are all of the row key."""
        columns = self.request.columns
        if set(columns) <= set(self.spec.data.key):
            return []
        return [column for column in columns if column in self.spec.personal_columns]

    def _hidden_records(self) -> int:
        """Records of quarantine of which is not known whose they are."""
        uri = delta_tables.table_uri("quarantine", self.spec.name)
        if not self._hidden_columns():
            return 0
        with duckdb_session.connect(threads=1) as con:
            if not duckdb_session.create_view(con, "__quarantine", uri):
                return 0
            cells = quote_identifier(self.spec.lake_column("row_values"))
            return int(con.sql(f"SELECT count({cells}) FROM __quarantine").fetchall()[0][0])

    def _references(self) -> list[str]:
        """Reference tables of which a version has such rows; those of older versions are not read again."""
        return [
            reference.name
            for reference in self.spec.references
            if erased_rows.matching(reference_tables.uri(reference), self._condition_of_values, "''")
        ]

    def _reports(self) -> list[str]:
        return erasure_remains.reports(self.spec, self.request.columns, self.request.partitions)

    def _remaining(self) -> list[str]:
        """What else may have such values."""
        columns = self.request.columns
        return [
            *self.remaining,
            *erasure_remains.other_entities(columns, self.readers),
            *erasure_remains.without_folder(),
            *erasure_remains.other_reports(self.spec, columns),
        ]


def _add(counts: dict[str, int], rows: Counter[tuple[str, ...]]) -> None:
    """Add numbers of rows, by the last value that they were counted by."""
    for group, count in rows.items():
        counts[group[-1]] = counts.get(group[-1], 0) + count


def check_not_erased(model: str, version: str, error: PerennialError) -> None:
    """Say that rows of a version's training were erased, where that is why it cannot be read.

    Args:
        model: name of the model.
        version: number of the version.
        error: why its table versions cannot be read.

    Raises:
        DataError: rows of its training were erased.
    """
    record = erasure_of(model, version)
    if record is not None:
        raise DataError(
            f"version {version} cannot be trained again: rows of its training were erased at {record['recorded_at']} "
            f"(request {record['evidence']['request']}, record {record['sequence']} of the ledger)",
            "train a new version, which replaces it; delete the version in MLflow when nothing uses it",
            model=model,
        ) from error
