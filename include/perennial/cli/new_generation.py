"""The command that begins a new generation of a model's tables."""

from __future__ import annotations

from rich.text import Text

from perennial.cli import terminal
from perennial.core.errors import SpecError
from perennial.ingestion import model_tables
from perennial.lifecycle import ledger_anchors
from perennial.spec import catalog

__all__ = ["run"]


def run(model: str, *, reason: str, confirmed: bool, force: bool) -> None:
    """Say what beginning a new generation does, and do it.

    Args:
        model: name of the model.
        reason: why, for the ledger.
        confirmed: do it; without, nothing is changed.
        force: also if the spec fits the tables.

    Raises:
        SpecError: there is nothing to change, or no reason is given.
    """
    spec = catalog.load_model_by_name(model)
    plan = model_tables.plan_generation(spec, force=force)
    console = terminal.console()
    for text in plan.reasons or ["The spec fits the tables; all of them begin a new generation."]:
        console.print(Text(text))
    table = terminal.table(
        "table", "generation", "partitions", "rows", right=("generation", "partitions", "rows")
    )
    for state in plan.tables:
        rows = state.rows_by_partition()
        table.add_row(state.kind, str(state.number + 1), f"{len(rows):,}", f"{sum(rows.values()):,}")
    console.print(table)
    if confirmed and not reason.strip():
        raise SpecError(
            "no reason is given", "give one with --reason; it is recorded in the ledger", model=model
        )
    if confirmed:
        with ledger_anchors.anchored(spec.name):
            model_tables.begin_generation(spec, plan, reason=reason, actor=terminal.user())
        console.print(
            "These tables are empty now. Trainings that pinned an earlier version can still read it."
        )
    else:
        console.print(
            "These tables would be emptied; earlier versions stay readable. Nothing was changed: repeat the command "
            "with --reason and --yes to do it."
        )
    _print_next_steps(plan, model)


def _print_next_steps(plan: model_tables.GenerationPlan, model: str) -> None:
    """Print the commands that fill the tables again."""
    console = terminal.console()
    if not plan.published:
        return
    console.print(
        "Next, publish the partitions again (all of them, or the latest that a training needs), and train:"
    )
    for command in plan.commands(model, "data"):
        console.print(Text(f"  {command}"))
    console.print(Text(f"  perennial run train --model {model} --as-of {plan.published[-1]}"))
    console.print(Text(f"  perennial run promote --model {model} --as-of {plan.published[-1]}"))
    if plan.scored:
        console.print("Then score them again:")
    for command in plan.commands(model, "score"):
        console.print(Text(f"  {command}"))
