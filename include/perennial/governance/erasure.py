"""Right to erasure: the rows of keys leave the tables of a model, and a record says so without the keys.

What is removed: published rows, labels, predictions, logged features, records in quarantine, rows of feature tables,
and each file of an older table version that has one of them. What is landed is not ours to change: the files that hold
the keys are named, and what they still have of them is not published again. A version that was trained on such rows is
named, too: it has to be trained again, and then to be deleted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import pyarrow as pa

from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.partitions import PartitionRange
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.features import reference_tables, serving_log
from perennial.governance import erased_rows, holds
from perennial.governance.erased_rows import Condition, RemovedRows
from perennial.ingestion import erasure_requests
from perennial.ingestion.erasure_requests import ErasureRequest
from perennial.ingestion.run import LABELS_STEP, STEP
from perennial.lifecycle import champion
from perennial.modeling.training_records import TrainingRecord
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec, source_specs
from perennial.storage import (
    delta_tables,
    duckdb_session,
    landing,
    ledger,
    locks,
    manifests,
    object_store,
)
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest

#: Tables of a model with rows of its keys, in the order in which they are searched.
TABLES = ("published", "labels", "quarantine", "predictions", "served")
#: Columns by which records in quarantine are counted, by their usual names.
_FEED, _FEED_DATE = "feed", "feed_date"
#: Landed files that a record names.
MAX_NAMED_FILES = 50
log = logging.getLogger("perennial")


class ErasureResult(TypedDict):
    """What `erase` did.

    Attributes:
        request: name of the request.
        rows: number of rows that were removed, by table.
        files: number of files of older table versions that were deleted.
        reports: number of data docs and profiles that were deleted, because they may quote columns that are not
            declared personal.
        partitions: the partitions that had such rows, in order.
        versions: numbers of the versions that were fitted or evaluated on these partitions, to be trained again.
        champion: whether the champion is one of them.
        landed: files of the landing area that hold such rows, or did when they were published.
        hidden: records of quarantine that hide a column of the request, and may be of its keys.
        references: reference tables that have such rows: land them without.
        other_models: models whose own rows the feature tables read: erase there, too.
    """

    request: str
    rows: dict[str, int]
    files: int
    reports: int
    partitions: list[str]
    versions: list[str]
    champion: bool
    landed: list[str]
    hidden: int
    references: list[str]
    other_models: list[str]


def erase(spec: ModelSpec, *, request: str, actor: str = "", hidden: bool = False) -> ErasureResult:
    """Erase the rows of a request, and record that in the ledger; it is safe to repeat.

    Args:
        spec: the model.
        request: name of the request.
        actor: who asks for it, for the ledger; the one who made the request when empty.
        hidden: also remove the records of quarantine of which is not known whose they are, because they hide a column
            of the request.

    Raises:
        PerennialError: there is no such request, or the model's rows are held for an audit.
        StorageError: the lake cannot be read or written; repeat it.
    """
    with locks.hold(f"erase-{spec.name}"):
        wanted = erasure_requests.load(spec.name, request)
        holds.refuse(spec.name, "rows are erased")
        erasure = _Erasure(spec, wanted)
        result = erasure.run(hidden)
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


@dataclass
class _Erasure:
    """One request, carried out.

    Attributes:
        spec: the model.
        request: the request, which gets the hashes of the row keys.
    """

    spec: ModelSpec
    request: ErasureRequest

    @property
    def _key(self) -> dict[str, str]:
        return {column: self.spec.data.columns[column] for column in self.spec.data.key}

    def run(self, hidden: bool) -> ErasureResult:
        """Remove the rows, and all that was made of them and can be removed."""
        spec, published = self.spec, delta_tables.table_uri("published", self.spec.name)
        rows = self._row_keys(published, self._condition)
        rows |= self._row_keys(delta_tables.table_uri("quarantine", spec.name), self._in_quarantine)
        self.request = replace(self.request, rows=sorted({*self.request.rows, *rows}))
        erasure_requests.store(self.request)  # before rows are removed, by which others are found
        before, unpublished = _digests(published), self._unpublished_keys() if hidden else []
        removed = {kind: self._remove(kind, hidden, unpublished) for kind in TABLES}
        affected = sorted(_days(removed))
        self._correct_manifests(removed, before)
        tables, others = self._remove_features()
        removed |= tables
        versions = _trained_on(spec, affected)
        state = champion.read_state(spec) if versions else None
        return ErasureResult(
            request=self.request.identifier,
            rows={name: parts.rows.total() for name, parts in removed.items()},
            files=sum(parts.files for parts in removed.values()),
            reports=self._delete_reports(affected),
            partitions=affected,
            versions=versions,
            champion=bool(state and state.recorded in versions),
            landed=_landed(spec, affected)[:MAX_NAMED_FILES],
            hidden=0 if hidden else self._hidden_records(),
            references=self._references(),
            other_models=others,
        )

    def _condition(self, present: Collection[str]) -> str:
        return erasure_requests.condition_sql(self.request, present, self._key)

    def _row_keys(self, uri: str, condition: Condition) -> set[str]:
        """Hashes of the row keys of a table's rows, in all of its versions."""
        return erased_rows.matching(uri, condition, erasure_requests.hash_sql(self._key))

    def _remove(self, kind: str, hidden: bool, unpublished: list[str]) -> RemovedRows:
        """Remove the rows from one of the model's tables.

        Args:
            kind: kind of the table.
            hidden: also those records of quarantine of which is not known whose they are.
            unpublished: hashes of row keys whose labels go with these records.
        """
        uri, name = delta_tables.table_uri(kind, self.spec.name), self.spec.lake_column
        if kind == "labels" and unpublished:
            also = _among(erasure_requests.hash_sql(self._key), unpublished)
            return erased_rows.remove(uri, lambda columns: f"{self._condition(columns) or 'FALSE'} OR {also}")
        if kind != "quarantine":
            return erased_rows.remove(uri, self._condition)
        condition = self._in_quarantine
        if hidden and self._hidden_columns():
            condition = self._with_cells
        return erased_rows.remove(uri, condition, (name(_FEED), name(_FEED_DATE)))

    def _in_quarantine(self, present: Collection[str]) -> str:
        """SQL of the records of quarantine: by key, and by the cells that they show as JSON."""
        cells = quote_identifier(self.spec.lake_column("row_values"))
        parts = [self._condition(present)]
        if not self._hidden_columns():
            shown = ", ".join(
                f"TRY_CAST(json_extract_string({cells}, {text_literal(_json_path(c))}) AS {SQL_TYPES[kind]}) "
                f"AS {quote_identifier(c)}"
                for c, kind in self.request.columns.items()
            )
            digest = erasure_requests.hash_sql(self.request.columns)
            parts.append(_among(f"(SELECT {digest} FROM (SELECT {shown}))", self.request.hashes))
        return " OR ".join(filter(None, parts))

    def _with_cells(self, present: Collection[str]) -> str:
        """SQL of the records of quarantine that are of a row, not of a partition."""
        return f"{quote_identifier(self.spec.lake_column('row_values'))} IS NOT NULL"

    def _unpublished_keys(self) -> list[str]:
        """Hashes of the row keys that are in quarantine only, where it hides a column of the request."""
        if not self._hidden_columns():
            return []
        digest = erasure_requests.hash_sql(self._key)
        keys = self._row_keys(delta_tables.table_uri("quarantine", self.spec.name), self._with_cells)
        published = delta_tables.table_uri("published", self.spec.name)
        return sorted(keys - self._row_keys(published, lambda _: _among(digest, sorted(keys))))

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

    def _correct_manifests(self, removed: Mapping[str, RemovedRows], before: Mapping[str, str]) -> None:
        """Let the manifests say what the tables hold: otherwise what is finished would be done again."""
        spec = self.spec
        tables = {kind: _digests(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")}
        quarantined: Counter[tuple[str, str]] = Counter()
        for (_, feed, day), count in removed["quarantine"].rows.items():
            quarantined[LABELS_STEP if feed == "labels" else STEP, day] += count
        for step, kind in ((STEP, "published"), (LABELS_STEP, "labels")):
            gone = Counter({group[0]: n for group, n in removed[kind].rows.items()})
            days = {*gone, *(day for of_step, day in quarantined if of_step == step)}
            for manifest in manifests.read_all(spec.name, step, sorted(days)).values():
                day = manifest.key
                manifests.rewrite(_without_rows(manifest, gone[day], quarantined[step, day], tables))
        self._correct_scores(removed, before, tables["published"])

    def _correct_scores(
        self, removed: Mapping[str, RemovedRows], before: Mapping[str, str], after: Mapping[str, str]
    ) -> None:
        """Let the manifests of scoring, and the logged features, name the rows that are left."""
        spec, gone = self.spec, Counter({g[0]: n for g, n in removed["predictions"].rows.items()})
        days = {*gone, *removed["published"].partitions}
        for day, manifest in manifests.read_all(spec.name, "score", sorted(days)).items():
            if manifest.inputs.get("rows") != before.get(day, ""):
                continue  # scored from other rows: it is scored again
            inputs = {**manifest.inputs, "rows": after.get(day, "")}
            rows = manifest.rows_out - gone[day]
            result = {**manifest.result, "rows": rows}
            manifests.rewrite(replace(manifest, inputs=inputs, rows_in=rows, rows_out=rows, result=result))
            _relabel_log(spec, day, serving_log.inputs_digest(inputs))

    def _remove_features(self) -> tuple[dict[str, RemovedRows], list[str]]:
        """Remove the rows of entities from feature tables; returns also the other models that these tables read."""
        removed: dict[str, RemovedRows] = {}
        others: set[str] = set()
        for name in sorted(self._feature_tables()):
            tables = _definitions(name)
            parts = [erased_rows.remove(uri, self._condition_of_entities) for uri in tables]
            total: Counter[tuple[str, ...]] = Counter()
            for part in parts:
                total += part.rows
            removed[f"features.{name}"] = RemovedRows(total, sum(part.files for part in parts))
            if removed[f"features.{name}"].rows:
                others |= {source.name for source in source_specs(catalog.load_feature_table(name))}
        return removed, sorted(others - {self.spec.name})

    def _condition_of_entities(self, present: Collection[str]) -> str:
        return erasure_requests.condition_sql(replace(self.request, rows=[]), present, self._key)

    def _feature_tables(self) -> set[str]:
        """Names of the feature tables that read this model's rows."""
        names = set()
        for name in catalog.find_folders(catalog.TABLE_FILE):
            try:
                table = catalog.load_feature_table(name)
            except SpecError as error:
                raise PerennialError(
                    f"feature table {name}, which may have such rows, is invalid: {error.cause}",
                    "correct it; then repeat the erasure",
                    model=self.spec.name,
                ) from error
            if any(source.name == self.spec.name for source in source_specs(table)):
                names.add(name)
        return names

    def _references(self) -> list[str]:
        """Reference tables of which a version has such rows; those of older versions are not read again."""
        return [
            reference.name
            for reference in self.spec.references
            if erased_rows.matching(reference_tables.uri(reference), self._condition_of_entities, "''")
        ]

    def _delete_reports(self, partitions: Sequence[str]) -> int:
        """Delete the data docs and profiles of partitions, if a column of the request is not declared personal."""
        if set(self.request.columns) <= set(self.spec.personal_columns):
            return 0
        deleted = 0
        for kind in ("validation", "profile"):
            folder = delta_tables.table_uri("reports", self.spec.name) + f"/{kind}"
            for name in object_store.list_files(folder):
                if any(_covers(name.partition(".html")[0].partition(".json")[0], day) for day in partitions):
                    object_store.delete_file(f"{folder}/{name}")
                    deleted += 1
        return deleted


def _among(digest: str, hashes: Sequence[str]) -> str:
    """SQL condition that a hash is one of some."""
    return f"coalesce({digest} IN ({', '.join(map(text_literal, hashes))}), FALSE)" if hashes else "FALSE"


def _covers(name: str, day: str) -> bool:
    """Whether a report of this name is about a partition: ``day``, ``day.suffix`` or ``first..last``."""
    first, separator, last = name.partition("..")
    return first <= day <= last if separator else name.startswith(day)


def _json_path(column: str) -> str:
    quoted = column.replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{quoted}"'


def _digests(uri: str) -> dict[str, str]:
    """The `delta_tables.files_digest` of each partition of a table."""
    files = delta_tables.files_by_partition(uri)
    return {day: delta_tables.files_digest(listed) for day, listed in files.items()}


def _days(removed: Mapping[str, RemovedRows]) -> set[str]:
    """The partitions of the rows that were removed; records in quarantine count for the one of their file."""
    days = {day for kind in TABLES if kind != "quarantine" for day in removed[kind].partitions}
    return days | {day for _, _, day in removed["quarantine"].rows}


def _without_rows(
    manifest: Manifest, gone: int, quarantined: int, tables: Mapping[str, Mapping[str, str]]
) -> Manifest:
    """The manifest of the rows, or labels, that are left of a partition."""
    files = manifest.outputs.get("files") or {}
    rows_out = manifest.rows_out - gone
    in_quarantine = max(0, manifest.quarantined - quarantined)
    counts: dict[str, Any] = {"rows_in": rows_out + in_quarantine, "rows_out": rows_out,
                              "quarantined": in_quarantine, "labels": manifest.result.get("labels", 0) - gone,
                              "labels_quarantined": in_quarantine}  # fmt: skip
    if manifest.step == STEP and not manifest.result.get("labels"):
        counts["labels"] = 0  # they have a feed of their own
    present = {kind: tables[kind].get(manifest.key, "") for kind in files if kind in tables}
    return replace(
        manifest,
        rows_in=counts["rows_in"],
        rows_out=rows_out,
        quarantined=in_quarantine,
        result={**manifest.result, **{k: n for k, n in counts.items() if k in manifest.result}},
        outputs={**manifest.outputs, "files": {**files, **present}},
    )


def _relabel_log(spec: ModelSpec, day: str, digest: str) -> None:
    """Let the logged features of a partition name the scoring as its manifest has it now."""
    with duckdb_session.connect(threads=1) as con:
        if not duckdb_session.create_view(con, "__log", serving_log.uri(spec.name), None, day, day):
            return
        rows: pa.Table = con.sql("SELECT * FROM __log").to_arrow_table()
    name = spec.lake_column("scored_from")
    column = pa.array([digest] * len(rows), rows.schema.field(name).type)
    rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    delta_tables.replace(serving_log.uri(spec.name), rows, day)


def _definitions(name: str) -> list[str]:
    """The lake tables of all definitions of a feature table."""
    folder = f"{delta_tables.table_uri('features', '')}".rstrip("/")
    return [f"{folder}/{n}" for n in object_store.list_folders(folder) if n.rpartition("-")[0] == name]


def _trained_on(spec: ModelSpec, partitions: Sequence[str]) -> list[str]:
    """Numbers of the versions that were fitted or evaluated on some partitions, by the ledger."""
    numbers = []
    for record in ledger.records(spec.name, LedgerKind.TRAINING):
        if not record["model_version"]:
            continue
        tags = TrainingRecord.parse(record).tags
        ranges = [tags.get(name) for name in ("trained_range", "refit_range", "holdout_range")]
        spans = [PartitionRange.parse(text) for text in ranges if text]
        if any(span.start <= day <= span.end for span in spans for day in partitions):
            numbers.append(record["model_version"])
    return list(dict.fromkeys(numbers))


def _landed(spec: ModelSpec, partitions: Sequence[str]) -> list[str]:
    """The landed files of some partitions that are still there."""
    uris = [
        landing.source_uri(source, day)
        for source in (spec.data.source, spec.label.source)
        if isinstance(source, str)
        for day in partitions
    ]
    return [uri for uri in dict.fromkeys(uris) if landing.has_landed(uri)]


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
