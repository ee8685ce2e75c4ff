"""Compose the files of a new model from a sample and the decisions about the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from perennial.cli.new import inference, training_sections
from perennial.cli.new.samples.event_times import on_clock
from perennial.cli.new.samples.sample_reader import Sample, SampleColumn
from perennial.core.partitions import DAILY, WEEKDAYS, Cadence, date_of
from perennial.core.sql import fold_identifier, quote_identifier
from perennial.feeds.text_casts import TextFormat
from perennial.spec.constraints import (
    UNSUPPORTED_IN_FEATURES,
    feature_name_fault,
)
from perennial.spec.sections import ColumnType
from perennial.spec.text_format import TextFormatSpec

__all__ = [
    "FREE_TEXT_LENGTH",
    "ROW_NUMBER",
    "Feature",
    "ModelDraft",
    "features",
    "label_is_column",
    "model_text",
    "readme_text",
    "sql_text",
    "yaml_text",
]

#: A text column with more distinct values is not a categorical feature.
MAX_CATEGORIES = 500
#: Mean length above which a text column is free text.
FREE_TEXT_LENGTH = 40
#: A sample ended long ago if this time, and this many partitions, have passed since.
ENDED_AFTER, ENDED_PARTITIONS = timedelta(days=30), 3
#: Name of the column with a row's number, unless a column has it.
ROW_NUMBER = "row"
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class ModelDraft:
    """The decisions about a new model.

    Attributes:
        name: name of the model.
        task: its task.
        label: column to predict.
        key: columns that identify a row.
        event_time: column with the time of the event; None if there is none.
        owner: who is responsible for it.
        description: what it predicts.
        source: path template of its files; of a query its section as JSON.
        days: number of rows of each partition of the sample.
        group: ranking: column that identifies the list of a row.
        positive: binary: the value of the positive class, unless the label is boolean, or 0 and 1.
        personal: columns of personal data.
        schema: path of the JSON Schema, relative to the folder of the model.
        row_number: the key, if it is the number of a row in its file, which is none of the sample's columns.
        time_parts: features of each date and time, as `inference.time_parts` gives them.
        zones: zone of the clock that these are read from, by column; UTC if it is not there.
        label_sql: SQL of the label, if it is not the column as it is.
        cadence: how long a partition is.
        has_gaps: whether the sample has no rows of some partitions.
        quarantine_limit: share of bad rows that a partition may have, if the sample has more than usual.
        delivery: what the feed has to deliver, and when; empty if the sample is delivered like that.
        shuffled: whether the sample's rows were divided into partitions at random.
    """

    name: str
    task: str
    label: str
    key: list[str]
    event_time: str | None
    owner: str
    description: str
    source: str
    days: dict[str, int]
    group: str | None = None
    positive: Any = None
    personal: list[str] = field(default_factory=list)
    schema: str = "../model.schema.json"
    row_number: str | None = None
    time_parts: dict[str, list[str]] = field(default_factory=dict)
    zones: dict[str, str] = field(default_factory=dict)
    label_sql: str | None = None
    cadence: Cadence = DAILY
    has_gaps: bool = False
    quarantine_limit: float | None = None
    delivery: str = ""
    shuffled: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the sample ended long ago, so that its feed may not be delivered any more."""
        last = self.cadence.end_of(max(self.days))
        unit = self.cadence.end_of(max(self.days)) - self.cadence.start_of(max(self.days))
        return datetime.now(UTC) - last > max(ENDED_AFTER, ENDED_PARTITIONS * unit)

    @property
    def queried(self) -> bool:
        """Whether the rows come from a query: a path begins with ``{landing}`` or ``s3://``."""
        return self.source.startswith('{"')


@dataclass
class Feature:
    """One column of ``features.sql``."""

    sql: str
    name: str
    categorical: bool = False


