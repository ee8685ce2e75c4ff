"""The tables of one model in the lake: the columns that its spec gives them, compared with those that exist.

A table holds rows of one definition: their task, label and key, and the types of their columns. Where the spec has
another one, a table is converted without changing a value, or nothing is written until a person begins a new
generation of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from perennial.core.errors import SpecError
from perennial.core.partitions import MAX_PARTITIONS, Cadence
from perennial.core.sql import shorten
from perennial.ingestion import publishing
from perennial.ingestion.table_definitions import definition, writer_of
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, generations, ledger, locks
from perennial.storage.generations import ColumnChange
from perennial.storage.ledger import Decision, LedgerKind

if TYPE_CHECKING:
    from deltalake import DeltaTable

#: Tables that the data step writes, and those that the score step writes.
DATA_TABLES, SCORE_TABLES = ("published", "labels", "quarantine"), ("predictions", "served")
#: Seconds to wait for another run that converts a table.
LOCK_SECONDS = 600
#: What to do about a table with another definition.
REMEDY = (
    "undo the change of the spec; or begin a new generation of the tables: `perennial new-generation {model}` says "
    "what it would do, and how to publish the partitions again"
)
#: Columns of these tables beside the key (`ModelSpec.lake_column`).
_LAKE_COLUMNS = (
    "label", "arrived", "feed", "feed_date", "row_values", "reasons", "run_id", "prediction", "probabilities",
    "model_version", "scored_at", "features", "scored_from",
)  # fmt: skip
_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(),
    "date": pa.date32(), "timestamp": pa.timestamp("us"),
}  # fmt: skip
_LABEL_TYPES: dict[str, pa.DataType] = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "VARCHAR": pa.string()}
#: What to do about a table with partitions of another length.
_OTHER_CADENCE = (
    "undo the change of data.every or data.week_starts, or give the model's folder another name: a model keeps the "
    "length of its partitions"
)
log = logging.getLogger("perennial")


@dataclass(frozen=True)
class TableState:
    """A model's table that exists, compared with the spec.

    Attributes:
        kind: ``published``, ``labels``, ``quarantine``, ``predictions`` or ``served``.
        writer: writes to the table, which it has open.
        schema: the columns that the spec gives it.
        definition: what its rows mean according to the spec.
        number: number of its generation.
        recorded: whether the table records what its rows mean.
        widened: columns whose stored values can be converted exactly to the spec's type.
        conflicts: why the table cannot hold the spec's rows.
    """

    kind: str
    writer: delta_tables.Writer
    schema: pa.Schema
    definition: dict[str, Any]
    number: int
    recorded: bool
    widened: list[ColumnChange]
    conflicts: list[str]

    def rows_by_partition(self) -> dict[str, int]:
        """The number of rows of each partition, by date, in order."""
        return delta_tables.rows_by_partition(self.writer.uri)


def compare(spec: ModelSpec, kinds: Iterable[str] = (*DATA_TABLES, *SCORE_TABLES)) -> list[TableState]:
    """Compare a model's tables with its spec; tables that do not exist are omitted.

    Raises:
        SpecError: ``label.expression`` fails.
        StorageError: a table cannot be read.
    """
    writers = {kind: writer_of(spec, kind) for kind in kinds}
    states = []
    with ThreadPoolExecutor(len(writers), thread_name_prefix="tables") as pool:
        tables = dict(zip(writers, pool.map(delta_tables.Writer.open, writers.values()), strict=True))
    for kind, writer in writers.items():
        if (table := tables[kind]) is None:
            continue
        schema, meaning = _schema(spec, kind), definition(spec, kind)
        changes = generations.changes(table, schema, spec.data.key)
        stored = generations.definition(table)
        before = {"key": _key_of(spec, table)} if stored is None and "key" in meaning else stored or {}
        reasons = [
            f"{name} was {shorten(before[name])} and is {shorten(value)}"
            for name, value in meaning.items()
            if before.get(name, value) != value
        ]
        reasons += [
            f"column {c.column!r} is {c.before} in the table and {c.after} in the spec" if c.after else str(c)
            for c in changes
            if not c.lossless
        ]
        reasons += _other_cadence(spec, table)
        widened = [c for c in changes if c.lossless]
        number = generations.number(table)
        states.append(TableState(kind, writer, schema, meaning, number, stored is not None, widened, reasons))
    return states


def _other_cadence(spec: ModelSpec, table: DeltaTable) -> list[str]:
    """Why the keys of a table's partitions are not those of the spec."""
    keys = [str(p[delta_tables.PARTITION]) for p in table.partitions()]
    wrong = next((key for key in keys if not spec.cadence.is_key(key)), None)
    if wrong is None:
        return []
    return [f"it has the partition {wrong}, which is no {spec.cadence.unit} ({_OTHER_CADENCE})"]


