"""The files of a new model, from a sample and what was decided about it. Text only: nothing is read or asked here."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from perennial.cli.new.sample_reader import Sample, SampleColumn
from perennial.core.sql import quote_identifier
from perennial.spec.sections import ColumnType

#: A text with more different values than this is no category.
CATEGORIES = 500
#: A set is suggested for a text with at most so many values, each seen often enough not to be chance.
SET_VALUES, ROWS_A_VALUE = 25, 5
FREE_TEXT = 40
LARGEST = 1e308
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Choice:
    """What was decided about a new model.

    Attributes:
        positive: the label's value that counts as yes, where the label is no 0 and 1.
        days: rows of each partition of the sample.
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
    """One line of ``features.sql``."""

    sql: str
    name: str
    categorical: bool = False


def features(sample: Sample, choice: Choice) -> tuple[list[Feature], dict[str, str]]:
    """The features of a model, and why each other column is not among them."""
    found: list[Feature] = []
    left_out: dict[str, str] = {}
    taken = {c.lower() for c in sample.columns}
    for column in sample.columns.values():
        name = column.name
        if name in choice.key:
            continue
        if why := _unfit(column, sample, choice):
            left_out[name] = why
        elif column.kind in ("date", "timestamp"):
            for part in ("hour", "weekday") if column.kind == "timestamp" else ("weekday",):
                sql = f"{'dayofweek' if part == 'weekday' else part}({_sql_name(name)})"
                alias = f"{name}_{part}"
                while alias.lower() in taken:
                    alias += "_"
                taken.add(alias.lower())
                found.append(Feature(f"{sql} AS {_sql_name(alias)}", alias))
        else:
            found.append(Feature(_sql_name(name), name, column.kind == "string"))
    return found, left_out