def features(sample: Sample, draft: ModelDraft) -> tuple[list[Feature], dict[str, str]]:
    """The features of a model, and the reason why each other column is left out."""
    result: list[Feature] = []
    left_out: dict[str, str] = {}
    names = {fold_identifier(c) for c in sample.columns}

    def feature(sql: str, name: str, categorical: bool = False) -> Feature:
        """A feature called ``name``, or much like it if a column or a feature has that name already."""
        while fold_identifier(name) in names:
            name += "_"
        names.add(fold_identifier(name))
        return Feature(f"{sql} AS {_sql_name(name)}", name, categorical)

    for column in sample.columns.values():
        name = column.name
        used = name not in (draft.label, draft.group, *draft.personal, *draft.key)
        if used and (amount := inference.amount_in_text(sample, column)):
            result.append(feature(amount, f"{_feature_name(name)}_amount"))
        elif reason := _exclusion_reason(column, sample, draft):
            left_out[name] = reason
        elif column.kind in ("date", "timestamp"):
            if not draft.time_parts.get(name):
                left_out[name] = "hour, weekday and month do not differ between rows"
            for part in draft.time_parts.get(name, []):
                word = "weekday" if part == "dayofweek" else part
                moment = on_clock(_sql_name(name), draft.zones.get(name, "UTC"))
                result.append(feature(f"{part}({moment})", f"{_feature_name(name)}_{word}"))
        elif name in draft.key:  # SQL returns the key under its own name
            result.append(feature(_sql_name(name), f"{_feature_name(name)}_feature", column.kind == "string"))
        elif _feature_name(name) != name:
            result.append(feature(_sql_name(name), _feature_name(name), column.kind == "string"))
        else:
            result.append(Feature(_sql_name(name), name, column.kind == "string"))
    return result, left_out


def _feature_name(column: str) -> str:
    """A column's name as a feature: without characters that XGBoost refuses, and not one that is reserved."""
    name = UNSUPPORTED_IN_FEATURES.sub("_", column.replace("[", "(").replace("]", ")"))
    return f"{name}_column" if feature_name_fault(name) else name


