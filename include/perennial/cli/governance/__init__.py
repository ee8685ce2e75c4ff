"""Commands for those who answer for a model: `perennial explain`, `perennial ledger`, `perennial verify`."""

__all__ = ["explain", "ledger_commands", "verification"]
