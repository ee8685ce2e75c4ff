"""The command ``perennial status``: how each model is."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.text import Text

from perennial.charts.markup import number
from perennial.cli import terminal
from perennial.console import overview
from perennial.console.overview import ModelOverview
from perennial.core.errors import PerennialError, StorageError
from perennial.spec import catalog
from perennial.status import refresh

__all__ = ["show"]

_COLOURS = {"bad": "red", "attention": "yellow", "ok": "green"}


def show(model: str | None, *, rebuild: bool, as_json: bool) -> bool:
    """Print the status of one model, or of all.

    Args:
        model: name of the model; all models when None.
        rebuild: write the records anew first.
        as_json: print JSON.

    Returns:
        Whether a model is unwell, or a record could not be written.

    Raises:
        SpecError: there is no such model.
        StorageError: the lake cannot be read.
    """
    failed = _rebuild(model) if rebuild else []
    everything = overview.of_all()
    if everything.problem:
        raise StorageError(everything.problem, everything.remedy)
    if model is not None and model not in everything.models:
        catalog.load_model_by_name(model)  # says what there is instead
    models = [m for m in overview.sorted_by(everything.models.values(), "") if model in (None, m.name)]
    if as_json:
        print(json.dumps([asdict(m) for m in models], default=str))  # noqa: T201
    elif model is None:
        _print_table(models)
    else:
        _print_one(models[0])
    for error in failed:
        terminal.console().print(Text(f"not written: {error}", "red"))
    return bool(failed) or any(m.state == "bad" for m in models)


def _rebuild(model: str | None) -> list[PerennialError]:
    """Write the records anew; returns the errors."""
    specs, broken = catalog.load_models() if model is None else ({}, [])
    errors: list[PerennialError] = list(broken)
    if model is not None:
        specs = {model: catalog.load_model_by_name(model)}
    for spec in specs.values():
        try:
            refresh.refresh(spec, rebuild=True)
        except PerennialError as error:
            errors.append(error)
    return errors


def _state(model: ModelOverview) -> Text:
    return Text(overview.STATES[model.state], _COLOURS.get(model.state, ""))


def _print_table(models: list[ModelOverview]) -> None:
    table = terminal.table(
        "model", "state", "why", "champion", "verdict", "scored", "due", "incidents", right=("incidents",)
    )
    for model in models:
        status = model.status
        champion = (
            f"{status.champion.version}, since {status.champion.since[:10]}"
            if status and status.champion
            else "–"
        )
        verdict = f"{status.verdict.verdict}, {status.verdict.as_of}" if status and status.verdict else "–"
        table.add_row(
            Text(model.name), _state(model), Text(model.findings[0][1] if model.findings else ""), champion, verdict,
            status.last.get("scored", "–") if status else "–", model.due or "–", str(len(model.open_incidents)),
        )  # fmt: skip
    if models:
        terminal.console().print(table)
    else:
        terminal.console().print("There are no models; create one with `perennial new`.")


def _print_one(model: ModelOverview) -> None:
    console, status = terminal.console(), model.status
    console.print(Text.assemble((model.name, "bold"), "  ", _state(model)))
    for state, text in model.findings:
        console.print(Text.assemble("  ", (text, _COLOURS.get(state, ""))))
    if model.problem:
        console.print(Text(model.problem))
    if status is None:
        return
    rows: list[tuple[str, str]] = [("owner", status.owner), ("task", status.task)]
    if champion := status.champion:
        rows.append(
            (
                "champion",
                f"version {champion.version}, {champion.change} {champion.since} by {champion.actor}",
            )
        )
    if verdict := status.verdict:
        rows.append(("verdict", f"{verdict.verdict} as of {verdict.as_of}: {verdict.reason}"))
        rows.append(("performance", f"{verdict.performance}: {verdict.performance_reason}"))
    if status.decision:
        rows.append(("retraining", f"{status.decision['decision']} as of {status.decision['partition']}"))
    rows += [(stage, f"up to {key}") for stage, key in status.last.items()]
    if status.quarantined:
        rows.append(
            ("quarantine", ", ".join(f"{key}: {n:,}" for key, n in list(status.quarantined.items())[-5:]))
        )
    for month, cost in list(status.cost.items())[-2:]:
        rows.append((f"cost {month}", f"{number(cost['seconds'])} s, {number(cost['gpu_seconds'])} GPU s"))
    for incident in model.open_incidents:
        rows.append(
            (
                "incident",
                f"{incident.signal} {incident.severity} since {incident.first}: {incident.explanation}",
            )
        )
    for title, text in rows:
        console.print(Text.assemble("  ", (f"{title:<14}", "dim"), text))
