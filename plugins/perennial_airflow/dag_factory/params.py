"""The trigger forms: the fields that a person fills in to start a DAG by hand."""

from __future__ import annotations

from airflow.sdk import Param

_OR_KEY = "Leave it empty if the run has a partition key."


def partitions() -> dict[str, Param]:
    """Form of `data` and `score`: one partition or a range."""
    return {
        "start": _date("First partition", f"Date of the first partition, `YYYY-MM-DD`. {_OR_KEY}"),
        "end": _date(
            "Last partition",
            "Date of the last partition, which is included. Empty: only the first one. A range runs as **one task**, "
            "with the same content as day by day, and starts no other DAG; for one run per day, use a backfill.",
        ),
        "force": _force("Process finished partitions again. The content will be the same."),
    }


def parallel_tasks() -> dict[str, Param]:
    """A further field of `score`, where it runs in pods."""
    return {
        "tasks": Param(
            1,
            type="integer",
            minimum=1,
            maximum=500,
            title="Tasks",
            description_md="Number of tasks that share a range. Each runs in its own pod.",
        )
    }


def monitoring() -> dict[str, Param]:
    """Form of `monitor`."""
    return {
        "as_of": _date("As of", f"Date of the latest partition to monitor, `YYYY-MM-DD`. {_OR_KEY}"),
        "force": _force("Compute the verdict again even if there is one."),
    }


def training() -> dict[str, Param]:
    """Form of `train`."""
    return {
        "as_of": _date("As of", f"Date of the latest partition to train on, `YYYY-MM-DD`. {_OR_KEY}"),
        "reason": _reason("Why a new model is needed. The ledger records it.", ""),
        "force": _force("Train again even if a model was trained on the same data with the same spec."),
    }


def rollback() -> dict[str, Param]:
    """Form of `rollback`."""
    return {
        "to_version": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="To version",
            description_md="Version in the model registry that becomes champion. Empty: the previous champion.",
        ),
        "reason": _reason("Why the champion is replaced. The ledger records it.", None),
    }


def _date(title: str, description: str) -> Param:
    return Param(None, type=["null", "string"], format="date", title=title, description_md=description)


def _force(description: str) -> Param:
    return Param(False, type="boolean", title="Force", description_md=description)


def _reason(description: str, default: str | None) -> Param:
    """A reason; required, and not empty, if it has no default."""
    if default is None:
        return Param(type="string", minLength=3, maxLength=500, title="Reason", description_md=description)
    return Param(default, type=["null", "string"], maxLength=500, title="Reason", description_md=description)
