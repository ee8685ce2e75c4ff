"""Commands for those who answer for a model: `perennial card`, `explain`, `ledger`, `verify`."""

__all__ = ["card", "explain", "ledger_commands", "verification"]
