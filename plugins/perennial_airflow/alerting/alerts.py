"""Callbacks of tasks: turn failures, successes and verdicts into incidents, and deliver notices and announcements.

Nothing of that is done while a person tries a task (``airflow tasks test``, ``airflow dags test``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import structlog
from airflow.sdk.exceptions import AirflowException

from perennial.alerting import decisions, incidents
from perennial.alerting.incidents import SignalObservation
from perennial.core.errors import PerennialError
from perennial.core.partitions import cadence_of
from perennial.lifecycle import retraining
from perennial.spec.sections import Step
from perennial.storage import manifests
from perennial_airflow import run_request
from perennial_airflow.alerting import metrics, notifiers
from perennial_airflow.web import links

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.alerting.incidents import Announcement, Notice
    from perennial.spec.alerts import Channel
    from perennial.spec.model_spec import ModelSpec

log = structlog.get_logger("perennial.alerts")
#: Tasks after which the ledger may have a decision that channels are told of.
_DECIDING_TASKS = (
    "approve_promotion",
    "approve_retraining",
    "conclude_trial",
    "notify",
    "promote",
    "promote_after_trial",
    "request_retraining",
    "rollback",
    "train",
)


def on_failure(spec: ModelSpec) -> Callable[[Context], None]:
    """The failure callback of the tasks of one model. It never raises: an alert must not add a failure."""

    def record_failure(context: Context) -> None:
        try:
            message = describe_failure(spec, context)
            log.error("task failed", **message)
            if run_request.is_test(context):
                return
            if message["stage"] == "train":
                _close_request(spec, context, message["cause"])
            details = {k: v for k, v in message.items() if k != "cause"}
            failure = SignalObservation("bad", message["cause"], _map_index(context), details)
            report_signals(spec, partition_date(context), {_failure_signal(context): failure})
        except Exception as error:
            log.warning("the alert could not be made", error=type(error).__name__)

    return record_failure


def _close_request(spec: ModelSpec, context: Context, cause: str) -> None:
    """Record the failure of a requested training that could not record it itself, such as a killed one."""
    try:
        retraining.close_request(spec, as_of=partition_date(context), reason=cause)
    except PerennialError as error:  # the request then counts as abandoned after retraining.abandoned_after
        log.warning("the failure of the training could not be recorded", cause=error.cause)


def on_success(spec: ModelSpec) -> Callable[[Context], None]:
    """The success callback of the tasks of one model: closes what an earlier failure opened. It never raises."""

    def record_success(context: Context) -> None:
        if run_request.is_test(context):
            return
        try:
            instance = context["task_instance"]
            success = SignalObservation("ok", part=_map_index(context))
            signals = {_failure_signal(context): success}
            if _is_of_table(instance):
                signals[f"deadline:{instance.dag_id}"] = success
            elif instance.task_id == _stage(instance):
                signals[f"deadline:{instance.task_id}"] = success
            day = partition_date(context)
            # Most successes close no incident. Only one that does delivers the outbox: a channel may be unreachable.
            if any(n.signal in signals for n in incidents.record_signals(spec, day, signals)):
                deliver_outbox(spec)
                metrics.record_open_incidents(spec)
            if instance.task_id in get_args(Step) and _is_current_partition(context):
                metrics.record_step(spec, instance.task_id, day)
            _announce_decisions(spec, instance.task_id)
        except Exception as error:
            log.warning("the incidents could not be updated", error=type(error).__name__)

    return record_success


def on_skipped(spec: ModelSpec) -> Callable[[Context], None]:
    """The callback of skipped tasks, such as the conclusion of a trial that failed: announces decisions."""

    def announce(context: Context) -> None:
        try:
            if not run_request.is_test(context):
                _announce_decisions(spec, context["task_instance"].task_id)
        except Exception as error:
            log.warning("decisions could not be announced", error=type(error).__name__)

    return announce


def _announce_decisions(spec: ModelSpec, task: str) -> None:
    if task in _DECIDING_TASKS and decisions.announce_new(spec):
        deliver_outbox(spec)


def notify(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Record the signals of the verdict on the run's partition, and deliver the resulting notices.

    Returns:
        open: signals with an open incident. undelivered: number of notices that remain in the outbox.
    """
    as_of = run_request.as_of(context).start
    manifest = manifests.read(spec.name, "monitor", as_of)
    undelivered = 0
    if not run_request.is_test(context):
        signals = incidents.observations_from_verdict(manifest.result if manifest else {})
        incidents.record_signals(spec, as_of, signals)
        undelivered = deliver_outbox(spec)
        metrics.record_open_incidents(spec)
    still_open = [i.signal for i in incidents.read_log(spec.name).open]
    log.info(f"Open incidents of {spec.name}: {', '.join(still_open) or 'none'}.")
    if undelivered:
        log.warning(f"Notices that could not be delivered and are tried again: {undelivered}.")
    return {"open": still_open, "undelivered": undelivered}