def reconcile(spec: ModelSpec, kinds: Sequence[str]) -> dict[str, Any]:
    """Make sure that tables can hold the rows of the spec, before a step writes to one of them.

    Columns whose type only became wider are converted, which the ledger records.

    Args:
        spec: the model.
        kinds: the tables that the step writes.

    Returns:
        What the inputs of the step's manifests have in addition, so that a manifest of an earlier generation does not
        count: ``generations``, the number of each table's that is not in its first; empty if all are.

    Raises:
        SpecError: a table has rows of another definition, or of types that cannot be converted exactly.
        StorageError: a table cannot be read or written.
    """
    states = _compatible(spec, kinds)
    if any(state.widened or not state.recorded for state in states):
        with locks.hold(
            f"tables-{spec.name}", timeout=LOCK_SECONDS
        ):  # one of several runs changes the tables
            states = _compatible(spec, kinds)
            for state in states:
                if state.widened:
                    _widen(spec, state)
                if not state.recorded:
                    generations.adopt(state.writer.uri, state.definition)
    newer = {s.kind: s.number for s in states if s.number > 1}
    return {"generations": newer} if newer else {}


def _compatible(spec: ModelSpec, kinds: Sequence[str]) -> list[TableState]:
    """The state of tables that can hold the rows of the spec, as they are or once they are converted."""
    states = compare(spec, kinds)
    if reasons := _conflicts(states):
        raise _refusal(spec, reasons)
    return states


def conflicts(spec: ModelSpec, kinds: Iterable[str]) -> list[str]:
    """Why tables do not fit the spec, so that what they hold must not be read as what the spec describes.

    Args:
        spec: the model.
        kinds: the tables.

    Raises:
        SpecError: ``label.expression`` fails.
        StorageError: a table cannot be read.
    """
    return _conflicts(compare(spec, kinds))


def check(spec: ModelSpec, kinds: Iterable[str]) -> None:
    """Refuse to read tables that do not fit the spec.

    Raises:
        SpecError: they do not, or ``label.expression`` fails.
        StorageError: a table cannot be read.
    """
    if reasons := conflicts(spec, kinds):
        raise _refusal(spec, reasons)


def _conflicts(states: Iterable[TableState]) -> list[str]:
    return [f"{s.kind}: {conflict}" for s in states for conflict in s.conflicts]


def _refusal(spec: ModelSpec, reasons: Sequence[str]) -> SpecError:
    return SpecError(
        f"the spec does not fit the tables in the lake, which were not changed: {'; '.join(reasons)}",
        REMEDY.format(model=spec.name),
        model=spec.name,
    )


def _widen(spec: ModelSpec, state: TableState) -> None:
    """Convert columns of a table, and record it in the ledger."""
    text = ", ".join(f"{c.column} from {c.before} to {c.after}" for c in state.widened)
    reason = f"{state.kind}: {text}, as the spec declares"
    before = delta_tables.version(state.writer.uri)
    try:
        version = generations.widen(state.writer.uri, state.schema, [c.column for c in state.widened], reason)
    except generations.InexactError as error:
        change = next(c for c in state.widened if c.column == str(error))
        raise _refusal(
            spec,
            [
                f"{state.kind}: column {change.column!r} is {change.before} in the table and {change.after} in the "
                "spec, and has values that this type cannot represent exactly"
            ],
        ) from None
    log.info("Model %s: converted %s.", spec.name, reason)
    ledger.append(
        spec.name,
        kind=LedgerKind.GENERATION,
        decision=Decision.WIDENED,
        reason=reason,
        actor="data",
        evidence={"table": state.kind, "version": version, "before": before},
    )


def _schema(spec: ModelSpec, kind: str) -> pa.Schema:
    """The columns of a table, with the types that the spec gives them."""
    key = {k: _TYPES[spec.data.columns[k]] for k in spec.data.key}
    text = pa.string()
    prediction = text if spec.task == "multiclass" else pa.float32()
    columns: dict[str, pa.DataType] = {}
    match kind:
        case "published":
            key |= {c: _TYPES[declared] for c, declared in spec.data.columns.items()}
        case "labels":
            columns = {"label": _LABEL_TYPES[publishing.label_type(spec)], "arrived": text}
        case "quarantine":
            columns = dict.fromkeys(("feed", "feed_date", "row_values", "run_id"), text)
            columns["reasons"] = pa.list_(text)
        case "predictions":
            columns = {"prediction": prediction}
            columns |= dict.fromkeys(("model_version", "run_id", "scored_at"), text)
        case _:
            columns = {"features": pa.list_(pa.float32()), "prediction": prediction}
            columns |= dict.fromkeys(("model_version", "scored_from"), text)
    named = {spec.lake_column(name): sql_type for name, sql_type in columns.items()}
    return pa.schema({**key, **named, delta_tables.PARTITION: text})


