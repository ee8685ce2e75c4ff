"""What the page of a model shows: each part is read on its own, so that one that cannot be read hides no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from perennial.alerting import incidents
from perennial.alerting.incidents import Incident
from perennial.console import overview as overview_module
from perennial.console.host import Link, RunningWork
from perennial.console.overview import ModelOverview
from perennial.console.views import features
from perennial.console.views.features import FeaturesPage
from perennial.console.views.parts import Parts
from perennial.lifecycle import champion as champion_module
from perennial.spec.model_spec import ModelSpec
from perennial.status import history as history_module
from perennial.status import overdue, partition_states
from perennial.status.history import History
from perennial.status.overdue import OverdueRange
from perennial.status.partition_states import PartitionState
from perennial.storage import ledger, pages
from perennial.storage.ledger import LedgerKind, LedgerRecord
from perennial.storage.pages import Page

#: Partitions of the calendar, by unit.
CALENDAR_PARTITIONS = {"hour": 24 * 31, "day": 371, "week": 106, "month": 60}
#: Verdicts that charts show, and ledger records, reports of a kind and closed incidents that the page lists.
MAX_VERDICTS, MAX_DECISIONS, MAX_REPORTS, MAX_CLOSED = 180, 40, 12, 10


@dataclass(frozen=True)
class Version:
    """A trained version.

    Attributes:
        version: its number; empty if the training failed before it was registered.
        as_of: partition as of which it was trained.
        trained_at: when it was recorded (UTC).
        decision: of the gate: ``accepted``, ``rejected`` or ``failed``.
        reason: of the decision.
        metrics: on held-out rows.
        champion_since: when it became champion last; empty if it never did.
        is_champion: whether it is the champion.
        run_id: MLflow's run.
    """

    version: str
    as_of: str
    trained_at: str
    decision: str
    reason: str
    metrics: dict[str, float]
    champion_since: str
    is_champion: bool
    run_id: str


@dataclass(frozen=True)
class Verdict:
    """One verdict of monitoring.

    Attributes:
        as_of: last partition of the window.
        version: the champion.
        details: of the index: verdict, reason, numbers and signals.
    """

    as_of: str
    version: str
    details: dict[str, Any]


@dataclass(frozen=True)
class ModelPage:
    """The page.

    Attributes:
        overview: state and findings.
        links: pages outside the console.
        running: what is queued or running.
        verdicts: in order.
        partitions: the calendar's, in order.
        versions: the latest first.
        changes: changes of the champion, in order.
        closed_incidents: the latest of each signal, the latest first.
        mutes: signals that are muted by hand, until when, and why.
        decisions: records of the ledger, the latest first.
        reports: the latest by kind.
        overdue: what is due and not done, with the command that does it.
        features: with their histograms.
        unit: length of a partition.
        week_starts: weekday on which weeks begin.
        drift_limit: share of drift at which a verdict is suspicious.
        problems: parts that cannot be shown, with cause and remedy.
    """

    overview: ModelOverview
    links: list[Link] = field(default_factory=list)
    running: list[RunningWork] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    partitions: list[PartitionState] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    closed_incidents: list[Incident] = field(default_factory=list)
    mutes: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, list[Page]] = field(default_factory=dict)
    overdue: list[OverdueRange] = field(default_factory=list)
    features: FeaturesPage = field(default_factory=lambda: FeaturesPage(""))
    unit: Any = "day"
    week_starts: Any = "monday"
    drift_limit: float | None = None
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def compose(name: str, links: list[Link], running: list[RunningWork]) -> ModelPage | None:
    """Read everything about a model; None if there is no such model.

    Args:
        name: of the model.
        links: pages outside the console.
        running: what is queued or running.

    Raises:
        StorageError: the lake cannot be read.
    """
    overview = overview_module.of_model(name)
    if overview is None:
        return None
    parts, status = Parts(), overview.status
    history = parts.read("manifests", lambda: history_module.load(name)[0], History({}))
    records: Sequence[LedgerRecord] = parts.read("ledger", partial(ledger.records, name), [])
    spec = (
        None if overview.problem else parts.read("model.yaml", partial(overview_module.load_spec, name), None)
    )
    partitions: list[PartitionState] = []
    undone: list[OverdueRange] = []
    if spec is not None:
        partitions = parts.read("partitions", partial(_partitions, spec, history), [])
        until = spec.cadence.last_ended(datetime.now(UTC))
        undone = parts.read("what is overdue", lambda: list(overdue.ranges(spec, until)), [])
    log = parts.read("incidents", partial(incidents.read_log, name), incidents.IncidentLog())
    changes = champion_module.changes(records)
    monitored = list(history.of("monitor").items())
    compared = features.compose(name, as_of=monitored[-1][0]) if monitored else FeaturesPage(name)
    return ModelPage(
        overview=overview,
        links=links,
        running=running,
        verdicts=[Verdict(key, entry.version, entry.details) for key, entry in monitored[-MAX_VERDICTS:]],
        partitions=partitions,
        versions=versions(records, changes),
        changes=[_shown(record) for record in changes],
        closed_incidents=_closed(log),
        mutes=_current_mutes(log),
        decisions=[_shown(record) for record in reversed(records[-MAX_DECISIONS:])],
        reports=parts.read("reports", partial(_reports, name), {}),
        overdue=undone,
        features=compared,
        unit=status.unit if status else "day",
        week_starts=status.week_starts if status else "monday",
        drift_limit=status.drift_limit if status else None,
        problems=[*parts.problems, *compared.problems],
    )


def _partitions(spec: ModelSpec, history: History) -> list[PartitionState]:
    return partition_states.states(spec, history, CALENDAR_PARTITIONS[spec.cadence.unit])


def versions(records: Sequence[LedgerRecord], changes: Sequence[LedgerRecord]) -> list[Version]:
    """The trainings of the ledger, the latest first."""
    since = {record["model_version"]: record["recorded_at"] for record in changes}
    champion = changes[-1]["model_version"] if changes else None
    trainings = [record for record in records if record["kind"] == LedgerKind.TRAINING]
    return [
        Version(
            version=r["model_version"],
            as_of=r["partition"],
            trained_at=r["recorded_at"],
            decision=r["decision"],
            reason=r["reason"],
            metrics=dict(r["evidence"].get("metrics") or {}),
            champion_since=since.get(r["model_version"], "") if r["model_version"] else "",
            is_champion=bool(r["model_version"]) and r["model_version"] == champion,
            run_id=str(r["evidence"].get("run_id", "")),
        )
        for r in reversed(trainings)
    ]


def _shown(record: LedgerRecord) -> dict[str, Any]:
    """What the page lists of a record."""
    keys = ("sequence", "recorded_at", "partition", "kind", "decision", "model_version", "actor", "reason")
    return {key: record[key] for key in keys}  # type: ignore[literal-required]


def _closed(log: incidents.IncidentLog) -> list[Incident]:
    closed = [incident for incident in log.incidents.values() if incident.closed]
    return sorted(closed, key=lambda incident: incident.changed_at, reverse=True)[:MAX_CLOSED]


def _current_mutes(log: incidents.IncidentLog) -> list[dict[str, Any]]:
    day = log.latest_date[:10] or datetime.now(UTC).date().isoformat()
    return [mute for mute in log.mutes if mute["until"] >= day]


def _reports(name: str) -> dict[str, list[Page]]:
    """The latest stored pages, by kind."""
    kinds: dict[str, list[Page]] = {}
    for stored in pages.find(name):
        kinds.setdefault(stored.kind, []).append(stored)
    return {kind: listed[:MAX_REPORTS] for kind, listed in kinds.items()}
