"""What a run was triggered for: its partitions, the fields of its trigger form, and who or what started it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from perennial.core.errors import PerennialError
from perennial.core.partitions import Cadence, cadence_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec

#: The actor of runs that no person started.
SCHEDULER = "scheduler"
#: The requester of runs that somebody started with an asset event of Airflow's REST API, which does not say who did.
REST_API = "REST API"
#: The user whom Airflow names in the runs of ``airflow dags test``.
_TEST_USER = "dag_test"
#: Fields that say which partitions a run is for; the runs of a backfill have a partition key instead.
DATE_FIELDS = ("start", "end", "as_of")
#: Prefix of keys in a run's configuration that are Airflow's own.
_AIRFLOW_PREFIX = "airflow/"


@dataclass(frozen=True)
class PartitionRange:
    """The partitions of one run.

    Attributes:
        start: the first partition.
        end: the last partition, itself included; None for a single partition.
        scheduled: whether the partition is the run's own key, and not from the trigger form.
    """

    start: str
    end: str | None = None
    scheduled: bool = False

    @property
    def single(self) -> bool:
        """Whether it is one partition."""
        return self.end is None

    @property
    def last(self) -> str:
        """The last partition."""
        return self.end or self.start


def conf_problem(
    dag_id: str, conf: Mapping[str, Any], fields: Collection[str], *, backfill: bool, key: str | None = None
) -> PerennialError | None:
    """Why a run must not have a configuration; None if it may.

    Airflow accepts keys that the trigger form does not have, and ignores them.

    Args:
        dag_id: the DAG.
        conf: configuration of the run, or of every run of a backfill.
        fields: names of the form's fields.
        backfill: whether it is for a backfill, each of whose runs has a partition key.
        key: the run's partition key; None if it has none.
    """
    unknown = []
    for name in conf:
        if name not in fields and not name.startswith(_AIRFLOW_PREFIX):
            close = difflib.get_close_matches(name, fields, 1)
            unknown.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    if unknown:
        known = (
            f"the fields of its form: {', '.join(fields)}" if fields else "no configuration: it has no fields"
        )
        return PerennialError(f"{dag_id} has no field {', '.join(unknown)}", f"trigger it with {known}")
    dates = [f"{name} {conf[name]}" for name in DATE_FIELDS if conf.get(name)]
    if backfill and dates:
        return PerennialError(
            f"a backfill of {dag_id} has one run for each partition of its range, and also {' and '.join(dates)}",
            f"create it again, and leave {', '.join(n for n in DATE_FIELDS if n in fields)} empty",
        )
    if backfill or not any(name in fields for name in DATE_FIELDS):
        return None
    return _partition_problem(conf, "start" if "start" in fields else "as_of", key)


def _partition_problem(conf: Mapping[str, Any], field: str, key: str | None) -> PerennialError | None:
    """Why partition key and date fields of a run give no partition that can have data; None if they do.

    What depends on the model, such as how its partitions are written, its first task checks.

    Args:
        conf: configuration of the run.
        field: the form's field of the first, or only, partition.
        key: the run's partition key; None if it has none.
    """
    first, end = (str(conf.get(name) or "").strip() for name in (field, "end"))
    if key and (end or first not in ("", key) or (first and field == "start")):
        fields = " and ".join(f"{name} {value}" for name, value in ((field, first), ("end", end)) if value)
        return PerennialError(
            f"the run has partition key {key} and also {fields}",
            f"give one of them: a partition key, or {field}",
        )
    if not (partition := key or first):
        name = "a first partition" + f" (end: {end})" * bool(end) if field == "start" else field
        return PerennialError(
            f"the run has neither a partition key nor {name}",
            f"trigger with a partition key, or fill in {field}"
            + ", and end for a range" * (field == "start"),
        )
    cadence = cadence_of(partition)
    if not all(cadence.is_key(text) for text in (partition, end or partition)):
        return None  # only the model's cadence knows what it should be
    try:
        span = cadence.range(partition, end or None)
        cadence.refuse_future(
            span.end, "the partition key" if key else "the last partition" if end else field
        )
    except PerennialError as problem:
        return problem
    return None


def check_conf(context: Context) -> None:
    """Fail the task if its run has a configuration that it must not have; every task calls it before it begins.

    `web.run_checks` refuses most such runs before they exist. Those of the command line end here.

    Raises:
        AirflowFailException: with `conf_problem`'s text.
    """
    run, dag = context["dag_run"], context["task"].dag
    if dag is None:
        return
    problem = conf_problem(
        dag.dag_id,
        run.conf or {},
        list(dag.params),
        backfill=is_backfill(context),
        key=partition_key(context),
    )
    if problem:
        raise AirflowFailException(str(problem))


def partitions(context: Context) -> PartitionRange:
    """The partitions that a run of `data` or `score` is for.

    Raises:
        PerennialError: neither a partition key nor ``start`` is given, both are, or one cannot have data.
    """
    key, start, end = partition_key(context), param(context, "start"), param(context, "end")
    if problem := _partition_problem(context["params"], "start", key):
        raise problem
    if key:
        return PartitionRange(_possible_key(context, key, "the partition key"), scheduled=True)
    requested = PartitionRange(start, None if end in (None, start) else end)
    cadence = _cadence(context, start)
    cadence.keys(start, requested.last)  # refuses what is no key, a reversed range and one that is too long
    cadence.refuse_future(requested.last, "the last partition")
    return requested


def as_of(context: Context) -> PartitionRange:
    """The partition up to which a run of `train` or `monitor` reads.

    Raises:
        PerennialError: neither a partition key nor ``as_of`` is given, they differ, or it cannot have data.
    """
    key, day = partition_key(context), param(context, "as_of")
    if problem := _partition_problem(context["params"], "as_of", key):
        raise problem
    return PartitionRange(_possible_key(context, key or day, "as_of"), scheduled=key is not None)


def _possible_key(context: Context, text: str, name: str) -> str:
    """Read a key, and refuse one in the future before anything is started for it."""
    cadence = _cadence(context, text)
    key = cadence.parse(text, name)
    cadence.refuse_future(key, name)
    return key


def _cadence(context: Context, key: str) -> Cadence:
    """The cadence of the model that the task belongs to; by the form of a key for a task that names no model."""
    spec: ModelSpec | None = getattr(context.get("task"), "spec", None)
    return spec.cadence if spec else cadence_of(key)


def partition_key(context: Context) -> str | None:
    """The run's partition key; None where it has none."""
    return context["dag_run"].partition_key or None


