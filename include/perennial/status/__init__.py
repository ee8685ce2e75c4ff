"""The status of each model: one small record in the lake, which each step writes when it ends.

Everything in it is read from manifests, ledger and spec, so that it can be written anew at any time: `refresh.refresh`,
and ``perennial status --rebuild``. Commands and console read it; no step does.
"""

__all__ = [
    "cost",
    "history",
    "overdue",
    "partition_states",
    "quarantine_rows",
    "record",
    "refresh",
    "rescoring",
]
