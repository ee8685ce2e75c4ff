"""The command ``perennial explain``: why a row got its prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from perennial.cli import terminal
from perennial.governance import prediction_explanation
from perennial.governance.prediction_explanation import PredictionExplanation
from perennial.spec import catalog

__all__ = ["show"]


def show(
    model: str, partition: str, key: Sequence[str], *, threshold: float, top: int, as_json: bool
) -> None:
    """Print the explanation of one prediction.

    Args:
        model: name of the model.
        partition: partition of the row.
        key: key of the row, as `prediction_explanation.parse_key` reads it.
        threshold: binary models: probability from which the decision is positive.
        top: most features that are printed.
        as_json: print JSON, with all features.

    Raises:
        PerennialError: there is no such model, partition, key or prediction.
    """
    spec = catalog.load_model_by_name(model)
    parsed = prediction_explanation.parse_key(spec, key)
    explanation = prediction_explanation.explain_prediction(spec, partition, parsed, threshold)
    if as_json:
        print(json.dumps(asdict(explanation)))  # noqa: T201
        return
    _print(explanation, top)


def _print(explanation: PredictionExplanation, top: int) -> None:
    console = terminal.console()
    facts = {
        "row": ", ".join(f"{column} {value}" for column, value in explanation.key.items()),
        "prediction": f"{explanation.prediction:.6g}" if isinstance(explanation.prediction, float) else
        str(explanation.prediction),
        "version": f"{explanation.version}, fitted on {explanation.trained_on}",
        "scored": f"{explanation.scored_at}{explanation.run_id and f' by {explanation.run_id}'}",
        "decision": explanation.decision,
        "check": "the version predicts the same now"
        if explanation.reproduced
        else "the version predicts another value now: run `perennial run monitor`, whose signal skew says more",
    }  # fmt: skip
    for name, value in facts.items():
        if value:
            console.print(Text.assemble((f"{name:<12}", "bold"), value))
    of_class = f" of {explanation.predicted_class}" if explanation.predicted_class else ""
    table = terminal.table("feature", "value", f"adds to the {explanation.scale}{of_class}", right=("value",))
    shown, others = explanation.contributions[:top], explanation.contributions[top:]
    table.add_row(Text("(every row)"), "", f"{explanation.base:+.4f}")
    for part in shown:
        table.add_row(Text(part.feature), Text(part.value), f"{part.contribution:+.4f}")
    if others:
        rest = sum(part.contribution for part in others)
        table.add_row(Text(f"({len(others)} other features)"), "", f"{rest:+.4f}")
    table.add_row(Text("(sum)"), "", f"{explanation.score:+.4f}")
    console.print(table)
    if explanation.change:
        changes = " and ".join(f"{change.feature} were {change.value}" for change in explanation.change)
        console.print(Text(f"The decision would be another one if {changes}."))
    elif explanation.decision:
        console.print("No change of up to three features was found that would change the decision.")
