"""All models at a glance: the state of each, with its reasons, from the status records and the incidents."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from perennial.alerting import incidents
from perennial.alerting.incidents import Incident, IncidentLog
from perennial.console import time_limit
from perennial.core.errors import PerennialError, SpecError
from perennial.core.settings import settings
from perennial.spec import catalog
from perennial.spec.alerts import signal_measure
from perennial.spec.model_spec import ModelSpec
from perennial.status import record
from perennial.status.record import ModelStatus
from perennial.storage import object_store
from perennial.storage.object_store import FileStat

State = Literal["bad", "attention", "unknown", "new", "ok"]
#: The states, the most urgent first, with what they are called.
STATES: dict[State, str] = {
    "bad": "unwell",
    "attention": "needs attention",
    "unknown": "not known",
    "new": "no champion yet",
    "ok": "well",
}
#: Partitions that scoring may be behind: the run of the latest one may not have begun.
_TOLERATED_BEHIND = 1
_VERDICTS: dict[str, State] = {"drifted": "bad", "suspected": "attention", "undetermined": "unknown"}
_PERFORMANCE: dict[str, State] = {"dropped": "bad", "suspected": "attention"}


@dataclass(frozen=True)
class ModelOverview:
    """One model.

    Attributes:
        name: of the model.
        state: the most urgent of its findings.
        findings: why, each with its state, the most urgent first.
        status: its record; None if there is none.
        open_incidents: its open incidents, bad ones first.
        due: latest partition that has ended, within the schedule.
        behind: partitions from the latest scored to the latest due one.
        problem: why its folder cannot be used; empty if it can.
    """

    name: str
    state: State
    findings: list[tuple[State, str]]
    status: ModelStatus | None = None
    open_incidents: list[Incident] = field(default_factory=list)
    due: str = ""
    behind: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Overview:
    """All models.

    Attributes:
        models: by name.
        problem: why nothing can be said about the lake; empty if it can be read.
        remedy: what to do about it.
    """

    models: dict[str, ModelOverview]
    problem: str = ""
    remedy: str = ""


def of_all(moment: datetime | None = None) -> Overview:
    """Every model that has a folder, or a status record.

    Args:
        moment: the time, for what is due; now by default.
    """
    folders = catalog.find_folders()
    try:
        time_limit.check_lake()
        records = _records.load()
        logs = _logs.load()
    except PerennialError as error:
        models = {name: ModelOverview(name, "unknown", [("unknown", error.cause)]) for name in folders}
        return Overview(models, error.cause, error.remedy)
    names = sorted({*folders, *records})
    problems = _problems({name: folders[name] for name in names if name in folders}, records)
    models = {
        name: _overview(
            name, records.get(name), logs.get(name), problems.get(name, ""), name in folders, moment
        )
        for name in names
    }
    return Overview(models)


def of_model(name: str, moment: datetime | None = None) -> ModelOverview | None:
    """One model; None if it has neither folder nor record.

    Raises:
        StorageError: the lake cannot be read.
    """
    folders = catalog.find_folders()
    status = record.read(name)
    if name not in folders and status is None:
        return None
    problem = _problem(folders[name]) if name in folders else ""
    return _overview(name, status, incidents.read_log(name), problem, name in folders, moment)


def _overview(
    name: str,
    status: ModelStatus | None,
    log: IncidentLog | str | None,
    problem: str,
    has_folder: bool,
    moment: datetime | None,
) -> ModelOverview:
    open_incidents = log.open if isinstance(log, IncidentLog) else []
    findings: list[tuple[State, str]] = []
    if problem:
        findings.append(("bad", "model.yaml cannot be used"))
    if not has_folder:
        findings.append(("attention", "its folder is gone; the lake still has its data"))
    if isinstance(log, str):
        findings.append(("bad", log))
    findings += [
        (
            "bad" if i.severity == "bad" else "attention",
            f"incident {_in_words(i.signal)}, since {i.first or 'a run without a date'}",
        )
        for i in open_incidents
    ]
    due, behind = "", 0
    if status is None:
        findings.append(("unknown", "no status was written yet: run a step, or perennial status --rebuild"))
    else:
        due = status.due(moment)
        behind = _behind(status, due)
        findings += _findings(status, behind, moment)
    order = list(STATES)
    findings.sort(key=lambda finding: order.index(finding[0]))
    state: State = findings[0][0] if findings else "ok"
    return ModelOverview(name, state, findings, status, open_incidents, due, behind, problem)


def _behind(status: ModelStatus, due: str) -> int:
    """How many partitions the scores are behind; 0 if there are none yet."""
    scored = status.last.get("scored", "")
    if not scored or not due or scored >= due:
        return 0
    return status.cadence.index(due) - status.cadence.index(scored)


def _findings(status: ModelStatus, behind: int, moment: datetime | None) -> Iterable[tuple[State, str]]:
    """What a record says about a model's health."""
    if status.unreadable:
        yield "bad", f"{len(status.unreadable)} manifests are not what was written"
    if status.champion is None:
        yield "new", "no partition was published yet" if not status.partitions else "it has no champion yet"
    for proposal in status.open_proposals(moment):
        yield "attention", f"a retraining as of {proposal['partition']} waits for approval"
    if behind > _TOLERATED_BEHIND:
        yield "attention", f"scores are {behind} partitions behind"
    for step, key in status.failed.items():
        yield "attention", f"the step {step} failed for {key}"
    if (verdict := status.verdict) is None:
        if status.champion is not None:
            yield "unknown", "it was not monitored yet"
        return
    if verdict.verdict in _VERDICTS and status.champion is not None:
        yield _VERDICTS[verdict.verdict], f"drift is {verdict.verdict} as of {verdict.as_of}"
    if verdict.performance in _PERFORMANCE:
        yield _PERFORMANCE[verdict.performance], f"performance is {verdict.performance} as of {verdict.as_of}"
    if verdict.bad_signals:
        yield "bad", f"bad signals: {', '.join(map(_in_words, verdict.bad_signals))}"
    if verdict.suspected_signals:
        yield "attention", f"suspected signals: {', '.join(map(_in_words, verdict.suspected_signals))}"


