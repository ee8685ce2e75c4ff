"""The commands about incidents: list them, and mute signals."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.text import Text

from perennial.alerting import incidents, mutes
from perennial.cli import terminal
from perennial.core.errors import PerennialError
from perennial.lifecycle import ledger_anchors
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec

__all__ = ["mute", "resolve", "show", "unmute"]

#: Fewest characters of a reason.
MIN_REASON_LENGTH = 3


def show(model: str | None, *, closed: bool, as_json: bool) -> None:
    """Print incidents, mutes and undelivered notices.

    Args:
        model: name of the model; None for all models.
        closed: also the last closed incident of each signal.
        as_json: print JSON instead of a table.
    """
    specs = {model: catalog.load_model_by_name(model)} if model else catalog.load_models()[0]
    logs = {name: incidents.read_log(name) for name in specs}
    if as_json:
        print(json.dumps({name: asdict(log) for name, log in logs.items()}, default=str))  # noqa: T201
        return
    console = terminal.console()
    rows = [row for name, log in logs.items() for row in _rows(specs[name], log, closed)]
    if rows:
        table = terminal.table(
            "model", "signal", "#", "state", "since", "last seen", "times", "reason", right=("#", "times")
        )
        for row in rows:
            table.add_row(*(Text(str(value)) for value in row))
        console.print(table)
    else:
        console.print("There are no open incidents.")
    for name, log in logs.items():
        for item in log.mutes:
            console.print(
                Text(f"{name}: {', '.join(item['signals'])} muted until {item['until']}: {item['reason']}")
            )
    if waiting := sum(len(log.undelivered) for log in logs.values()):
        console.print(
            f"{waiting} message{'s' * (waiting > 1)} could not be delivered yet; the next task tries again."
        )


def _rows(spec: ModelSpec, log: incidents.IncidentLog, closed: bool) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for item in [*log.open, *(i for i in log.incidents.values() if i.closed and closed)]:
        muted = ", muted" if log.muted(spec, item.signal, item.last) else ""
        state = f"closed at {item.closed}" if item.closed else f"{item.severity}{muted}"
        rows.append(
            (spec.name, item.signal, item.number, state, item.first, item.last, item.count, item.explanation)
        )
    return rows


def resolve(model: str, signal: str, reason: str) -> None:
    """Close an open incident by hand.

    Raises:
        PerennialError: the signal has no open incident, or the reason is too short.
    """
    spec = catalog.load_model_by_name(model)
    if len(reason.strip()) < MIN_REASON_LENGTH:
        raise PerennialError(
            f"reason is {reason!r}, too short",
            f"perennial resolve {model} {signal} --reason 'why it is over'",
            model=model,
        )
    with ledger_anchors.anchored(spec.name):
        incident = incidents.resolve_incident(spec, signal, reason.strip(), terminal.user())
    terminal.console().print(f"{model}: incident {incident.number} of {signal} is resolved.")


def mute(model: str, signal: str, until: str, reason: str) -> None:
    """Mute a signal, or a pattern of signals, of a model.

    Raises:
        PerennialError: as `mutes.check_mute`.
    """
    spec = catalog.load_model_by_name(model)
    with ledger_anchors.anchored(spec.name):
        muted = mutes.mute_by_hand(spec, signal, until, reason, terminal.user())
    terminal.console().print(f"{model}: {signal} is muted until {muted.until}.")


def unmute(model: str, signal: str) -> None:
    """End a mute of the command line.

    Raises:
        PerennialError: it is not muted from the command line.
    """
    name = catalog.load_model_by_name(model).name
    with ledger_anchors.anchored(name):
        incidents.unmute_signals(name, signal, terminal.user())
    terminal.console().print(f"{model}: {signal} is no longer muted.")
