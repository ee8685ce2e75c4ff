"""The table that `make run` prints at its end, read from the manifests and the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perennial.core import dates
from perennial.local_stack.sample.plan import Plan
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from perennial.storage.manifests import Manifest


@dataclass(frozen=True)
class Event:
    """A line of the table."""

    dates: str
    what: str
    figures: str
    why: str = ""


def print_summary(console: Console, plans: tuple[Plan, ...]) -> None:
    """Print one table with the events of all models."""
    table = Table(title="What happened", title_justify="left", show_lines=False)
    for name, options in (
        ("date", {"no_wrap": True}),
        ("what", {}),
        ("figures", {}),
        ("decision and reason", {}),
    ):
        table.add_column(name, overflow="fold", **options)  # type: ignore[arg-type]
    for plan in plans:
        table.add_section()
        table.add_row(f"[bold]{plan.model}[/bold]", "", "", "")
        for event in events(plan):
            table.add_row(event.dates, event.what, event.figures, event.why)
    if console.width < 120 and not console.is_terminal:
        console = Console(file=console.file, width=160, highlight=False)
    console.print(table)


def events(plan: Plan) -> list[Event]:
    """The events of one model, in partition order."""
    spec = catalog.load_model_by_name(plan.model)
    events: list[Event] = []
    history = _manifests(spec, "data", dates.dates(plan.first, plan.trained_until))
    if history:
        bad = sum(m.quarantined for m in history)
        figures = f"{sum(m.rows_out for m in history):,} rows, {bad:,} in quarantine"
        events.append(Event(_span([m.key for m in history]), f"{len(history)} nights published", figures))
    events += _training(spec, plan.trained_until)
    scored: list[Manifest] = []
    for night in dates.dates(dates.add_days(plan.trained_until, 1), plan.latest):
        scored += _manifests(spec, "score", [night])
        monitored = _monitored(spec, night)
        if monitored:
            events += [*_scored(scored), monitored, *_training(spec, night)]
            scored = []
    return events + _scored(scored)


def _manifests(spec: ModelSpec, step: str, days: list[str]) -> list[Manifest]:
    return [manifest for day in days if (manifest := manifests.read(spec.name, step, day))]


def _span(days: list[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} … {days[-1][5:]}"


def _scored(nights: list[Manifest]) -> list[Event]:
    """One line for each version and the nights that it scored."""
    lines = []
    for version in dict.fromkeys(m.model_version for m in nights):
        by_version = [m for m in nights if m.model_version == version]
        rows = sum(m.rows_out for m in by_version)
        days = [m.key for m in by_version]
        lines.append(
            Event(
                _span(days),
                f"{len(by_version)} {_nights(by_version)} scored",
                f"{rows:,} rows by version {version}",
            )
        )
    return lines


def _nights(scored: list[Manifest]) -> str:
    return "night" if len(scored) == 1 else "nights"


def _training(spec: ModelSpec, day: str) -> list[Event]:
    training = manifests.read(spec.name, "train", day)
    if training is None:
        return []
    result, gate = training.result, training.result["gate"]
    metric = spec.metric
    figures = f"{metric} {_number(result['metrics'].get(metric))}"
    if versus := gate.get("against_champion"):
        figures += f", champion {_number(versus['other'])} ({_change(versus)})"
    elif baselines := gate.get("against_baselines"):
        name, versus = min(baselines.items(), key=lambda item: item[1]["other"])
        figures += f", {name} baseline {_number(versus['other'])} ({_change(versus)})"
    moves = [r for r in ledger.records(spec.name, LedgerKind.PROMOTION) if r["partition"] == day]
    outcome = "[green]promoted[/green]" if moves else "[red]rejected[/red]"
    return [
        Event(
            day,
            f"version {training.model_version} trained",
            figures,
            f"{outcome}: {escape(_decisive(gate['reasons']))}",
        )
    ]


def _decisive(reasons: list[str]) -> str:
    """The gate's failed checks; if none failed, its last one, which compares with the champion."""
    failed = [reason for reason in reasons if reason.startswith("FAILED")]
    return "; ".join(reason.partition(": ")[2] for reason in failed or reasons[-1:])


def _monitored(spec: ModelSpec, day: str) -> Event | None:
    monitored = manifests.read(spec.name, "monitor", day)
    if monitored is None:
        return None
    share = monitored.result.get("drift_share")
    drifted = ", ".join(monitored.result.get("drifted") or []) or "none"
    figures = f"drift share {_number(share)} ({escape(drifted)})"
    performance = (monitored.result.get("performance") or {}).get("verdict")
    decisions = [r for r in ledger.records(spec.name, LedgerKind.RETRAINING) if r["partition"] == day]
    why = f"retraining {decisions[-1]['decision']}: {escape(decisions[-1]['reason'])}" if decisions else ""
    colour = {"ok": "green", "suspected": "yellow", "drifted": "red"}.get(monitored.result["verdict"], "dim")
    verdict = f"[{colour}]{monitored.result['verdict']}[/{colour}]"
    return Event(day, f"monitored: {verdict}", f"{figures}; performance {performance}", why)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _change(versus: dict[str, Any]) -> str:
    return f"improvement {versus['improvement']:+.1%} [{versus['low']:+.1%}, {versus['high']:+.1%}]"
