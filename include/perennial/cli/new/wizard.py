"""`perennial new`: what a sample leaves open is asked, or suggested; then a folder appears, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perennial.cli.new import sample_reader, templates
from perennial.cli.new.sample_reader import Sample, SampleColumn
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.settings import ROOT, settings
from perennial.spec import catalog
from perennial.spec.constraints import GATE_METRICS, LAKE_COLUMNS

_PERSONAL = re.compile(
    r"(^|_)(e?_?mail|phone|mobile|fax|(first|last|full|sur|maiden|nick|given|family|customer|passenger|patient|user)_?"
    r"name|name|surname|street|address|addr|zip|zipcode|postal|postcode|birth\w*|dob|ssn|passport|iban|bic|card|ip|login|username|"
    r"tail|tailnum|plate|licen[cs]e|latitude|longitude|lat|lon|lng|gender|religion|ethnicity)(_|$|\d)",
    re.IGNORECASE,
)
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
    """What the caller has decided already; None, or empty: ask."""

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
class Made:
    """A new folder, what to know about it, and the sample's first and last partition date."""

    folder: Path
    first: str
    last: str
    remarks: list[str]


def create_model_folder(
    name: str, paths: Sequence[Path], asked: GivenAnswers, into: Path | None = None, *, ask: bool = True
) -> Made:
    """Make a model's folder from sample files.

    Args:
        into: folder to make it in; the first of ``PERENNIAL_MODELS``, or ``include/models``.
        ask: whether there is a person to answer; if not, suggestions are taken.

    Raises:
        PerennialError: the name is taken, the sample cannot be used, an answer does not fit; nothing was written then.
    """
    here = settings()
    root = into.absolute() if into else (here.models[1] if len(here.models) > 1 else here.models[0])
    _check_name(name, root)
    if not paths and ask:
        paths = [Path(_prompt("Sample file, parquet or CSV (several: with a space between)", None))]
        paths = [paths[0]] if paths[0].is_file() else [Path(p) for p in str(paths[0]).split()]
    sample = sample_reader.read(paths, here.landing)
    choice, remarks = _decide(name, sample, asked, here.landing, root, ask=ask)
    copying = not sample.landed or not sample.days
    land = copying and (
        asked.land if asked.land is not None else _confirm("Copy the sample into the landing area?", ask)
    )
    staging = root / f".new-{uuid.uuid4().hex[:12]}"
    try:
        folder = _write(staging / name, sample, choice)
        _check(folder, landed=not copying)
        if land:
            sample_reader.copy(sample, choice.source, choice.event_time)
        _appear(folder, root / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if land:
        remarks.append(f"the sample landed as {choice.source}, {len(choice.days)} partitions")
    elif copying:
        remarks.append(f"the sample was not copied: files are expected at {choice.source}")
    if not _searched(root):
        remarks.append(f"{root} is not searched: add it to PERENNIAL_MODELS")
    return Made(root / name, min(choice.days), max(choice.days), remarks)


def _check_name(name: str, root: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise SpecError(
            f"{name!r} cannot be a model's name", "begin with a letter; lower case, digits and _ only"
        )
    taken = catalog.find_folders() | catalog.find_folders("feature_set.yaml")
    if name in taken or (root / name).exists():
        raise SpecError(
            f"{taken.get(name, root / name)} is there already", "choose another name, or remove the folder"
        )


def _decide(
    name: str, sample: Sample, asked: GivenAnswers, landing: str, root: Path, *, ask: bool
) -> tuple[templates.Choice, list[str]]:
    """Every decision, from what was given, asked or suggested."""
    columns, remarks = sample.columns, [f"left out: {n} ({why})" for n, why in sample.left_out.items()]
    event_time = _event_time(columns, asked, ask)
    key = _key(sample, asked, ask)
    label = _choose(
        "Label: the column to predict",
        asked.label,
        _suggest_label(columns, key, event_time),
        list(columns),
        ask,
        "--label",
    )
    if label in (*key, event_time):
        raise SpecError(f"{label!r} names the row or its time", "predict another column")
    task = _choose("Task", asked.task, _suggest_task(columns[label]), list(GATE_METRICS), ask, "--task")
    group = None
    if task == "ranking":
        group = _choose(
            "Group: the column that names a row's list", asked.group, None, list(columns), ask, "--group"
        )
    positive = _positive(columns[label], task, asked, ask)
    if positive is not None:
        remarks.append(f"of {label}, {positive!r} counts as yes")
    personal = _personal(columns, asked, label, ask)
    if exposed := [c for c in (event_time, label) if c in personal]:
        raise SpecError(f"{exposed[0]!r} is personal data", "choose another label or event time")
    owner = asked.owner or _prompt("Owner", _login(), ask)
    description = asked.description or _prompt(
        "What does it predict, and when is it asked?", f"Predicts {label}.", ask
    )
    days = sample_reader.counts_by_day(sample, event_time)
    if not days:
        raise DataError(f"{event_time} holds no date", "choose another event time")
    if len(days) == 1:
        remarks.append(
            "the sample is one partition: training needs labelled days before and within the held-out ones"
        )
    template = sample.template if sample.template else "{date}" + sample.suffix
    source = "{landing}/" + (template if sample.landed and sample.template else f"{name}/{template}")
    return templates.Choice(
        name,
        task,
        label,
        key,
        event_time,
        owner.strip(),
        description.strip(),
        source,
        days,
        group,
        positive,
        personal,
        _schema(root, name),
    ), remarks


def _schema(root: Path, name: str) -> str:
    """Where the JSON Schema lies, seen from the new folder."""
    return Path(os.path.relpath(ROOT / "include" / "models" / "model.schema.json", root / name)).as_posix()


def _searched(root: Path) -> bool:
    return root.resolve() in settings().models


def _event_time(columns: dict[str, SampleColumn], asked: GivenAnswers, ask: bool) -> str:
    able = [c.name for c in columns.values() if c.kind in ("timestamp", "date")]
    if not able:
        raise SpecError(
            "no column of the sample is a date or a time",
            "a row must say when it happened: add such a column",
        )
    best = sorted(able, key=lambda n: (columns[n].nulls, columns[n].kind != "timestamp"))
    return _choose("Event time: when a row happened", asked.event_time, best[0], able, ask, "--event-time")


def _key(sample: Sample, asked: GivenAnswers, ask: bool) -> list[str]:
    columns = sample.columns
    unique = [
        c.name
        for c in columns.values()
        if c.unique and c.kind in ("string", "integer") and c.name != asked.label
    ]
    unique.sort(key=lambda n: not re.search(r"(^|_)(id|key)$", n.lower()))
    suggestion = unique[:1] or list(sample.pairs[0] if sample.pairs else [])
    if asked.key:
        chosen = list(asked.key)
    elif ask:
        text = _prompt("Key: the columns that name a row within its partition", " ".join(suggestion) or None)
        chosen = text.replace(",", " ").split() if text not in columns else [text]
    elif suggestion:
        chosen = suggestion
    else:
        raise SpecError(
            "no column, and no two columns, name a row of the sample",
            "name the columns with --key, or add one",
        )
    for column in chosen:
        if column not in columns:
            raise SpecError(f"the sample has no column {column!r}", f"it has: {', '.join(columns)}")
        if columns[column].nulls:
            raise DataError(
                f"{column!r} cannot be a key: {columns[column].nulls} rows have none", "choose another"
            )
        if column in LAKE_COLUMNS:
            raise SpecError(f"{column!r} is a column of the lake's own tables", "rename it in the feed")
    if len(chosen) == 1 and not columns[chosen[0]].unique:
        raise DataError(
            f"{chosen[0]!r} does not name a row: it is the same in several", "name more columns with --key"
        )
    return chosen


def _suggest_label(columns: dict[str, SampleColumn], key: list[str], event_time: str) -> str | None:
    able = [
        c
        for c in columns.values()
        if c.name not in (*key, event_time) and c.kind not in ("date", "timestamp")
    ]
    named = [c.name for c in able if c.name.lower().removeprefix("is_").removeprefix("has_") in _LABELS]
    return named[0] if named else able[-1].name if able else None


def _suggest_task(label: SampleColumn) -> str:
    if label.kind == "boolean" or label.distinct == 2:
        return "binary"
    if label.kind == "string" or (label.kind == "integer" and label.distinct <= 20):
        return "multiclass"
    return "regression"


def _positive(label: SampleColumn, task: str, asked: GivenAnswers, ask: bool) -> Any:
    """Which of a label's two values counts as yes, where they are not 0 and 1."""
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
        if asked.positive is None and not ask:
            raise SpecError(
                f"label {label.name!r} has {label.distinct} values", "say with --positive which one is yes"
            )
    elif set(label.values) <= {0, 1}:
        return None
    texts = {str(v): v for v in label.values}
    truthy = [t for t in texts if t.lower() in ("yes", "y", "true", "t", "1", "on", "positive")]
    suggestion = (truthy or sorted(texts))[0 if truthy else -1] if len(texts) <= 2 else None
    return texts[
        _choose(
            f"Which value of {label.name} counts as yes",
            asked.positive,
            suggestion,
            list(texts),
            ask,
            "--positive",
        )
    ]


def _personal(columns: dict[str, SampleColumn], asked: GivenAnswers, label: str, ask: bool) -> list[str]:
    """Columns of personal data: those named, or those whose names suggest it, each asked about."""
    if asked.personal is not None:
        if unknown := [p for p in asked.personal if p not in columns]:
            raise SpecError(f"--personal names {unknown[0]!r}", f"the sample has: {', '.join(columns)}")
        return asked.personal
    named = [c for c in columns if _PERSONAL.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", c)) and c != label]
    return [c for c in named if _confirm(f"Is {c} personal data?", ask)]


def _choose(
    what: str, given: str | None, suggestion: str | None, allowed: list[str], ask: bool, option: str
) -> str:
    """A value out of ``allowed``.

    Raises:
        SpecError: the one given is not, or there is none and nobody to ask.
    """
    if given is None and ask:
        shown = f" ({', '.join(allowed)})" if len(allowed) <= 12 else ""
        return _prompt(what + shown, suggestion, check=lambda text: text in allowed)
    value = given if given is not None else suggestion
    if value is None:
        raise SpecError(f"{what}: cannot be told from the sample", f"say it with {option}")
    if value not in allowed:
        raise SpecError(f"{option} is {value!r}", f"one of: {', '.join(allowed)}")
    return value


def _prompt(what: str, default: str | None, ask: bool = True, check: Callable[[str], bool] = bool) -> str:
    import typer

    if not ask:
        return default or ""
    while True:
        answer = str(typer.prompt(what, default=default)).strip()
        if check(answer):
            return answer
        typer.echo(f"  {answer!r} does not fit.")


def _confirm(what: str, ask: bool) -> bool:
    import typer

    return typer.confirm(what, default=True) if ask else True


def _login() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def _write(folder: Path, sample: Sample, choice: templates.Choice) -> Path:
    folder.mkdir(parents=True)
    for name, text in (
        ("model.yaml", templates.model_text(sample, choice)),
        ("features.sql", templates.sql_text(sample, choice)),
        ("expectations.json", templates.suite_text(sample, choice)),
        ("README.md", templates.readme_text(sample, choice)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _check(folder: Path, *, landed: bool) -> None:
    """Refuse to leave a folder behind that `perennial check` would complain about.

    Raises:
        SpecError: with its problems.
    """
    from perennial.cli.check import preflight

    report = preflight.check_model(catalog.load_model(folder), landed=landed)
    if report.problems:
        raise SpecError(
            "the sample does not make a model: " + "; ".join(report.problems),
            "nothing was written; mend the sample, or choose other columns",
            model=folder.name,
        )


def _appear(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        raise PerennialError(
            f"{target} cannot be made: {error.strerror}", "choose another name or folder"
        ) from error
