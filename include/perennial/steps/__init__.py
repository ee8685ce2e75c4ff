"""The steps: functions that DAGs, pods and the command line run by name.

Each step is a function in the module of the same name. It takes a `ModelSpec` and keyword arguments, and returns a
small JSON-serialisable mapping. `dispatch`, `result_file` and `summaries` import no heavy libraries, because every task
imports them.
"""

__all__ = [
    "conclude",
    "data",
    "decide",
    "dispatch",
    "erase",
    "monitor",
    "promote",
    "publish_predictions",
    "reproduce",
    "result_file",
    "rollback",
    "score",
    "summaries",
    "train",
]
