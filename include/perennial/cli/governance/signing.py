"""The command ``perennial sign``: sign a version that was registered without a key."""

from __future__ import annotations

from rich.text import Text

from perennial.cli import terminal
from perennial.cli.governance import ledger_commands
from perennial.core.errors import LedgerError
from perennial.lifecycle import ledger_anchors
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from perennial.training.runs import signature


def sign(model: str, number: str) -> None:
    """Sign a version as the ledger recorded it, once the ledger is known to be what was written.

    Args:
        model: name of the model.
        number: number of the version.

    Raises:
        LedgerError: the ledger was changed, or contradicts an anchor: nothing is signed.
        PerennialError: as `signature.sign_version`.
    """
    if findings := ledger_commands.verify_ledger(model)["findings"]:
        raise LedgerError(
            f"version {number} was not signed, because its ledger cannot be believed: {findings[0]}",
            f"perennial ledger verify {model} lists what is wrong; restore the lake from a backup",
            model=model,
        )
    actor = terminal.user()
    with ledger_anchors.anchored(model):
        version = signature.sign_version(model, number)
        ledger.append(
            model,
            kind=LedgerKind.SIGNATURE,
            decision=Decision.SIGNED,
            reason=f"version {number} was registered without a signature",
            actor=actor,
            model_version=number,
            evidence={"run_id": version.run_id},
        )
    terminal.console().print(Text(f"version {number} of {model} is signed"))
