"""Tells in plain words why a model was retrained as of a date, or was not: the ledger's records, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perennial.core.dates import parse_date
from perennial.core.errors import DataError
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger

_Record = dict[str, Any]
#: In this order signals are told; those that are well are counted only.
_WORST = ("bad", "suspected", "undetermined")
_SAID = {"bad": "BAD", "suspected": "suspected", "undetermined": "cannot be told"}


def explain_decision(spec: ModelSpec, day: str) -> list[str]:
    """What was decided about a model's retraining as of a date, on what evidence, and what came of it.

    A date without a decision of its own is answered by the latest one before it.

    Returns:
        Sentences, each a line.

    Raises:
        DataError: nothing was decided by then.
    """
    parse_date(day, "the date")
    records = ledger.records(spec.name)
    decisions = [r for r in records if r["kind"] == "retraining" and r["partition"] <= day]
    if not decisions:
        raise DataError(
            "nothing was decided about a retraining by then",
            f"run the DAG {spec.name}.monitor for that date first",
            model=spec.name,
            partition=day,
        )
    latest = max(r["partition"] for r in decisions)
    lines = [] if latest == day else [f"Nothing was decided for {day} itself; the latest decision before it:"]
    proposed = False
    for decision in (r for r in decisions if r["partition"] == latest):
        if proposed:  # an answer rests on the evidence that was told with the question
            lines.append(f"{latest}: {decision['reason'].split(' (')[0]}.")
        else:
            lines += _decision(decision)
        proposed = decision["decision"] == "proposed"
    lines += _after(records, latest)
    return lines


def _decision(record: _Record) -> Iterator[str]:
    evidence = record["evidence"]
    version = f"version {record['model_version']}" if record["model_version"] else "no champion"
    how = {"requested": "asked for", "proposed": "proposed"}.get(record["decision"])
    what = f"a retraining was {how} by {record['actor']}" if how else "no retraining was asked for"
    yield f"{record['partition']}: {what} ({version})."
    yield f"  Because: {record['reason']}"
    if evidence.get("since"):
        yield f"  It began on {evidence['since']}."
    yield from _signals(evidence.get("signals") or {})
    if evidence.get("report"):
        yield f"  Report: {evidence['report']}"


def _signals(signals: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for state in _WORST:
        for name, signal in signals.items():
            if signal["state"] == state:
                yield f"  {name}: {_SAID[state]}: {signal['reason']}"
    well = [name for name, signal in signals.items() if signal["state"] == "ok"]
    if well:
        yield f"  Well: {', '.join(well)}."


def _after(records: list[_Record], day: str) -> Iterator[str]:
    """What the training of that date, the trial of its model, and the promotion came to; reasons are told once."""
    told = {r["reason"] for r in records if r["partition"] == day and r["kind"] == "retraining"}
    for record in records:
        if record["partition"] != day or record["kind"] not in ("training", "shadow", "promotion"):
            continue
        if record["kind"] == "training":
            said = {"trained": "passed the gate", "refused": "was refused by the gate", "failed": "failed"}
            version = f"Version {record['model_version']}" if record["model_version"] else "The training"
            window, asked = record["evidence"].get("window"), record["evidence"].get("asked") or {}
            learned = f", learned from the window {window}," if window else ""
            yield f"  {version}{learned} {said.get(record['decision'], record['decision'])}: {record['reason']}"
            # A run that a verdict asked for has the reason that was told above.
            if asked.get("because") and asked["because"] not in told:
                yield f"    It was asked for by {asked['by'] or 'nobody known'}: {asked['because']}"
        elif record["kind"] == "shadow":
            said = {
                "begun": "is on trial",
                "passed": "passed its trial",
                "failed": "was given up after its trial",
            }
            decision = said.get(record["decision"], "is no longer on trial")
            yield f"  Version {record['model_version']} {decision}: {record['reason']}"
        else:
            version = f"Version {record['model_version']}"
            why = "" if record["reason"] in told else f": {record['reason']}"
            yield f"  {version} was {record['decision']} by {record['actor']}{why}"
        told.add(record["reason"])
