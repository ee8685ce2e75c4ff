"""Create a model's folder from sample files: infer what it needs, ask about what may be wrong, write and check it."""

from __future__ import annotations

import contextlib
import getpass
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perennial.cli.new import _leaks, _model_folder, expectations, inference, partitioning, templates
from perennial.cli.new.decisions.answers import GivenAnswers
from perennial.cli.new.decisions.key import decide_key, remark_duplicates
from perennial.cli.new.decisions.label import decide_label, decide_target
from perennial.cli.new.decisions.personal_data import decide_personal
from perennial.cli.new.decisions.time import decide_event_time, decide_partitions, delivery_text
from perennial.cli.new.partitioning import Partitions
from perennial.cli.new.query_sample import QueryOfRows
from perennial.cli.new.questions import Questions, show_columns, show_decisions
from perennial.cli.new.samples import event_times, sample_reader
from perennial.cli.new.samples.choices import ReadingChoices
from perennial.cli.new.samples.event_times import TimeSource
from perennial.cli.new.samples.sample_reader import Sample
from perennial.cli.new.samples.time_zones import written_zone
from perennial.core.errors import DataError, SpecError
from perennial.core.partitions import date_of
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier
from perennial.spec.sections import DataSpec
from perennial.storage import leftovers

__all__ = ["CreatedModel", "GivenAnswers", "create_model_folder"]

#: What a person can change once everything is shown: the answers that are asked again.
_CHANGES: dict[str, tuple[str, ...]] = {
    "label": ("label", "task", "positive", "key"),
    "task": ("task", "positive", "group"),
    "time": ("event_time", "timezone", "partition_by", "at_random", "key"),
    "partitions": ("partition_by", "at_random", "partitions", "every", "key"),
    "key": ("key",),
    "personal": ("personal",),
    "owner": ("owner",),
    "description": ("description",),
}
#: Rows that a sample needs.
MIN_ROWS = 2
DEFAULT_QUARANTINE_LIMIT: float = DataSpec.model_fields["quarantine_limit"].default


@dataclass
class CreatedModel:
    """A new model.

    Attributes:
        folder: its folder.
        first: first partition date of the sample.
        last: last partition date of the sample.
        remarks: what the user should know about it.
        texts: the content of its files by name, if they were not written.
    """

    folder: Path
    first: str
    last: str
    remarks: list[str]
    texts: dict[str, str] = field(default_factory=dict)


def create_model_folder(
    name: str,
    paths: Sequence[Path],
    answers: GivenAnswers,
    into: Path | None = None,
    *,
    ask: bool = True,
    dry_run: bool = False,
    query: QueryOfRows | None = None,
) -> CreatedModel:
    """Create a model's folder from sample files, or from the rows of a query.

    Args:
        name: name of the model.
        paths: the files.
        answers: answers given in advance.
        into: folder to create it in; by default the first of ``PERENNIAL_MODELS``, or ``include/models``.
        ask: whether to ask for answers that were not given; if not, suggestions are used.
        dry_run: whether to write nothing: the files' content is returned.
        query: what gives the rows instead of files.

    Raises:
        PerennialError: the name is in use, or the sample or an answer is invalid; nothing was written.
    """
    current = settings()
    root = into.absolute() if into else current.models[min(1, len(current.models) - 1)]
    _model_folder.check_name(name, root)
    questions = Questions(ask)
    paths = _sample_files(paths, query, questions)
    with contextlib.ExitStack() as stack:
        if query:
            copies = stack.enter_context(leftovers.temporary_folder("perennial-sample-"))
            paths = [query.copy(copies)]
        sample = stack.enter_context(_read_sample(paths, current.landing, answers.reading, questions))
        if ask:
            show_columns(sample)
            questions = Questions(ask, tuple(sample.columns))
        decided = _decide(name, sample, answers, root, questions)
        draft, remarks = decided.draft, decided.remarks
        if query:
            draft = query.as_source(sample, draft, decided.partitions)
        suite = expectations.compose(sample, draft)
        remarks += suite.remarks
        texts = _model_folder.file_texts(sample, draft, suite)
        days = list(draft.days)
        copying = not query and not (sample.names and sample.names.landed and decided.partitions.as_they_are)
        if dry_run:
            return CreatedModel(root / name, days[0], days[-1], remarks, texts)
        land = copying and _to_land(answers, questions)
        with leftovers.temporary_folder(".new-", root) as staging:
            folder = _model_folder.write(staging / name, texts)
            remarks += _model_folder.check(folder, landed=not copying)
            if land:
                partitioning.land(sample, decided.partitions, draft.source)
            _model_folder.move(folder, root / name)
    remarks += _location_remarks(draft, root, land, copying)
    return CreatedModel(root / name, days[0], days[-1], remarks)


def _sample_files(paths: Sequence[Path], query: QueryOfRows | None, questions: Questions) -> Sequence[Path]:
    """The files of the sample, which a person is asked for if neither files nor a query are given."""
    if query and paths:
        raise SpecError("a sample file and a query are given", "give one of them")
    if paths or query or not questions.ask:
        return paths
    answer = Path(questions.text("Sample file, parquet or CSV (separate several by spaces)", None))
    return [answer] if answer.exists() else [Path(p) for p in str(answer).split()]


