"""The forms a person fills in to trigger a DAG by hand."""

from __future__ import annotations

from airflow.sdk import Param

_BY_KEY = "Leave it empty when the run has a partition key."


def _day(title: str, text: str) -> Param:
    return Param(None, type=["null", "string"], format="date", title=title, description_md=text)


def partitions() -> dict[str, Param]:
    """Form of `data` and `score`: one partition or a range."""
    return {
        "start": _day("First partition", f"Date of the first partition, `YYYY-MM-DD`. {_BY_KEY}"),
        "end": _day(
            "Last partition",
            "Date of the last partition, itself included. Empty: only the first. A range runs as **one task**, with "
            "the same content as day by day, and starts no other DAG; to have one run a day, use a backfill.",
        ),
        "force": _force("Partitions that are done are done again. A repeat gives the same content."),
    }


def fan_out() -> dict[str, Param]:
    """A part of the form of `score`, where it runs in pods."""
    return {
        "tasks": Param(
            1,
            type="integer",
            minimum=1,
            maximum=500,
            title="Tasks",
            description_md="Into how many tasks, each with a pod of its own, a range is split.",
        )
    }


def looking_back() -> dict[str, Param]:
    """Form of `monitor`."""
    return {
        "as_of": _day("As of", f"Date of the latest partition to look at, `YYYY-MM-DD`. {_BY_KEY}"),
        "force": _force("The verdict is computed again even if it exists."),
    }


def training() -> dict[str, Param]:
    """Form of `train`."""
    return {
        "as_of": _day("As of", f"Train on data up to and with this partition date, `YYYY-MM-DD`. {_BY_KEY}"),
        "reason": _reason("Why a new model is wanted. It is kept in the ledger.", ""),
        "force": _force("A model is trained again even if one exists for the same data and the same spec."),
    }


def rollback() -> dict[str, Param]:
    """Form of `rollback`."""
    return {
        "to_version": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="To version",
            description_md="Version in the model registry that becomes champion. Empty: the champion before this one.",
        ),
        "reason": _reason("Why the champion is replaced. It is kept in the ledger.", None),
    }


def _force(text: str) -> Param:
    return Param(False, type="boolean", title="Force", description_md=text)


def _reason(text: str, default: str | None) -> Param:
    """Required, and not empty, where there is no default."""
    if default is None:
        return Param(type="string", minLength=3, maxLength=500, title="Reason", description_md=text)
    return Param(default, type=["null", "string"], maxLength=500, title="Reason", description_md=text)