def _unfit(column: SampleColumn, sample: Sample, choice: Choice) -> str:
    """Why a column is no feature; empty: it is one."""
    if column.name == choice.label:
        return "the label"
    if column.name == choice.group:
        return "names the list, says nothing about the row"
    if column.name in choice.personal:
        return "personal data"
    rows = sum(sample.rows)
    if column.distinct == 1 and not column.nulls:
        return "the same in every row of the sample"
    if column.kind == "string" and column.length > FREE_TEXT:
        return "free text"
    if column.kind == "string" and (column.distinct > CATEGORIES or column.distinct > max(20, rows // 2)):
        return f"{column.distinct} different values, too many for a category"
    if (
        column.kind == "integer"
        and column.distinct == rows
        and re.search(r"(^|_)(id|key|nr|no|number)$", column.name.lower())
    ):
        return "numbers the rows"
    return ""


def _sql_name(name: str) -> str:
    return (
        name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in _RESERVED else quote_identifier(name)
    )


#: Words that DuckDB does not take for a column's name (``duckdb_keywords()``).
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


def sql_text(sample: Sample, choice: Choice) -> str:
    """``features.sql``."""
    found, left_out = features(sample, choice)
    lines = [*(_sql_name(k) for k in choice.key), *(f.sql for f in found)]
    text = "-- One row in, one row out: the key, then a column a feature. Nothing here may be known only later.\n"
    text += "SELECT\n" + ",\n".join(f"    {line}" for line in lines) + "\nFROM rows\n"
    shown = {**left_out, **sample.left_out}
    if shown:
        text += "-- Left out:\n" + "".join(
            f"--   {json.dumps(n, ensure_ascii=False)}: {why}\n" for n, why in shown.items()
        )
    return text


def own_label(sample: Sample, choice: Choice) -> bool:
    """Whether the label is a column that can be taken as it is; if not, an expression over the same file gives it."""
    column = sample.columns[choice.label]
    if choice.task == "binary":
        return column.kind == "boolean" or set(column.values) <= {0, 1}
    return not (choice.task == "regression" and column.kind not in ("integer", "number"))


def model_text(sample: Sample, choice: Choice) -> str:
    """``model.yaml``."""
    own = own_label(sample, choice)
    types: dict[str, ColumnType] = {
        c.name: c.kind for c in sample.columns.values() if own or c.name != choice.label
    }
    days, categorical = len(choice.days), [f.name for f in features(sample, choice)[0] if f.categorical]
    window = 28 if days >= 84 else 7
    rows = int(median(choice.days.values()))
    lines = [
        f"# yaml-language-server: $schema={choice.schema}",
        f"name: {choice.name}",
        f"task: {choice.task}",
        f"owner: {word(choice.owner)}",
        f"description: {word(choice.description)}",
        *([f"group: {word(choice.group)}"] if choice.group else []),
        "",
        "data:",
        f"  source: {json.dumps(choice.source, ensure_ascii=False)}",
        f"  key: {_list(choice.key)}",
        f"  event_time: {word(choice.event_time)}",
        "  columns:",
        *(f"    {word(n)}: {kind}" for n, kind in types.items()),
    ]
    if personal := [p for p in choice.personal if p in types]:
        lines.append(f"  personal: {_list(personal)}")
    lines += ["", "label:"]
    if own:
        lines.append(f"  expression: {word(choice.label)}")
    else:
        label = sample.columns[choice.label]
        value = (
            f"'{str(choice.positive).replace(chr(39), chr(39) * 2)}'"
            if label.kind == "string"
            else choice.positive
        )
        lines += [
            "  # from the same files: features do not see the label",
            f"  source: {json.dumps(choice.source, ensure_ascii=False)}",
            "  columns:",
            *(f"    {word(k)}: {types[k]}" for k in choice.key),
            f"    {word(choice.label)}: {label.kind}",
            f"  expression: {json.dumps(f'{quote_identifier(choice.label)} = {value}', ensure_ascii=False)}",
        ]
    lines += ["", "features:", f"  categorical: {_list(categorical)}"] if categorical else []
    lines += [
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
        f"  start: {min(choice.days)}",
        "",
    ]
    return "\n".join(lines)


def word(text: str | None) -> str:
    """A text as YAML writes it."""
    text = text or ""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def _list(names: list[str]) -> str:
    return f"[{', '.join(word(n) for n in names)}]"


def suite(sample: Sample, choice: Choice) -> dict[str, Any]:
    """``expectations.json``: a Great Expectations suite that the sample passes, with room for other nights."""
    counts = list(choice.days.values())
    entries = [
        _expect(
            "expect_table_row_count_to_be_between",
            min_value=max(1, min(counts) // 2),
            max_value=max(counts) * 3,
            notes=f"The sample's partitions have {min(counts)} to {max(counts)} rows.",
        )
    ]
    must = [*choice.key, *([choice.event_time] if choice.event_time not in choice.key else [])]
    entries += [
        _expect("expect_column_values_to_not_be_null", column=c) for c in must if not sample.columns[c].nulls
    ]
    if len(choice.key) == 1:
        entries.append(_expect("expect_column_values_to_be_unique", column=choice.key[0]))
    else:
        entries.append(_expect("expect_compound_columns_to_be_unique", column_list=choice.key))
    hidden = {*must, *choice.personal, *([] if own_label(sample, choice) else [choice.label])}
    for column in [c for c in sample.columns.values() if c.name not in hidden]:
        entries += _column(
            column, sample, is_class=column.name == choice.label and choice.task in ("binary", "multiclass")
        )
    return {"name": choice.name, "expectations": entries, "meta": {}}


def _column(column: SampleColumn, sample: Sample, *, is_class: bool) -> list[dict[str, Any]]:
    """What is expected of one column."""
    found, rows = [], sum(sample.rows)
    if not column.nulls:
        found.append(
            _expect(
                "expect_column_values_to_not_be_null",
                "warning",
                column=column.name,
                mostly=0.95,
                notes="It has no gaps in the sample.",
            )
        )
    if column.kind == "string":
        if column.values and len(column.values) <= SET_VALUES and rows >= ROWS_A_VALUE * len(column.values):
            found.append(
                _expect(
                    "expect_column_values_to_be_in_set",
                    None if is_class else "warning",
                    column=column.name,
                    value_set=column.values,
                    notes="The values of the sample.",
                )
            )
        elif column.length and column.length <= FREE_TEXT:
            found.append(
                _expect(
                    "expect_column_value_lengths_to_be_between",
                    "warning",
                    column=column.name,
                    min_value=1,
                    max_value=max(20, math.ceil(column.length * 10)),
                )
            )
    if is_class and column.kind == "integer" and column.values:
        found.append(
            _expect("expect_column_values_to_be_in_set", column=column.name, value_set=column.values)
        )
    elif column.kind in ("integer", "number") and column.low is not None and column.high is not None:
        low, high = _slack(column)
        found.append(
            _expect(
                "expect_column_values_to_be_between",
                column=column.name,
                min_value=low,
                max_value=high,
                notes=f"The sample has {column.low:.6g} to {column.high:.6g}.",
            )
        )
    return found


def _slack(column: SampleColumn) -> tuple[float, float]:
    """Bounds wider than the sample's by its whole range; what is never negative stays so."""
    assert column.low is not None and column.high is not None
    span = (column.high - column.low) or abs(column.high) or 1.0
    low, high = max(column.low - span, -LARGEST), min(column.high + span, LARGEST)
    if column.low >= 0:
        low = max(low, 0.0)
    if column.kind == "integer":
        return math.floor(low), math.ceil(high)
    digits = 2 - math.floor(math.log10(min(span, LARGEST)))
    return round(low, digits), round(high, digits)


def _expect(kind: str, severity: str | None = None, *, notes: str = "", **kwargs: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": kind, "kwargs": kwargs, "meta": {"notes": notes} if notes else {}}
    return entry | ({"severity": severity} if severity else {})


def suite_text(sample: Sample, choice: Choice) -> str:
    """The suite as JSON, one expectation a line."""
    content = suite(sample, choice)
    lines = ",\n".join(
        f"    {json.dumps(e, ensure_ascii=False, allow_nan=False)}" for e in content["expectations"]
    )
    return f'{{\n  "name": {json.dumps(content["name"])},\n  "expectations": [\n{lines}\n  ],\n  "meta": {{}}\n}}\n'


def readme_text(sample: Sample, choice: Choice) -> str:
    """``README.md``."""
    found, left_out = features(sample, choice)
    told = {
        "binary": "yes or no",
        "multiclass": "one of several classes",
        "regression": "a number",
        "ranking": "an order within a list",
    }[choice.task]
    features_ = ", ".join(f"`{f.name}`" for f in found)
    key = ", ".join(f"`{k}`" for k in choice.key)
    personal = ", ".join(f"`{p}`" for p in choice.personal) or "none"
    without = ", ".join(f"`{n}` ({why})" for n, why in left_out.items()) or "nothing"
    rows, first, last = sum(choice.days.values()), min(choice.days), max(choice.days)
    return f"""# {choice.name}

{choice.description}

- **Predicts** `{choice.label}`: {told} ({choice.task}).
- **Data.** One file a day, `{choice.source}`, {len(sample.columns)} columns. A row is named by {key} and happened at
  `{choice.event_time}`. Personal data: {personal}.
- **Features.** {features_}. Left out: {without}.
- **Gate.** A challenger becomes champion if it beats the champion, and a constant, on the latest held-out days.
- **Owner.** {choice.owner}.

`perennial new` wrote this folder from a sample of {rows:,} rows, {first} to {last}. Before it goes live: does every
feature exist when the model is asked? Do the ranges in `expectations.json` hold all year? When does the label arrive
(`label.arrives_after_days`)?
"""
