"""The loop of a model as stations with live state: data, scores, monitoring, decision, training, champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perennial.console._model_page import ModelPage
from perennial.console.host import RunningWork
from perennial.spec.alerts import signal_title
from perennial.status.record import ModelStatus

#: Stages of runs, by station.
_STAGES = {"data": "data", "score": "score", "monitor": "monitor", "train": "train", "champion": "rollback"}


@dataclass(frozen=True)
class Station:
    """One station of the loop.

    Attributes:
        name: of the station; also its place in the picture.
        title: for people.
        state: ``ok``, ``bad``, ``attention``, ``unknown`` or ``idle``.
        lines: what is there now, the most important first.
        anchor: part of the page that says more.
        running: runs of its stage.
    """

    name: str
    title: str
    state: str
    lines: list[str]
    anchor: str
    running: list[RunningWork]


def stations(page: ModelPage) -> list[Station]:
    """The stations, in the order in which a partition passes them."""
    status = page.overview.status
    parts = [
        ("data", "Data", _data(status, page.overview.due), "partitions"),
        ("score", "Scores", _scores(status, page.overview.behind), "partitions"),
        ("monitor", "Monitoring", _monitoring(status), "performance"),
        ("decide", "Decision", _decision(status), "decisions"),
        ("train", "Training", _training(page), "versions"),
        ("champion", "Champion", _champion(status), "versions"),
    ]
    return [
        Station(name, title, state, lines, anchor, _of_stage(page.running, name))
        for name, title, (state, lines), anchor in parts
    ]


def _of_stage(running: Sequence[RunningWork], station: str) -> list[RunningWork]:
    return [work for work in running if work.stage == _STAGES.get(station)]


def _data(status: ModelStatus | None, due: str) -> tuple[str, list[str]]:
    if status is None or not status.last.get("published"):
        return "idle", ["nothing published yet"]
    last = status.last["published"]
    lines = [last, f"{status.partitions:,} partitions published"]
    if due and last < due:
        lines.append(f"due up to {due}")
    if status.quarantined:
        key, rows = list(status.quarantined.items())[-1]
        lines.append(f"quarantine: {rows:,} rows of {key}")
    late = bool(due) and status.cadence.index(due) - status.cadence.index(last) > 1
    return ("attention" if late or "data" in status.failed else "ok"), lines


def _scores(status: ModelStatus | None, behind: int) -> tuple[str, list[str]]:
    if status is None or not status.last.get("scored"):
        return "idle", ["nothing scored yet"]
    lines = [status.last["scored"]]
    if behind > 1:
        return "attention", [*lines, f"{behind} partitions behind"]
    return ("attention" if "score" in status.failed else "ok"), [*lines, "up to date"]


def _monitoring(status: ModelStatus | None) -> tuple[str, list[str]]:
    if status is None or status.verdict is None:
        return "idle", ["not monitored yet"]
    verdict = status.verdict
    states = {"drifted": "bad", "suspected": "attention", "undetermined": "unknown", "ok": "ok"}
    state = (
        "bad"
        if verdict.bad_signals or verdict.performance == "dropped"
        else states.get(verdict.verdict, "unknown")
    )
    problems = [f"bad: {', '.join(map(signal_title, verdict.bad_signals))}"] if verdict.bad_signals else []
    if verdict.performance == "dropped":
        problems.insert(0, "performance dropped")
    lines = [*problems, f"drift: {verdict.verdict}", f"as of {verdict.as_of}"]
    return state, lines


def _decision(status: ModelStatus | None) -> tuple[str, list[str]]:
    if status is None or not status.decision:
        return "idle", ["no decision yet"]
    waiting = status.open_proposals()
    if waiting:
        return "attention", ["waits for approval", f"as of {waiting[-1]['partition']}"]
    titles = {"requested": "retraining requested", "declined": "no retraining", "proposed": "not answered"}
    decision = status.decision
    return "ok", [titles.get(decision["decision"], decision["decision"]), f"as of {decision['partition']}"]


def _training(page: ModelPage) -> tuple[str, list[str]]:
    if not page.versions:
        return "idle", ["not trained yet"]
    latest = page.versions[0]
    title = f"version {latest.version}" if latest.version else "training"
    state = {"accepted": "ok", "rejected": "attention", "failed": "bad"}.get(latest.decision, "unknown")
    what = {"accepted": "passed the gate", "rejected": "rejected by the gate", "failed": "failed"}
    return state, [f"{title} {what.get(latest.decision, latest.decision)}", f"as of {latest.as_of}"]


def _champion(status: ModelStatus | None) -> tuple[str, list[str]]:
    if status is None or status.champion is None:
        return "idle", ["no champion yet"]
    champion = status.champion
    lines = [
        f"version {champion.version}",
        f"since {champion.since[:10]}",
        f"{champion.change} by {champion.actor}",
    ]
    if status.trial:
        lines.append(f"version {status.trial} on trial")
    return "ok", lines
