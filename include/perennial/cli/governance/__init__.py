"""Commands for those who answer for a model: card, explain, ledger, rollback-drill, sign, verify."""

__all__ = ["card", "drills", "explain", "ledger_commands", "signing", "verification"]