def _location_remarks(draft: templates.ModelDraft, root: Path, land: bool, copying: bool) -> list[str]:
    """Where the sample is expected, and whether the folder is searched for models."""
    remarks = []
    if land:
        remarks.append(f"the sample landed as {draft.source}, {len(draft.days)} partitions")
    elif copying:
        remarks.append(f"the sample was not copied: files are expected at {draft.source}")
    if root.resolve() not in settings().models:
        remarks.append(f"{root} is not searched for models: add it to PERENNIAL_MODELS")
    return remarks


def _to_land(answers: GivenAnswers, questions: Questions) -> bool:
    """Whether the sample is copied into the landing area."""
    if answers.land is not None:
        return answers.land
    return questions.confirm("Copy the sample into the landing area?")


@contextlib.contextmanager
def _read_sample(
    paths: Sequence[Path], landing_area: str, reading: ReadingChoices, questions: Questions
) -> Iterator[Sample]:
    """The sample; a person chooses between readings between which its text does not decide."""
    while True:
        with sample_reader.open_sample(paths, landing_area, reading) as sample:
            chosen: dict[str, Any] = {u.choice: questions.way(u) for u in sample.undecided}
            if all(chosen[u.choice] == u.used for u in sample.undecided):
                yield sample
                return
        reading = replace(reading, **chosen)


@dataclass
class _Decided:
    """All decisions about a model, and the answers that led to them."""

    draft: templates.ModelDraft
    partitions: Partitions
    remarks: list[str]
    answers: GivenAnswers


def _decide(name: str, sample: Sample, answers: GivenAnswers, root: Path, questions: Questions) -> _Decided:
    """Make all decisions, from given answers, questions or suggestions; a person can change them."""
    while True:
        decided = _draft(name, sample, answers, root, questions)
        if not questions.ask:
            return decided
        show_decisions(_summary(sample, decided), decided.remarks)
        words = ", ".join(_CHANGES)
        answer = questions.text(
            f"Enter to go on, or what to change ({words})",
            "go on",
            check=lambda text: text in (*_CHANGES, "go on"),
        )
        if answer == "go on":
            return decided
        empty = GivenAnswers()
        answers = replace(decided.answers, **{name: getattr(empty, name) for name in _CHANGES[answer]})


def _draft(name: str, sample: Sample, answers: GivenAnswers, root: Path, questions: Questions) -> _Decided:
    remarks = _sample_remarks(sample, questions)
    columns = sample.columns
    sources = event_times.time_sources(sample)
    if sample.row_count < MIN_ROWS:
        raise DataError(f"the sample has {sample.row_count} row", "give a sample with more rows")
    label = questions.until_valid(
        lambda: decide_label(sample, answers, sources, questions), given=answers.label is not None
    )
    task, label_sql, positive = questions.until_valid(
        lambda: decide_target(sample, columns[label], answers, questions, remarks),
        given=answers.task is not None or answers.positive is not None,
    )
    group = _decide_group(task, label, columns, answers, questions)
    source, partitions = decide_partitions(sample, sources, label, answers, questions, remarks)
    personal = decide_personal(sample, answers, label, questions, remarks)
    event_time = decide_event_time(sample, source, partitions, personal, remarks)
    key, row_number = questions.until_valid(
        lambda: decide_key(sample, partitions, sources, label, personal, answers, questions, remarks),
        given=bool(answers.key),
    )
    if label in personal:
        raise SpecError(f"{label!r} is personal data", "choose another label")
    remark_duplicates(sample, partitions, bool(row_number), remarks)
    owner = answers.owner or questions.text("Owner", _login())
    description = answers.description or questions.text(
        "What does it predict, and when is a prediction made?", f"Predicts {label}."
    )
    if len(partitions.counts) == 1:
        remarks.append(
            "the sample is one partition; training needs labelled partitions before the held-out ones"
        )
    quarantine_limit = _quarantine_limit(sample, remarks)
    if partitions.has_gaps:
        remarks.append(
            "the sample has no rows of some partitions between its first and last: arrival is optional"
        )
    zones = _clocks(sample, partitions.cadence.timezone)
    draft = templates.ModelDraft(
        name=name, task=task, label=label, key=key, event_time=event_time, owner=owner.strip(),
        description=description.strip(),
        source=_landing_path(name, sample, partitions),
        days=dict(sorted(partitions.counts.items())), group=group, positive=positive, personal=personal,
        schema=_model_folder.schema_path(root, name), row_number=row_number,
        zones=zones, time_parts=inference.time_parts(sample, zones),
        cadence=partitions.cadence, has_gaps=partitions.has_gaps, label_sql=label_sql,
        quarantine_limit=quarantine_limit,
        delivery="" if partitions.dated else delivery_text(partitions), shuffled=partitions.by == "random",
    )  # fmt: skip
    _check_features(sample, draft)
    if draft.has_ended:
        remarks.append(
            f"the sample ended long ago: schedule.end is {date_of(max(draft.days))}, so that no run expects later "
            "files; remove it when the feed delivers them"
        )
    remarks += _leaks.label_remarks(sample, draft, partitions)
    decided_answers = _as_answers(draft, source, partitions, answers)
    return _Decided(draft, partitions, list(dict.fromkeys(remarks)), decided_answers)