def _key_of(spec: ModelSpec, table: DeltaTable) -> list[str]:
    """The key of a table that has no other columns than its key and those of the lake."""
    names = {str(f.name) for f in table.schema().fields}
    return sorted(names - {*map(spec.lake_column, _LAKE_COLUMNS), delta_tables.PARTITION})


@dataclass(frozen=True)
class GenerationPlan:
    """What beginning a new generation of a model's tables changes.

    Attributes:
        tables: the tables that are emptied.
        reasons: why the spec does not fit them.
        published: dates of the partitions whose data has to be published again, in order.
        scored: dates of the partitions whose predictions are removed, in order.
        cadence: of the partitions.
    """

    tables: list[TableState]
    reasons: list[str]
    published: list[str]
    scored: list[str]
    cadence: Cadence

    def commands(self, model: str, step: str) -> list[str]:
        """The commands that publish (``data``) or score (``score``) these partitions again."""
        days = self.published if step == "data" else self.scored
        prefix = f"perennial run {step} --model {model}"
        return [f"{prefix} --start {span[0]} --end {span[-1]}" for span in _spans(self.cadence, days)]


def plan_generation(spec: ModelSpec, *, force: bool = False) -> GenerationPlan:
    """Plan a new generation of the tables that the spec does not fit.

    All others depend on the published rows: they are emptied with them.

    Args:
        spec: the model.
        force: plan one of all tables even if the spec fits them.

    Raises:
        SpecError: there is nothing to change; or ``label.expression`` fails.
        StorageError: a table cannot be read.
    """
    states = compare(spec)
    concerned = [s for s in states if s.conflicts or _inexact(s)]
    reasons = [f"{s.kind}: {reason}" for s in concerned for reason in s.conflicts or map(str, s.widened)]
    if force or any(s.kind == "published" for s in concerned):
        concerned = states
    if other := [reason for reason in reasons if _OTHER_CADENCE in reason]:
        raise SpecError("a new generation cannot change " + other[0], _OTHER_CADENCE, model=spec.name)
    if not concerned:
        raise SpecError(
            "no table has to change: the spec fits those in the lake",
            "to begin a new generation all the same, use --force",
            model=spec.name,
        )
    published = delta_tables.partitions(delta_tables.table_uri("published", spec.name))
    predictions = next((s for s in concerned if s.kind == "predictions"), None)
    scored = delta_tables.partitions(predictions.writer.uri) if predictions else []
    return GenerationPlan(concerned, reasons, published, scored, spec.cadence)


def begin_generation(spec: ModelSpec, plan: GenerationPlan, *, reason: str, actor: str) -> None:
    """Empty the tables of a plan and give them the columns of the spec; their old versions stay readable.

    Args:
        spec: the model.
        plan: from `plan_generation`.
        reason: why, for the ledger and the tables' histories.
        actor: who begins it, for the ledger.

    Raises:
        StorageError: the lake cannot be written. Tables that were not emptied yet are still planned next time.
    """
    ledger.append(
        spec.name,
        kind=LedgerKind.GENERATION,
        decision=Decision.STARTED,
        reason=reason,
        actor=actor,
        partition=f"{plan.published[0]}..{plan.published[-1]}" if plan.published else None,
        evidence={
            "reasons": plan.reasons,
            "tables": {
                s.kind: {"generation": s.number + 1, "version_before": delta_tables.version(s.writer.uri)}
                for s in plan.tables
            },
        },
    )
    # Published rows last: as long as they are not emptied, a plan has all tables.
    for state in sorted(plan.tables, key=lambda s: s.kind == "published"):
        generations.start(state.writer.uri, state.schema, state.definition, f"{reason} ({actor})")


def _inexact(state: TableState) -> bool:
    """Whether the stored values of a column do not exist in its wider type."""
    columns = [c.column for c in state.widened]
    return bool(columns) and not generations.exact(state.writer.uri, state.schema, columns)


def _spans(cadence: Cadence, days: list[str]) -> Iterator[list[str]]:
    """Divide partitions into ranges that a step accepts."""
    while days:
        end = cadence.shift(days[0], MAX_PARTITIONS[cadence.unit] - 1)
        yield [d for d in days if d <= end]
        days = [d for d in days if d > end]
