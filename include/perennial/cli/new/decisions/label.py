"""The label, its task and its positive class."""

from __future__ import annotations

from typing import Any

from perennial.cli.new import inference, templates
from perennial.cli.new.decisions.answers import GivenAnswers
from perennial.cli.new.questions import Questions
from perennial.cli.new.samples.event_times import TimeSource
from perennial.cli.new.samples.sample_reader import Sample, SampleColumn
from perennial.core.errors import DataError, SpecError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features.targets import MAX_CLASSES
from perennial.spec.constraints import GATE_METRICS

__all__ = ["decide_label", "decide_target"]


#: Rows of a class below which a remark says that it is rare.
RARE_ROWS = 10
#: Texts that mean yes.
_YES = ("yes", "y", "true", "t", "1", "1.0", "on", "positive", "pos", "good")


def decide_label(
    sample: Sample, answers: GivenAnswers, sources: list[TimeSource], questions: Questions
) -> str:
    keys = [
        inference.find_column(k, sample.columns, "--key") for k in answers.key if k != templates.ROW_NUMBER
    ]
    times = [s.column for s in sources if s.column]
    suggestion = inference.suggest_label(sample, keys, times)
    label = questions.column(
        "Label: the column to predict", answers.label, suggestion, list(sample.columns), "--label"
    )
    assert label is not None
    if label in keys:
        raise SpecError(
            f"{label!r} is in the key, and the label", "predict another column, or use another key"
        )
    column = sample.columns[label]
    if column.distinct == 1:
        filled = "the same value in each row" if not column.nulls else "one value, and rows without a value"
        raise DataError(
            f"the label {label!r} has {filled}: there is nothing to predict",
            "choose another label, or give a sample with several of its values",
        )
    if column.kind in ("date", "timestamp"):
        raise SpecError(f"the label {label!r} is a {column.kind}", "choose a number, a boolean or a text")
    return label


def decide_target(
    sample: Sample, label: SampleColumn, answers: GivenAnswers, questions: Questions, remarks: list[str]
) -> tuple[str, str | None, Any]:
    """The task; SQL of the label, if it is not the column as it is; and the positive class of such a label."""
    number = inference.number_in_text(sample, label)
    if number and label.distinct > MAX_CLASSES // 50 and answers.task in (None, "regression"):
        suggestion, remark = "regression", f"{label.name} is a number in texts: its digits are taken"
    else:
        suggestion, remark = inference.suggest_task(label, sample.row_count)
    task = questions.choice("Task", answers.task, suggestion, list(GATE_METRICS), "--task")
    if remark and answers.task is None:
        remarks.append(remark)
    if label.nulls:
        remarks.append(
            f"{label.nulls:,} of {sample.row_count:,} rows have no {label.name}: training leaves them out"
        )
    positive, sql = None, None
    if task == "binary":
        positive = _positive(label, answers, questions)
        if positive is None and label.kind == "number":
            sql = f"{quote_identifier(label.name)} = 1"  # the data step takes no fraction for a class
        if positive is not None:
            remarks.append(f"of {label.name}, {positive!r} is the positive class")
            value = text_literal(positive) if isinstance(positive, str) else positive
            sql = f"{quote_identifier(label.name)} = {value}"
    else:
        sql = _other_label(label, task, number)
    if sql is None and label.name != label.name.strip():
        sql = quote_identifier(label.name)  # the name alone would lose its spaces in YAML
    if task in ("binary", "multiclass"):
        _remark_rare_classes(sample, label, remarks)
    return task, sql, positive


def _other_label(label: SampleColumn, task: str, number: str | None) -> str | None:
    """SQL of a label that is not binary, if it is not the column as it is.

    Raises:
        SpecError: the task cannot have this label.
    """
    name = f"label {label.name!r}"
    whole = inference.is_whole(label)
    if task == "regression" and label.kind not in ("integer", "number"):
        if number is None:
            raise SpecError(f"{name} is a {label.kind}, not a number", "choose another label or task")
        return number
    if task == "ranking" and (not whole or (label.low or 0) < 0 or (label.high or 0) > 31):
        raise SpecError(f"{name} is not a grade: a whole number from 0 to 31", "choose another label or task")
    if task == "multiclass":
        if label.kind not in ("string", "integer") and not whole:
            raise SpecError(f"{name} is a {label.kind}, not a class", "choose another label or task")
        if label.distinct > MAX_CLASSES:
            raise SpecError(
                f"{name} has {label.distinct:,} different values; at most {MAX_CLASSES:,} classes are supported",
                "predict a coarser column; or one of them with --task binary --positive",
            )
    if label.kind in ("number", "boolean") and task != "regression":
        return f"{quote_identifier(label.name)}::BIGINT"
    return None


def _positive(label: SampleColumn, answers: GivenAnswers, questions: Questions) -> Any:
    """The value of the positive class; None if the label is boolean or 0/1."""
    if label.kind == "boolean":
        return None
    if label.distinct > 2:
        if answers.positive is None and not questions.ask:
            raise SpecError(
                f"label {label.name!r} has {label.distinct} values", "name the positive one with --positive"
            )
    elif set(label.values) <= {0, 1}:
        return None
    texts = {str(v): v for v in label.values}
    truthy = [t for t in texts if t.strip().lower() in _YES]
    suggestion = (truthy or sorted(texts))[0 if truthy else -1] if len(texts) <= 2 else None
    question = f"Which value of {label.name} is the positive class"
    return texts[questions.choice(question, answers.positive, suggestion, list(texts), "--positive")]


def _remark_rare_classes(sample: Sample, label: SampleColumn, remarks: list[str]) -> None:
    cell = quote_identifier(label.name)
    rare = sample.query(
        f"SELECT count(*) FROM (SELECT 1 FROM __rows WHERE {cell} IS NOT NULL GROUP BY {cell} "
        f"HAVING count(*) < {RARE_ROWS})"
    )[0][0]
    if rare:
        remarks.append(
            f"{rare} of the {label.distinct} values of {label.name} occur in less than {RARE_ROWS} rows each: a model "
            "learns little about them"
        )
