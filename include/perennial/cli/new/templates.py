"""Compose the files of a new model from a sample and the decisions about the model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from perennial.cli.new.sample_reader import Sample, SampleColumn
from perennial.core.sql import quote_identifier, text_literal
from perennial.spec.sections import ColumnType

__all__ = [
    "Feature",
    "ModelDraft",
    "expectation_suite",
    "features",
    "label_is_column",
    "model_text",
    "readme_text",
    "sql_text",
    "suite_text",
    "yaml_text",
]

#: A text column with more distinct values is not a categorical feature.
MAX_CATEGORIES = 500
#: A text column is expected to have only the sample's values if there are few of them, and each is frequent.
MAX_SET_VALUES, MIN_ROWS_PER_VALUE = 25, 5
#: Mean length above which a text column is free text.
FREE_TEXT_LENGTH = 40
#: Largest bound in a suite; both JSON and DuckDB can represent it.
LARGEST_NUMBER = 1e308
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
        event_time: column with the time of the event.
        owner: who is responsible for it.
        description: what it predicts.
        source: path template of its files.
        days: number of rows of each partition of the sample.
        group: ranking: column that identifies the list of a row.
        positive: binary: the value of the positive class, unless the label is boolean, or 0 and 1.
        personal: columns of personal data.
        schema: path of the JSON Schema, relative to the folder of the model.
    """

    name: str
    task: str
    label: str
    key: list[str]
    event_time: str
    owner: str
    description: str
    source: str
    days: dict[str, int]
    group: str | None = None
    positive: Any = None
    personal: list[str] = field(default_factory=list)
    schema: str = "../model.schema.json"


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
    names = {c.lower() for c in sample.columns}
    for column in sample.columns.values():
        name = column.name
        if name in draft.key:
            continue
        if reason := _exclusion_reason(column, sample, draft):
            left_out[name] = reason
        elif column.kind in ("date", "timestamp"):
            for part in ("hour", "weekday") if column.kind == "timestamp" else ("weekday",):
                sql = f"{'dayofweek' if part == 'weekday' else part}({_sql_name(name)})"
                alias = f"{name}_{part}"
                while alias.lower() in names:
                    alias += "_"
                names.add(alias.lower())
                result.append(Feature(f"{sql} AS {_sql_name(alias)}", alias))
        else:
            result.append(Feature(_sql_name(name), name, column.kind == "string"))
    return result, left_out


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
    if column.kind == "string" and (column.distinct > MAX_CATEGORIES or column.distinct > max(20, rows // 2)):
        return f"{column.distinct} distinct values, too many for a categorical feature"
    if (
        column.kind == "integer"
        and column.distinct == rows
        and re.search(r"(^|_)(id|key|nr|no|number)$", column.name.lower())
    ):
        return "a running number of the rows"
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
    column = sample.columns[draft.label]
    if draft.task == "binary":
        return column.kind == "boolean" or set(column.values) <= {0, 1}
    return not (draft.task == "regression" and column.kind not in ("integer", "number"))


def model_text(sample: Sample, draft: ModelDraft) -> str:
    """``model.yaml``."""
    types: dict[str, ColumnType] = {c.name: c.kind for c in sample.columns.values()}
    if not label_is_column(sample, draft):
        del types[draft.label]
    days, categorical = len(draft.days), [f.name for f in features(sample, draft)[0] if f.categorical]
    window = 28 if days >= 84 else 7
    rows = int(median(draft.days.values()))
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
        f"  source: {json.dumps(draft.source, ensure_ascii=False)}",
        f"  key: {_yaml_list(draft.key)}",
        f"  event_time: {yaml_text(draft.event_time)}",
        "  columns:",
        *(f"    {yaml_text(n)}: {kind}" for n, kind in types.items()),
        *([f"  personal: {_yaml_list(personal)}"] if personal else []),
        "",
        *_label_lines(sample, draft),
        *(["", "features:", f"  categorical: {_yaml_list(categorical)}"] if categorical else []),
        "",
        "training:",
        f"  holdout_days: {max(1, min(14, days // 4))}",
        "  rounds: 200",
        "  params: {max_depth: 6, learning_rate: 0.1}",
        "",
        "monitoring:",
        f"  window_days: {window}",
        f"  min_rows: {max(10, min(1000, rows * window // 4))}",
        "",
        "schedule:",
        f"  start: {min(draft.days)}",
        "",
    ]
    return "\n".join(lines)


def _label_lines(sample: Sample, draft: ModelDraft) -> list[str]:
    """The section ``label`` of ``model.yaml``."""
    if label_is_column(sample, draft):
        return ["label:", f"  expression: {yaml_text(draft.label)}"]
    label, value = sample.columns[draft.label], draft.positive
    if label.kind == "string":
        value = text_literal(str(value))
    return [
        "label:",
        "  # from the same files; features cannot use the label",
        f"  source: {json.dumps(draft.source, ensure_ascii=False)}",
        "  columns:",
        *(f"    {yaml_text(k)}: {sample.columns[k].kind}" for k in draft.key),
        f"    {yaml_text(draft.label)}: {label.kind}",
        f"  expression: {json.dumps(f'{quote_identifier(draft.label)} = {value}', ensure_ascii=False)}",
    ]


def yaml_text(text: str | None) -> str:
    """A text as a YAML scalar."""
    text = text or ""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def _yaml_list(names: list[str]) -> str:
    return f"[{', '.join(yaml_text(n) for n in names)}]"


def expectation_suite(sample: Sample, draft: ModelDraft) -> dict[str, Any]:
    """A Great Expectations suite that the sample passes, with tolerance for other partitions."""
    counts = list(draft.days.values())
    entries = [
        _expect(
            "expect_table_row_count_to_be_between",
            min_value=max(1, min(counts) // 2),
            max_value=max(counts) * 3,
            notes=f"The sample's partitions have {min(counts)} to {max(counts)} rows.",
        )
    ]
    required = [*draft.key, *([draft.event_time] if draft.event_time not in draft.key else [])]
    entries += [
        _expect("expect_column_values_to_not_be_null", column=c)
        for c in required
        if not sample.columns[c].nulls
    ]
    if len(draft.key) == 1:
        entries.append(_expect("expect_column_values_to_be_unique", column=draft.key[0]))
    else:
        entries.append(_expect("expect_compound_columns_to_be_unique", column_list=draft.key))
    without = {*required, *draft.personal, *([] if label_is_column(sample, draft) else [draft.label])}
    for column in [c for c in sample.columns.values() if c.name not in without]:
        entries += _column_expectations(
            column, sample, is_class=column.name == draft.label and draft.task in ("binary", "multiclass")
        )
    return {"name": draft.name, "expectations": entries, "meta": {}}


def _column_expectations(column: SampleColumn, sample: Sample, *, is_class: bool) -> list[dict[str, Any]]:
    """The expectations of one column."""
    entries, rows = [], sum(sample.rows)
    if not column.nulls:
        entries.append(
            _expect(
                "expect_column_values_to_not_be_null",
                "warning",
                column=column.name,
                mostly=0.95,
                notes="The sample has no missing values.",
            )
        )
    if column.kind == "string":
        if (
            column.values
            and len(column.values) <= MAX_SET_VALUES
            and rows >= MIN_ROWS_PER_VALUE * len(column.values)
        ):
            entries.append(
                _expect(
                    "expect_column_values_to_be_in_set",
                    None if is_class else "warning",
                    column=column.name,
                    value_set=column.values,
                    notes="The values in the sample.",
                )
            )
        elif column.length and column.length <= FREE_TEXT_LENGTH:
            entries.append(
                _expect(
                    "expect_column_value_lengths_to_be_between",
                    "warning",
                    column=column.name,
                    min_value=1,
                    max_value=max(20, math.ceil(column.length * 10)),
                )
            )
    if is_class and column.kind == "integer" and column.values:
        entries.append(
            _expect("expect_column_values_to_be_in_set", column=column.name, value_set=column.values)
        )
    elif column.kind in ("integer", "number") and column.low is not None and column.high is not None:
        low, high = _widened_bounds(column)
        entries.append(
            _expect(
                "expect_column_values_to_be_between",
                column=column.name,
                min_value=low,
                max_value=high,
                notes=f"In the sample: {column.low:.6g} to {column.high:.6g}.",
            )
        )
    return entries


def _widened_bounds(column: SampleColumn) -> tuple[float, float]:
    """The range of the sample, extended by its width on both sides, but not from non-negative to negative."""
    assert column.low is not None and column.high is not None
    span = (column.high - column.low) or abs(column.high) or 1.0
    low, high = max(column.low - span, -LARGEST_NUMBER), min(column.high + span, LARGEST_NUMBER)
    if column.low >= 0:
        low = max(low, 0.0)
    if column.kind == "integer":
        return math.floor(low), math.ceil(high)
    digits = 2 - math.floor(math.log10(min(span, LARGEST_NUMBER)))
    return round(low, digits), round(high, digits)


def _expect(kind: str, severity: str | None = None, *, notes: str = "", **kwargs: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": kind, "kwargs": kwargs, "meta": {"notes": notes} if notes else {}}
    return entry | ({"severity": severity} if severity else {})


def suite_text(sample: Sample, draft: ModelDraft) -> str:
    """``expectations.json``, one expectation per line."""
    content = expectation_suite(sample, draft)
    lines = ",\n".join(
        f"    {json.dumps(e, ensure_ascii=False, allow_nan=False)}" for e in content["expectations"]
    )
    return f'{{\n  "name": {json.dumps(content["name"])},\n  "expectations": [\n{lines}\n  ],\n  "meta": {{}}\n}}\n'


def readme_text(sample: Sample, draft: ModelDraft) -> str:
    """``README.md``."""
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
    rows, first, last = sum(draft.days.values()), min(draft.days), max(draft.days)
    return f"""# {draft.name}

{draft.description}

- **Prediction.** `{draft.label}`: {kind} ({draft.task}).
- **Data.** One file per day, `{draft.source}`, {len(sample.columns)} columns. {key} identifies a row; the time of the
  event is `{draft.event_time}`. Personal data: {personal}.
- **Features.** {names}. Left out: {without}.
- **Gate.** A challenger becomes champion if it is better than the champion, and than a constant prediction, on the
  latest held-out days.
- **Owner.** {draft.owner}.

`perennial new` generated this folder from a sample of {rows:,} rows, {first} to {last}. Before the model goes live,
check: Is every feature known when a prediction is made? Do the ranges in `expectations.json` hold all year? When does
the label arrive (`label.arrives_after_days`)?
"""