def _exclusion_reason(column: SampleColumn, sample: Sample, draft: ModelDraft) -> str:
    """Why a column is not a feature; empty if it is one."""
    if column.name == draft.label:
        return "the label"
    if column.name == draft.group:
        return "identifies the list"
    if column.name in draft.personal:
        return "personal data"
    rows = sum(sample.rows)
    if column.distinct == 1 and not column.nulls:
        return "constant in the sample"
    if column.kind == "string" and column.length > FREE_TEXT_LENGTH:
        return "free text"
    if column.unique and inference.is_identifier(column, rows):
        return "identifies the row" if column.name in draft.key else "another value in each row"
    if column.kind == "string" and (column.distinct > MAX_CATEGORIES or column.distinct > max(20, rows // 2)):
        return f"{column.distinct} distinct values, too many for a categorical feature"
    return ""


def _sql_name(name: str) -> str:
    return (
        name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in _RESERVED else quote_identifier(name)
    )


#: Keywords that DuckDB does not accept as the name of a column (``duckdb_keywords()``).
_RESERVED = frozenset(
    """
    all analyse analyze and anti any array as asc asof asymmetric at authorization binary both by case
    cast check collate collation column columns concurrently constraint create cross default deferrable
    desc describe distinct do else end except false fetch for foreign freeze from full generated glob
    group having ilike in initially inner intersect into is isnull join lambda lateral leading left like
    limit map natural not notnull null offset on only or order outer overlaps pivot pivot_longer
    pivot_wider placing positional primary qualify references returning right select semi show similar
    some struct summarize symmetric table tablesample then to trailing true try_cast tuple union unique
    unpack unpivot using variadic verbose when where window with
    """.split()  # noqa: SIM905
)


def sql_text(sample: Sample, draft: ModelDraft) -> str:
    """``features.sql``."""
    columns, left_out = features(sample, draft)
    lines = [*(_sql_name(k) for k in draft.key), *(f.sql for f in columns)]
    text = "-- Each row once: its key, then one column per feature. Use only what is known when a prediction is made.\n"
    text += "SELECT\n" + ",\n".join(f"    {line}" for line in lines) + "\nFROM rows\n"
    shown = {**left_out, **sample.left_out}
    if shown:
        text += "-- Left out:\n" + "".join(
            f"--   {json.dumps(n, ensure_ascii=False)}: {reason}\n" for n, reason in shown.items()
        )
    return text


def label_is_column(sample: Sample, draft: ModelDraft) -> bool:
    """Whether the label is a column as it is; otherwise an expression over the label's column."""
    return draft.label_sql is None


def model_text(sample: Sample, draft: ModelDraft) -> str:
    """``model.yaml``."""
    number: dict[str, ColumnType] = {draft.row_number: "integer"} if draft.row_number else {}
    types: dict[str, ColumnType] = number | {c.name: c.kind for c in sample.columns.values()}
    if not label_is_column(sample, draft):
        del types[draft.label]
    columns, _ = features(sample, draft)
    classes = sample.columns[draft.label].distinct if draft.task == "multiclass" else 1
    categorical = [f.name for f in columns if f.categorical]
    personal = [p for p in draft.personal if p in types]
    lines = [
        f"# yaml-language-server: $schema={draft.schema}",
        f"name: {draft.name}",
        f"task: {draft.task}",
        f"owner: {yaml_text(draft.owner)}",
        f"description: {yaml_text(draft.description)}",
        *([f"group: {yaml_text(draft.group)}"] if draft.group else []),
        "",
        "data:",
        f"  source: {_source(draft)}",
        *_cadence_lines(draft),
        f"  key: {_yaml_list(draft.key)}",
        *([f"  row_number: {yaml_text(draft.row_number)}"] if draft.row_number else []),
        *([f"  event_time: {yaml_text(draft.event_time)}"] if draft.event_time else []),
        *format_lines(sample, types),
        "  columns:",
        *(f"    {yaml_text(n)}: {kind}" for n, kind in types.items()),
        *([f"  personal: {_yaml_list(personal)}"] if personal else []),
        *([f"  quarantine_limit: {draft.quarantine_limit:g}"] if draft.quarantine_limit else []),
        "",
        *_label_lines(sample, draft),
        *(["", "features:", f"  categorical: {_yaml_list(categorical)}"] if categorical else []),
        *(["  category_order: search"] if categorical else []),
        "",
        *training_sections.training_lines(
            draft.task,
            draft.days,
            cadence=draft.cadence,
            features=len(columns) * classes,
            shuffled=draft.shuffled,
        ),
        "",
        *training_sections.monitoring_lines(draft.days, draft.cadence),
        "",
        "schedule:",
        *_schedule_lines(draft.cadence),
        f"  start: {date_of(min(draft.days))}",
        *(_end_lines(draft)),
        "",
    ]
    return "\n".join(lines)


def format_lines(sample: Sample, types: Iterable[str]) -> list[str]:
    """The section ``format`` of ``model.yaml``, with all that is not as by default; empty if that is nothing.

    Args:
        sample: the sample.
        types: the columns that the spec declares.
    """
    default, lines = TextFormat(), []
    single = {c: f for c, f in sample.text_format.date_formats.items() if c in {*types}}
    for key in TextFormatSpec.model_fields:
        value = single if key == "date_formats" else getattr(sample.text_format, key)
        if value == getattr(default, key):
            continue
        if isinstance(value, dict):
            lines += [f"    {key}:", *(f"      {yaml_text(c)}: {_formats_text(f)}" for c, f in value.items())]
        elif key == "date_format":
            lines.append(f"    {key}: {_formats_text(value)}")
        else:
            lines.append(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
    return ["  format:", *lines] if lines else []


def _formats_text(formats: Sequence[str]) -> str:
    return json.dumps(formats[0] if len(formats) == 1 else list(formats), ensure_ascii=False)


def _schedule_lines(cadence: Cadence) -> list[str]:
    """The schedules that fit the length of a partition, if the default ones do not."""
    weekday = (WEEKDAYS.index(cadence.week_starts) + 1) % 7  # cron's weeks begin on Sunday
    when = {"week": f"* * {weekday}", "month": "1 * *"}.get(cadence.unit)
    if cadence.unit == "hour":
        return ['  data: "10 * * * *"']
    return [f'  data: "0 2 {when}"', f'  monitor: "0 6 {when}"'] if when else []


def _end_lines(draft: ModelDraft) -> list[str]:
    """The end of a sample that ended long ago, after which no run is to expect a file."""
    if not draft.has_ended:
        return []
    return [
        "  # the last partition of the sample; remove it when the feed delivers later ones",
        f"  end: {date_of(max(draft.days))}",
    ]


def _cadence_lines(draft: ModelDraft) -> list[str]:
    """The keys of ``data`` about the length of a partition, as far as they are not as by default."""
    unit, starts = draft.cadence.unit, draft.cadence.week_starts
    return [
        *([f"  every: {unit}"] if unit != "day" else []),
        *([f"  week_starts: {starts}"] if starts != "monday" else []),
        *([f"  timezone: {draft.cadence.timezone}"] if draft.cadence.timezone != "UTC" else []),
        *(["  arrival: optional"] if draft.has_gaps else []),
    ]


def _label_lines(sample: Sample, draft: ModelDraft) -> list[str]:
    """The section ``label`` of ``model.yaml``."""
    if label_is_column(sample, draft):
        return ["label:", f"  expression: {yaml_text(draft.label)}"]
    kinds = {c.name: c.kind for c in sample.columns.values()}
    return [
        "label:",
        "  # from the same files; features cannot use the label",
        f"  source: {_source(draft)}",
        "  columns:",
        *(f"    {yaml_text(k)}: {kinds.get(k, 'integer')}" for k in draft.key),
        f"    {yaml_text(draft.label)}: {kinds[draft.label]}",
        f"  expression: {json.dumps(draft.label_sql, ensure_ascii=False)}",
    ]


def _source(draft: ModelDraft) -> str:
    """The source as YAML: a query is a mapping, which JSON writes as YAML does."""
    return draft.source if draft.queried else json.dumps(draft.source, ensure_ascii=False)


def _delivered(draft: ModelDraft) -> str:
    return (
        "A query of a database" if draft.queried else f"One file per {draft.cadence.unit}, `{draft.source}`"
    )


def yaml_text(text: str | None) -> str:
    """A text as a YAML scalar."""
    text = text or ""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def _yaml_list(names: list[str]) -> str:
    return f"[{', '.join(yaml_text(n) for n in names)}]"


def readme_text(sample: Sample, draft: ModelDraft, checks: str) -> str:
    """``README.md``.

    Args:
        sample: the sample.
        draft: the decisions about the model.
        checks: a sentence about its checks.
    """
    columns, left_out = features(sample, draft)
    kind = {
        "binary": "yes or no",
        "multiclass": "one of several classes",
        "regression": "a number",
        "ranking": "an order within a list",
    }[draft.task]
    names = ", ".join(f"`{f.name}`" for f in columns)
    key = ", ".join(f"`{k}`" for k in draft.key)
    personal = ", ".join(f"`{p}`" for p in draft.personal) or "none"
    without = ", ".join(f"`{n}` ({reason})" for n, reason in left_out.items()) or "nothing"
    time = (
        f"The time of the event is `{draft.event_time}`."
        if draft.event_time
        else "Rows have no time of an event."
    )
    if draft.row_number:
        key += ", the row's number in its file,"
    if draft.delivery:
        time += f" {draft.delivery}"
    rows, first, last = sum(draft.days.values()), min(draft.days), max(draft.days)
    return f"""# {draft.name}

{draft.description}

- **Prediction.** `{draft.label}`: {kind} ({draft.task}).
- **Data.** {_delivered(draft)}, {len(sample.columns)} columns. {key} identifies a row. {time}
  Personal data: {personal}.
- **Features.** {names}. Left out: {without}.
- **Checks.** {checks}
- **Gate.** A challenger becomes champion if it is better than the champion, and than a constant prediction, on the
  latest held-out partitions.
- **Owner.** {draft.owner}.

`perennial new` generated this folder from a sample of {rows:,} rows, {first} to {last}. Before the model goes live,
check: Is every feature known when a prediction is made? Do the ranges in `expectations.json` hold all year? When does
the label arrive (`label.arrives_after`)? `perennial predictions {draft.name}` prints what it predicts.
"""
