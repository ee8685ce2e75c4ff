"""The trigger forms: the fields that a person fills in to start a DAG by hand.

What most runs need stands first; the rest is in a section that the form opens at a click. Airflow checks each field by
itself when the form is sent, `run_request.conf_problem` how they fit together and the partition key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Param

from perennial.core.partitions import FORMS, SHAPES, Cadence

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

_OR_KEY = "Leave it empty if you give a partition key: a run that has both is refused."
#: The section of the fields that few runs need.
_OPTIONS = "Options"


def partitions(spec: ModelSpec) -> dict[str, Param]:
    """Form of `data` and `score`: one partition or a range."""
    cadence, unit = spec.cadence, spec.cadence.unit
    return {
        "start": _key("First partition", f"{_what(cadence)} of the first partition. {_OR_KEY}", spec),
        "end": _key(
            "Last partition",
            f"{_what(cadence)} of the last partition, which is included. Empty: only the first one. A range runs "
            f"as **one task**, with the same content as {unit} by {unit}, and starts no other DAG; for one run per "
            f"{unit}, use a backfill.",
            spec,
        ),
        "force": _force("Process finished partitions again. The content will be the same."),
        "reason": _reason("Why it is done by hand. The run keeps it.", "", "the feed was corrected"),
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
            section=_OPTIONS,
            description_md="Number of tasks that share a range. Each runs in its own pod.",
        )
    }


def monitoring(spec: ModelSpec) -> dict[str, Param]:
    """Form of `monitor`."""
    what = _what(spec.cadence)
    return {
        "as_of": _key("As of", f"{what} of the latest partition to monitor. {_OR_KEY}", spec),
        "force": _force("Compute the verdict again even if there is one."),
        "reason": _reason("Why it is done by hand. The run keeps it.", "", "labels were corrected"),
    }


def training(spec: ModelSpec) -> dict[str, Param]:
    """Form of `train`."""
    what = _what(spec.cadence)
    return {
        "as_of": _key("As of", f"{what} of the latest partition to train on. {_OR_KEY}", spec),
        "reason": _reason("Why a new model is needed. The ledger records it.", "", "a new feature"),
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
        "reason": _reason(
            "Why the champion is replaced. The ledger records it.",
            None,
            "worse for short flights since Monday",
        ),
        "rescore": Param(
            False,
            type="boolean",
            title="Rescore",
            description_md="Start runs of `score` for the partitions that the replaced version scored. The button "
            "*Roll back* of the console lists them before, the log of the task `rollback` afterwards.",
        ),
    }


def _what(cadence: Cadence) -> str:
    """What a partition's key is, and how it is written."""
    noun = {"hour": "Hour", "day": "Date", "week": f"First day, a {cadence.week_starts.capitalize()},",
            "month": "Month"}  # fmt: skip
    zone = f" ({cadence.zone})" if cadence.unit == "hour" or cadence.zone != "UTC" else ""
    return f"{noun[cadence.unit]}{zone}, `{FORMS[cadence.unit]}`,".replace(",,", ",")


def _key(title: str, description: str, spec: ModelSpec) -> Param:
    """A partition's key: a calendar where it is a date, otherwise text."""
    unit, first = spec.cadence.unit, spec.first_partition
    date = unit in ("day", "week")
    form: dict[str, Any] = {"format": "date"} if date else {"pattern": f"^({SHAPES[unit].pattern})?$"}
    return Param(
        None,
        type=["null", "string"],
        title=title,
        description_md=f"{description} The feed begins with `{first}`.",
        examples=[first],
        **form,
    )


def _force(description: str) -> Param:
    return Param(False, type="boolean", title="Force", section=_OPTIONS, description_md=description)


def _reason(description: str, default: str | None, example: str) -> Param:
    """A reason; required, and more than spaces, if it has no default."""
    form: dict[str, Any] = {"maxLength": 500, "title": "Reason"}
    if default is None:
        form |= {"type": "string", "minLength": 3, "pattern": r"\S"}
        description += " At least three characters, not only spaces."
        return Param(description_md=f"{description} For example: {example}.", **form)
    return Param(
        default, type=["null", "string"], description_md=f"{description} For example: {example}.", **form
    )
