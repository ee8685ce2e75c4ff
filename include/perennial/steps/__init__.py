"""The steps: functions that DAGs, pods and the command line run by name, each in the module of its name.

A step takes a `ModelSpec` and keyword arguments, and returns a small JSON-able mapping. `dispatch` and `result_file`
import nothing heavy: they run in every task, before it is known which step is needed.
"""

__all__ = [
    "conclude",
    "data",
    "decide",
    "dispatch",
    "monitor",
    "promote",
    "result_file",
    "rollback",
    "score",
    "train",
]
