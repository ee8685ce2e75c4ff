"""Tells people: what tasks and verdicts say becomes incidents, and their notices go to the model's channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import structlog
from airflow.sdk.exceptions import AirflowException

from perennial.alerting import incidents
from perennial.alerting.incidents import SignalObservation
from perennial.core.dates import parse_date
from perennial.core.errors import PerennialError
from perennial.spec.sections import Step
from perennial.storage import manifests
from perennial_airflow import asked, metrics, notifiers

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.alerting.incidents import Notice
    from perennial.spec.alerts import Channel
    from perennial.spec.model_spec import ModelSpec

log = structlog.get_logger("perennial.alerts")


def on_failure(spec: ModelSpec) -> Callable[[Context], None]:
    """The failure hook of the tasks of one model. It never raises: what cannot be told must not add a failure."""

    def tell(context: Context) -> None:
        try:
            message = describe(spec, context)
            log.error("task failed", **message)
            bad = SignalObservation(
                "bad", message["cause"], _part(context), {k: v for k, v in message.items() if k != "cause"}
            )
            raise_signals(spec, day_of(context), {f"failure:{message['task']}": bad})
        except Exception as error:
            log.warning("the alert could not be made", error=type(error).__name__)

    return tell


def on_success(spec: ModelSpec) -> Callable[[Context], None]:
    """The success hook of the tasks of one model: ends the incident that an earlier failure opened. Never raises."""

    def tell(context: Context) -> None:
        try:
            instance = context["task_instance"]
            well = SignalObservation("ok", part=_part(context))
            signals = {f"failure:{instance.task_id}": well}
            if instance.task_id == _stage(instance):
                signals[f"deadline:{instance.task_id}"] = well
            day = day_of(context)
            # Most successes end nothing: a channel that is away is then not tried again by each of them.
            if any(n.signal in signals for n in incidents.record_signals(spec, day, signals)):
                send(spec)
                metrics.incidents_open(spec)
            if instance.task_id in get_args(Step) and _of_today(context):
                metrics.step_done(spec, instance.task_id, day)
        except Exception as error:
            log.warning("an incident could not be looked at", error=type(error).__name__)

    return tell


def notify(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Task: take in what the monitor step of the run's date found, and tell.

    Returns:
        open (signals with an open incident), undelivered (how many notices are left for another time).
    """
    as_of = asked.as_of(context).start
    found = manifests.read(spec.name, "monitor", as_of)
    incidents.record_signals(spec, as_of, incidents.verdicts(found.result if found else {}))
    left = send(spec)
    metrics.incidents_open(spec)
    return {"open": [i.signal for i in incidents.read(spec.name).open], "undelivered": left}


def raise_signals(spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]) -> None:
    """Take in signals and tell of them; told all the same where the lake, which remembers them, is away."""
    try:
        incidents.record_signals(spec, as_of, signals)
    except PerennialError as error:
        log.warning("an incident could not be recorded", cause=error.cause)
        channels = {c.name: c for c in spec.alerts.all()}
        for notice in incidents.unrecorded(spec, as_of, signals):
            tell_channel(channels[notice.channel], notice)
    else:
        send(spec)
        metrics.incidents_open(spec)


def send(spec: ModelSpec) -> int:
    """Deliver the model's outbox; returns how many notices are left there for another time."""
    try:
        return incidents.send(spec, tell_channel)
    except PerennialError as error:  # the lake went away, or another task delivers and takes long
        log.warning("notices could not be delivered", cause=error.cause)
        return len(incidents.read(spec.name).outbox)


def tell_channel(channel: Channel, notice: Notice) -> bool:
    """Deliver one notice."""
    facts = {k: v for k, v in asdict(notice).items() if k not in ("details", "channel")}
    return notifiers.deliver(
        channel, notifiers.Message(notice.title, notice.text, dict(notice.details) | facts)
    )


def describe(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """What is told. The text of an unexpected error may hold values of the data, so only its kind is told."""
    instance, error = context["task_instance"], context.get("exception")
    told = isinstance(error, AirflowException | str)
    return {
        "model": spec.name,
        "stage": _stage(instance),
        "task": instance.task_id,
        "run_id": instance.run_id,
        "partition": _partition(context),
        "try_number": instance.try_number,
        "owner": spec.owner,
        "cause": str(error)[:2000] if told else f"{type(error).__name__}: see the task's log",
        "log": getattr(instance, "log_url", None),
    }


def day_of(context: Context) -> str:
    """The run's partition date, the last one of a range; empty where it has none."""
    return last_day(_partition(context))


def last_day(partition: str | None) -> str:
    """The date of a partition, the last one of a range; empty where there is none."""
    try:
        return parse_date((partition or "").rpartition("..")[2]).isoformat()
    except PerennialError:
        return ""


def partition_of(key: str | None, wishes: Mapping[str, Any]) -> str | None:
    """A run's partition, by its key; or the range it was asked for."""
    asked_for = [str(wishes[name]) for name in ("start", "end", "as_of") if wishes.get(name)]
    return key or "..".join(asked_for) or None


def _of_today(context: Context) -> bool:
    """Whether the run is for the partition that is due. A backfill, or a range asked for by hand, must not look so."""
    run = context.get("dag_run")
    return bool(getattr(run, "partition_key", None)) and not asked.is_backfill(context)


def _stage(instance: Any) -> str:
    return str(instance.dag_id.rpartition(".")[2])


def _part(context: Context) -> int:
    return int(getattr(context["task_instance"], "map_index", -1))


def _partition(context: Context) -> str | None:
    """As `partition_of`; Airflow may call the hooks with half a context."""
    key: str | None = getattr(context.get("dag_run"), "partition_key", None)
    return partition_of(key, context.get("params") or {})