def report_signals(spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]) -> None:
    """Record signals and deliver their notices; the notices are sent even if the lake cannot record them."""
    if run_request.is_test():
        return
    try:
        incidents.record_signals(spec, as_of, signals)
    except PerennialError as error:
        log.warning("an incident could not be recorded", cause=error.cause)
        channels = {c.name: c for c in spec.alerts.all_channels()}
        for notice in incidents.notices_without_history(spec, as_of, signals):
            deliver_notice(channels[notice.channel], notice)
    else:
        deliver_outbox(spec)
        metrics.record_open_incidents(spec)


def deliver_outbox(spec: ModelSpec) -> int:
    """Deliver the model's outbox; returns the number of notices that remain in it."""
    try:
        return incidents.deliver_notices(spec, deliver_notice)
    except PerennialError as error:  # the lake cannot be reached, or another task is delivering
        log.warning("notices could not be delivered", cause=error.cause)
        return len(incidents.read_log(spec.name).undelivered)


def deliver_notice(channel: Channel, notice: Notice | Announcement) -> bool:
    """Deliver one notice or announcement, with where to look; returns whether the channel accepted it."""
    facts = {k: v for k, v in asdict(notice).items() if k not in ("details", "channel", "title", "text")}
    facts = {k: v for k, v in notice.details.items() if k != "report"} | facts
    pages = links.addresses(str(facts["model"]), str(notice.details.get("report") or ""))
    text = "\n".join([notice.text, *(f"{name}: {address}" for name, address in pages.items())])
    facts |= {name.replace(" ", "_"): address for name, address in pages.items()}
    return notifiers.deliver(channel, notifiers.Message(notice.title, text, facts))


def describe_failure(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Facts about a task's failure.

    The text of an unexpected error may hold values of the data: only its type is given.
    """
    instance, error = context["task_instance"], context.get("exception")
    is_our_text = isinstance(error, AirflowException | str)
    return {
        "model": spec.name,
        "stage": _stage(instance),
        "task": instance.task_id,
        "run_id": instance.run_id,
        "partition": _partition(context),
        "try_number": instance.try_number,
        "owner": spec.owner,
        "cause": str(error)[:2000] if is_our_text else f"{type(error).__name__}: see the task's log",
        "log": getattr(instance, "log_url", None),
        "report": links.absolute(getattr(context.get("task"), "report_address", "")),
    }


def partition_date(context: Context) -> str:
    """The run's partition date, the last one of a range; empty where it has none."""
    return last_partition_date(_partition(context))


def last_partition_date(partition: str | None) -> str:
    """The key of a partition, the last one of a range ``start..end``; empty where there is none."""
    key = (partition or "").rpartition("..")[2]
    return key if cadence_of(key).is_key(key) else ""


def partition_of(key: str | None, params: Mapping[str, Any]) -> str | None:
    """A run's partition: its key, or the dates of its trigger form as ``start..end``; None where it has neither."""
    dates = [str(params[name]) for name in ("start", "end", "as_of") if params.get(name)]
    return key or "..".join(dates) or None


def _is_current_partition(context: Context) -> bool:
    """Whether the run is for one partition and no backfill: metrics are about the latest partition alone."""
    run = context.get("dag_run")
    return bool(getattr(run, "partition_key", None)) and not run_request.is_backfill(context)


def _stage(instance: Any) -> str:
    return str(instance.dag_id.rpartition(".")[2])


def _is_of_table(instance: Any) -> bool:
    """Whether a task is that of a feature table; no model is called features."""
    return str(instance.dag_id).startswith("features.")


def _failure_signal(context: Context) -> str:
    """The signal of a task's failure: each feature table has its own, although tables may share their first source."""
    instance = context["task_instance"]
    return f"failure:{instance.dag_id if _is_of_table(instance) else instance.task_id}"


def _map_index(context: Context) -> int:
    return int(getattr(context["task_instance"], "map_index", -1))


def _partition(context: Context) -> str | None:
    """As `partition_of`. Airflow may call the callbacks with a part of the context only."""
    key: str | None = getattr(context.get("dag_run"), "partition_key", None)
    return partition_of(key, context.get("params") or {})