def _in_words(signal: str) -> str:
    """A signal's name, by which it is muted, with what it measures."""
    measure = signal_measure(signal)
    return f"{signal} ({measure})" if measure else signal


class _Folder:
    """Small JSON files of a folder of the lake; in each process a file is read again only when it has changed.

    Args:
        name: of the folder.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._files: dict[str, tuple[FileStat, Any]] = {}

    def load(self) -> dict[str, Any]:
        """The content of every file that can be used, by model.

        Raises:
            StorageError: the lake cannot be read.
        """
        folder = f"{settings().lake}/{self._name}"
        listed = {n: s for n, s in object_store.list_files(folder).items() if n.endswith(".json")}
        with self._lock:
            known = {n: self._files.get(f"{folder}/{n}") for n in listed}
        fresh = [n for n, stat in listed.items() if (k := known[n]) is None or k[0] != stat]
        with ThreadPoolExecutor(16, thread_name_prefix="console") as pool:
            read = dict(
                zip(fresh, pool.map(lambda n: self._parse(n.removesuffix(".json")), fresh), strict=True)
            )
        with self._lock:
            self._files |= {f"{folder}/{n}": (listed[n], content) for n, content in read.items()}
            contents = {n: self._files[f"{folder}/{n}"][1] for n in listed}
        return {n.removesuffix(".json"): content for n, content in contents.items() if content is not None}

    def _parse(self, model: str) -> Any:
        return record.read(model)


class _Incidents(_Folder):
    """The incidents of all models; a text for a file that cannot be used."""

    def _parse(self, model: str) -> Any:
        try:
            return incidents.read_log(model)
        except PerennialError as error:
            return error.cause


_records, _logs = _Folder("status"), _Incidents("incidents")
#: Problems of folders, by path and time of change of their files.
_checked: dict[tuple[Path, tuple[int, ...]], str] = {}


def _problems(folders: dict[str, Path], records: dict[str, ModelStatus]) -> dict[str, str]:
    """Why folders cannot be used, by name.

    A folder whose files are older than its status record was good when the record was written: it is not read again,
    since reading 500 specs takes seconds.
    """
    doubtful = [n for n, f in folders.items() if n not in records or _changed(f) > _written_ns(records[n])]
    problems = {name: _problem(folders[name]) for name in doubtful}
    return {name: problem for name, problem in problems.items() if problem}


def _problem(folder: Path) -> str:
    """Why a folder cannot be used; empty if it can."""
    key = (folder, _stamps(folder))
    if key not in _checked:
        try:
            catalog.load_model(folder)
            _checked[key] = ""
        except SpecError as error:
            _checked[key] = str(error)
    return _checked[key]


def _stamps(folder: Path) -> tuple[int, ...]:
    """When the files of a model's folder were changed last, in nanoseconds since 1970; 0 for one that is missing."""
    files = ("model.yaml", "features.sql", "expectations.json")
    return tuple(_mtime(folder / name) for name in files)


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _changed(folder: Path) -> int:
    stamps = _stamps(folder)
    return max(stamps) if all(stamps) else 2**63


def _written_ns(status: ModelStatus) -> int:
    return int(datetime.fromisoformat(status.written_at).timestamp() * 1e9)


def load_spec(name: str) -> ModelSpec:
    """Read a model's spec.

    Raises:
        SpecError: there is none, or its folder is invalid.
    """
    return catalog.load_model_by_name(name)


def age_days(timestamp: str, moment: datetime | None = None) -> int:
    """Whole days since a time that `dates.utc_timestamp` wrote."""
    return ((moment or datetime.now(UTC)) - datetime.fromisoformat(timestamp)).days


def sorted_by(models: Collection[ModelOverview], key: str) -> list[ModelOverview]:
    """The models in the order of a column of the page; the most urgent first by default."""
    order = list(STATES)

    def value(model: ModelOverview) -> tuple[Any, ...]:
        status = model.status
        match key:
            case "name":
                return (model.name,)
            case "owner":
                return (status.owner if status else "~", model.name)
            case "champion":
                return (status.champion.since if status and status.champion else "~", model.name)
            case "scored":
                return (-model.behind, model.name)
            case "incidents":
                return (-len(model.open_incidents), model.name)
            case _:
                return (order.index(model.state), -len(model.open_incidents), model.name)

    return sorted(models, key=value)