def param(context: Context, name: str) -> Any:
    """A field of the trigger form, a text without spaces around it; None where it was left empty."""
    value = context["params"].get(name)
    if isinstance(value, str):
        value = value.strip()
    return None if value == "" else value


def forced(context: Context) -> bool:
    """Whether finished work is to be done again."""
    return bool(param(context, "force"))


def actor(context: Context) -> str:
    """Name of the user who started the run, or `SCHEDULER`."""
    return context["dag_run"].triggering_user_name or SCHEDULER


def is_test(context: Context | None = None) -> bool:
    """Whether a person tries a task or a DAG (``airflow tasks test``, ``airflow dags test``): nobody is to be alerted.

    Both run tasks in the process of the command. With ``--use-executor``, only the user of the run tells.

    Args:
        context: Airflow's context of the task, if there is one.
    """
    from airflow.sdk.execution_time import task_runner

    supervisor = type(getattr(task_runner, "SUPERVISOR_COMMS", None)).__name__
    user = getattr((context or {}).get("dag_run"), "triggering_user_name", None)
    return supervisor == "InProcessSupervisorComms" or user == _TEST_USER


def requested_by(context: Context) -> str:
    """Who requested a retraining: the policy or person of the asset events that started the run, or else its user.

    Raises:
        PerennialError: an event of Airflow's REST API started it, and the model's promotions need an approval: the
            event does not say who made it, and its maker must not approve.
    """
    names = [str(e.extra["requested_by"]) for e in _events(context) if e.extra.get("requested_by")]
    if _has_rest_event(context):
        spec: ModelSpec | None = getattr(context.get("task"), "spec", None)
        if spec and spec.gate.approval:
            raise PerennialError(
                "the training was requested by an asset event of Airflow's REST API, which does not say who made it; "
                "whoever requests a training of this model must not approve it",
                f"trigger {spec.name}.train itself",
                model=spec.name,
            )
        names.append(REST_API)
    return ", ".join(dict.fromkeys(names)) or actor(context)


def is_backfill(context: Context) -> bool:
    """Whether the run belongs to a backfill."""
    return _run_type(context) == "backfill"


def is_asset_triggered(context: Context) -> bool:
    """Whether an asset event started the run."""
    return _run_type(context) == "asset_triggered"


def is_scheduled(context: Context) -> bool:
    """Whether the DAG's schedule started the run, for one partition."""
    return _run_type(context) == "scheduled" and partition_key(context) is not None


def _run_type(context: Context) -> str:
    run_type = context["dag_run"].run_type
    return str(getattr(run_type, "value", run_type))


def reason(context: Context) -> str:
    """Why a retraining was requested: from the asset events that started the run, or else from the trigger form."""
    reasons = [str(event.extra["reason"]) for event in _events(context) if event.extra.get("reason")]
    if _has_rest_event(context):
        reasons.append("an asset event of Airflow's REST API")
    return "; ".join(dict.fromkeys(reasons)) or str(param(context, "reason") or "")


def _events(context: Context) -> list[Any]:
    """The asset events of tasks that started the run; what one of the REST API says, its maker may have invented."""
    return [event for event in _all_events(context) if _is_of_task(event)]


def _has_rest_event(context: Context) -> bool:
    """Whether an asset event of Airflow's REST API started the run, too."""
    return any(not _is_of_task(event) for event in _all_events(context))


def _is_of_task(event: Any) -> bool:
    """Whether a task made an event: Airflow notes which, while the field ``from_rest_api`` is missing in an event whose
    request has no ``extra``."""
    return bool(event.source_dag_id and event.source_task_id)


def _all_events(context: Context) -> list[Any]:
    return [event for group in context["triggering_asset_events"].values() for event in group]
