"""`perennial new`: creates a model's folder from a sample and a few answers, completely or not at all."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from perennial.cli.check import preflight
from perennial.cli.new import sample_reader, templates
from perennial.cli.new.sample_reader import Sample, SampleColumn
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.settings import ROOT, settings
from perennial.spec import catalog
from perennial.spec.constraints import GATE_METRICS, LAKE_COLUMNS

__all__ = ["CreatedModel", "GivenAnswers", "create_model_folder"]

#: Names of columns that suggest personal data.
_PERSONAL = re.compile(
    r"(^|_)(e?_?mail|phone|mobile|fax|(first|last|full|sur|maiden|nick|given|family|customer|passenger|patient|user)_?"
    r"name|name|surname|street|address|addr|zip|zipcode|postal|postcode|birth\w*|dob|ssn|passport|iban|bic|card|ip|login|username|"
    r"tail|tailnum|plate|licen[cs]e|latitude|longitude|lat|lon|lng|gender|religion|ethnicity)(_|$|\d)",
    re.IGNORECASE,
)
#: Names of columns that suggest a label.
_LABELS = (
    "label",
    "target",
    "y",
    "class",
    "outcome",
    "grade",
    "relevance",
    "response",
    "result",
    "converted",
    "churn",
    "churned",
    "default",
    "fraud",
    "late",
    "price",
    "amount",
)


@dataclass
class GivenAnswers:
    """Answers that were given as options; None, or empty, if not."""

    task: str | None = None
    label: str | None = None
    positive: str | None = None
    key: list[str] = field(default_factory=list)
    event_time: str | None = None
    group: str | None = None
    owner: str | None = None
    description: str | None = None
    personal: list[str] | None = None
    land: bool | None = None


@dataclass
class CreatedModel:
    """A new model.

    Attributes:
        folder: its folder.
        first: first partition date of the sample.
        last: last partition date of the sample.
        remarks: what the user should know about it.
    """

    folder: Path
    first: str
    last: str
    remarks: list[str]


def create_model_folder(
    name: str, paths: Sequence[Path], answers: GivenAnswers, into: Path | None = None, *, ask: bool = True
) -> CreatedModel:
    """Create a model's folder from sample files.

    Args:
        name: name of the model.
        paths: the files.
        answers: answers given in advance.
        into: folder to create it in; by default the first of ``PERENNIAL_MODELS``, or ``include/models``.
        ask: whether to ask for answers that were not given; if not, suggestions are used.

    Raises:
        PerennialError: the name is in use, or the sample or an answer is invalid; nothing was written.
    """
    current = settings()
    root = into.absolute() if into else current.models[min(1, len(current.models) - 1)]
    _check_name(name, root)
    if not paths and ask:
        paths = [Path(_prompt("Sample file, parquet or CSV (separate several by spaces)", None))]
        paths = [paths[0]] if paths[0].is_file() else [Path(p) for p in str(paths[0]).split()]
    sample = sample_reader.read_sample(paths, current.landing)
    draft, remarks = _draft(name, sample, answers, root, ask=ask)
    copying = not sample.landed or not sample.days
    land = copying and (
        answers.land if answers.land is not None else _confirm("Copy the sample into the landing area?", ask)
    )
    staging = root / f".new-{uuid.uuid4().hex[:12]}"
    try:
        folder = _write(staging / name, sample, draft)
        _check(folder, landed=not copying)
        if land:
            sample_reader.land(sample, draft.source, draft.event_time)
        _rename(folder, root / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if land:
        remarks.append(f"the sample landed as {draft.source}, {len(draft.days)} partitions")
    elif copying:
        remarks.append(f"the sample was not copied: files are expected at {draft.source}")
    if root.resolve() not in current.models:
        remarks.append(f"{root} is not searched for models: add it to PERENNIAL_MODELS")
    return CreatedModel(root / name, min(draft.days), max(draft.days), remarks)


def _check_name(name: str, root: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise SpecError(
            f"{name!r} cannot be a model's name", "begin with a letter; use lower case, digits and _ only"
        )
    folders = catalog.find_folders() | catalog.find_folders("feature_set.yaml")
    if name in folders or (root / name).exists():
        raise SpecError(
            f"{folders.get(name, root / name)} exists already", "choose another name, or remove the folder"
        )


def _draft(
    name: str, sample: Sample, answers: GivenAnswers, root: Path, *, ask: bool
) -> tuple[templates.ModelDraft, list[str]]:
    """Make all decisions, from given answers, questions or suggestions; returns also remarks."""
    columns, remarks = sample.columns, [f"left out: {n} ({why})" for n, why in sample.left_out.items()]
    event_time = _event_time(columns, answers, ask)
    key = _key(sample, answers, ask)
    suggestion = _suggest_label(columns, key, event_time)
    label = _choose("Label: the column to predict", answers.label, suggestion, list(columns), ask, "--label")
    if label in (*key, event_time):
        raise SpecError(f"{label!r} is in the key, or the event time", "predict another column")
    suggestion = _suggest_task(columns[label])
    task = _choose("Task", answers.task, suggestion, list(GATE_METRICS), ask, "--task")
    group = None
    if task == "ranking":
        question = "Group: the column that identifies a row's list"
        group = _choose(question, answers.group, None, list(columns), ask, "--group")
    positive = _positive(columns[label], task, answers, ask)
    if positive is not None:
        remarks.append(f"of {label}, {positive!r} is the positive class")
    personal = _personal(columns, answers, label, ask)
    if exposed := [c for c in (event_time, label) if c in personal]:
        raise SpecError(f"{exposed[0]!r} is personal data", "choose another label or event time")
    owner = answers.owner or _prompt("Owner", _login(), ask)
    description = answers.description or _prompt(
        "What does it predict, and when is a prediction made?", f"Predicts {label}.", ask
    )
    days = sample_reader.counts_by_day(sample, event_time)
    if not days:
        raise DataError(f"{event_time} has no date", "choose another event time")
    if len(days) == 1:
        remarks.append(
            "the sample is one partition; training needs labelled partitions before the held-out ones"
        )
    template = sample.template or "{date}" + sample.suffix
    source = "{landing}/" + (template if sample.landed and sample.template else f"{name}/{template}")
    draft = templates.ModelDraft(
        name, task, label, key, event_time, owner.strip(), description.strip(), source, days, group, positive,
        personal, _schema(root, name),
    )  # fmt: skip
    return draft, remarks


def _schema(root: Path, name: str) -> str:
    """The path of the JSON Schema, relative to the new folder."""
    return Path(os.path.relpath(ROOT / "include" / "models" / "model.schema.json", root / name)).as_posix()


def _event_time(columns: dict[str, SampleColumn], answers: GivenAnswers, ask: bool) -> str:
    eligible = [c.name for c in columns.values() if c.kind in ("timestamp", "date")]
    if not eligible:
        raise SpecError(
            "no column of the sample is a date or a time",
            "each row needs the time of its event: add such a column",
        )
    best = sorted(eligible, key=lambda n: (columns[n].nulls, columns[n].kind != "timestamp"))
    return _choose(
        "Event time: the time of a row's event", answers.event_time, best[0], eligible, ask, "--event-time"
    )


def _key(sample: Sample, answers: GivenAnswers, ask: bool) -> list[str]:
    columns = sample.columns
    unique = [
        c.name
        for c in columns.values()
        if c.unique and c.kind in ("string", "integer") and c.name != answers.label
    ]
    unique.sort(key=lambda n: not re.search(r"(^|_)(id|key)$", n.lower()))
    suggestion = unique[:1] or list(sample.key_pair)
    if answers.key:
        chosen = list(answers.key)
    elif ask:
        text = _prompt(
            "Key: the columns that identify a row within its partition", " ".join(suggestion) or None
        )
        chosen = text.replace(",", " ").split() if text not in columns else [text]
    elif suggestion:
        chosen = suggestion
    else:
        raise SpecError(
            "no column, and no two columns, identify a row of the sample",
            "name the columns with --key, or add one",
        )
    for column in chosen:
        if column not in columns:
            raise SpecError(f"the sample has no column {column!r}", f"it has: {', '.join(columns)}")
        if columns[column].nulls:
            raise DataError(
                f"{column!r} cannot be in the key: {columns[column].nulls} rows have no value",
                "choose another",
            )
        if column in LAKE_COLUMNS:
            raise SpecError(f"{column!r} is a reserved name of the lake's tables", "rename it in the feed")
    if len(chosen) == 1 and not columns[chosen[0]].unique:
        raise DataError(
            f"{chosen[0]!r} does not identify a row: its values repeat", "name more columns with --key"
        )
    return chosen


def _suggest_label(columns: dict[str, SampleColumn], key: list[str], event_time: str) -> str | None:
    eligible = [
        c
        for c in columns.values()
        if c.name not in (*key, event_time) and c.kind not in ("date", "timestamp")
    ]
    named = [c.name for c in eligible if c.name.lower().removeprefix("is_").removeprefix("has_") in _LABELS]
    return named[0] if named else eligible[-1].name if eligible else None


def _suggest_task(label: SampleColumn) -> str:
    if label.kind == "boolean" or label.distinct == 2:
        return "binary"
    if label.kind == "string" or (label.kind == "integer" and label.distinct <= 20):
        return "multiclass"
    return "regression"


def _positive(label: SampleColumn, task: str, answers: GivenAnswers, ask: bool) -> Any:
    """The value of the positive class; None if the label is boolean or 0/1, or the task is not binary."""
    if task == "regression" and label.kind not in ("integer", "number"):
        raise SpecError(
            f"label {label.name!r} is a {label.kind}, not a number", "choose another label or task"
        )
    if task == "ranking" and (label.kind != "integer" or (label.low or 0) < 0 or (label.high or 0) > 31):
        raise SpecError(
            f"label {label.name!r} is not a grade: a whole number from 0 to 31",
            "choose another label or task",
        )
    if task == "multiclass" and label.kind not in ("string", "integer"):
        raise SpecError(
            f"label {label.name!r} is a {label.kind}, not a class", "choose another label or task"
        )
    if task != "binary" or label.kind == "boolean":
        return None
    if label.distinct > 2:
        if answers.positive is None and not ask:
            raise SpecError(
                f"label {label.name!r} has {label.distinct} values", "name the positive one with --positive"
            )
    elif set(label.values) <= {0, 1}:
        return None
    texts = {str(v): v for v in label.values}
    truthy = [t for t in texts if t.lower() in ("yes", "y", "true", "t", "1", "on", "positive")]
    suggestion = (truthy or sorted(texts))[0 if truthy else -1] if len(texts) <= 2 else None
    return texts[
        _choose(
            f"Which value of {label.name} is the positive class",
            answers.positive,
            suggestion,
            list(texts),
            ask,
            "--positive",
        )
    ]


def _personal(columns: dict[str, SampleColumn], answers: GivenAnswers, label: str, ask: bool) -> list[str]:
    """Columns of personal data: those given, or those whose names suggest it and that the user confirms."""
    if answers.personal is not None:
        if unknown := [p for p in answers.personal if p not in columns]:
            raise SpecError(f"--personal names {unknown[0]!r}", f"the sample has: {', '.join(columns)}")
        return answers.personal
    named = [c for c in columns if _PERSONAL.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", c)) and c != label]
    return [c for c in named if _confirm(f"Is {c} personal data?", ask)]


def _choose(
    what: str, given: str | None, suggestion: str | None, allowed: list[str], ask: bool, option: str
) -> str:
    """Ask for one of the values in ``allowed``, unless it is given.

    Raises:
        SpecError: the given value is not allowed, or there is neither a value nor a suggestion.
    """
    if given is None and ask:
        shown = f" ({', '.join(allowed)})" if len(allowed) <= 12 else ""
        return _prompt(what + shown, suggestion, check=lambda text: text in allowed)
    value = given if given is not None else suggestion
    if value is None:
        raise SpecError(f"{what}: the sample does not show it", f"give it with {option}")
    if value not in allowed:
        raise SpecError(f"{option} is {value!r}", f"one of: {', '.join(allowed)}")
    return value


def _prompt(what: str, default: str | None, ask: bool = True, check: Callable[[str], bool] = bool) -> str:
    if not ask:
        return default or ""
    while True:
        answer = str(typer.prompt(what, default=default)).strip()
        if check(answer):
            return answer
        typer.echo(f"  {answer!r} is not valid.")


def _confirm(what: str, ask: bool) -> bool:
    return typer.confirm(what, default=True) if ask else True


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def _write(folder: Path, sample: Sample, draft: templates.ModelDraft) -> Path:
    folder.mkdir(parents=True)
    for name, text in (
        ("model.yaml", templates.model_text(sample, draft)),
        ("features.sql", templates.sql_text(sample, draft)),
        ("expectations.json", templates.suite_text(sample, draft)),
        ("README.md", templates.readme_text(sample, draft)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _check(folder: Path, *, landed: bool) -> None:
    """Check a new folder as `perennial check` does.

    Raises:
        SpecError: with the problems.
    """
    report = preflight.check_model(catalog.load_model(folder), landed=landed)
    if report.problems:
        raise SpecError(
            "the sample does not make a model: " + "; ".join(report.problems),
            "nothing was written; correct the sample, or choose other columns",
            model=folder.name,
        )


def _rename(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        raise PerennialError(
            f"{target} cannot be created: {error.strerror}", "choose another name or folder"
        ) from error