def _sample_remarks(sample: Sample, questions: Questions) -> list[str]:
    """What the user should know about the sample as it was read."""
    remarks = [f"left out: {n if n.isprintable() else repr(n)} ({why})" for n, why in sample.left_out.items()]
    remarks += sample.remarks
    return remarks + ([] if questions.ask else [undecided.remark for undecided in sample.undecided])


def _decide_group(
    task: str, label: str, columns: Collection[str], answers: GivenAnswers, questions: Questions
) -> str | None:
    """The column that identifies a row's list; None unless the task is ranking."""
    if task != "ranking":
        return None
    question = "Group: the column that identifies a row's list"
    return questions.column(question, answers.group, None, [c for c in columns if c != label], "--group")


def _landing_path(name: str, sample: Sample, partitions: Partitions) -> str:
    """The path of a partition's file: where it landed already, or where its copy goes."""
    template = sample.names.template if sample.names and partitions.as_they_are else None
    names = {"month": "{year}-{month}", "hour": "{date}T{hour}"}
    template = template or names.get(partitions.cadence.unit, "{date}") + sample.suffix
    landed = bool(sample.names and sample.names.landed and partitions.as_they_are)
    return "{landing}/" + (template if landed else f"{name}/{template}")


def _as_answers(
    draft: templates.ModelDraft,
    source: TimeSource | None,
    partitions: Partitions,
    answers: GivenAnswers,
) -> GivenAnswers:
    """The answers that lead to a draft again, without questions."""
    return replace(
        answers,
        task=draft.task, label=draft.label,
        positive=answers.positive if draft.positive is None else str(draft.positive), key=draft.key,
        event_time=source.text if source else "none", group=draft.group, owner=draft.owner,
        description=draft.description, personal=draft.personal,
        partition_by=partitions.column if partitions.by == "order" and not source else None,
        at_random=partitions.by == "random",
        timezone=partitions.cadence.timezone if source and source.column else None,
    )  # fmt: skip


def _clocks(sample: Sample, zone: str) -> dict[str, str]:
    """The zone of the clock of each column of dates or times; that of UTC unless it is written with offsets."""
    return {
        c.name: zone
        if c.kind == "timestamp" and zone != "UTC" and written_zone(sample, c.name, 1000) != "UTC"
        else "UTC"
        for c in sample.columns.values()
        if c.kind in ("date", "timestamp")
    }


def _check_features(sample: Sample, draft: templates.ModelDraft) -> None:
    """Refuse a sample without features.

    Raises:
        DataError: with the reason of each column.
    """
    columns, left_out = templates.features(sample, draft)
    if not columns:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in {**left_out, **sample.left_out}.items())
        raise DataError(
            f"no column of the sample can be a feature: {reasons}",
            "give a sample with more columns, or choose another label, key or time",
        )


def _quarantine_limit(sample: Sample, remarks: list[str]) -> float | None:
    """The share of bad rows that a partition may have, if the sample has more than by default: infinite numbers."""
    cells = [quote_identifier(c.name) for c in sample.columns.values() if c.infinite]
    if not cells:
        return None
    bad = f"coalesce({' OR '.join(f'isinf({cell})' for cell in cells)}, FALSE)"
    ((rows, share),) = sample.query(
        f"SELECT sum(__bad), max(__bad / __all) FROM (SELECT count(*) FILTER ({bad}) AS __bad, count(*) AS __all "
        "FROM __dated GROUP BY __day)"
    )
    limit = math.ceil(share * 120) / 100
    more = f", so quarantine_limit is {limit:g}" if limit > DEFAULT_QUARANTINE_LIMIT else ""
    remarks.append(f"{rows:,} rows have an infinite number: they go to quarantine{more}")
    return min(limit, 1.0) if more else None


def _summary(sample: Sample, decided: _Decided) -> list[tuple[str, str]]:
    """The decisions, as a person reads them."""
    draft, counts = decided.draft, list(decided.draft.days.values())
    columns, left_out = templates.features(sample, draft)
    rows = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return [
        ("label", draft.label if draft.label_sql is None else f"{draft.label}: {draft.label_sql}"),
        ("task", draft.task),
        ("time", draft.event_time or "none: the date of the partition"),
        ("partitions", f"{len(counts):,}, {min(draft.days)} to {max(draft.days)}, {rows} rows each"),
        ("key", ", ".join(draft.key) + (" (the row's number in its file)" if draft.row_number else "")),
        ("personal", ", ".join(draft.personal) or "none"),
        ("features", f"{len(columns)}: {', '.join(f.name for f in columns[:20])}{' …' if columns[20:] else ''}"),
        ("left out", ", ".join(f"{n} ({why})" for n, why in left_out.items() if n != draft.label) or "nothing"),
        ("files", draft.source),
    ]  # fmt: skip


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"
