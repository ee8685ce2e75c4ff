"""Tells people about a task that failed for good: one log line, and a message to webhooks and SNS topics."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from airflow.sdk.exceptions import AirflowException

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec import ModelSpec

TIMEOUT = 5.0
log = structlog.get_logger("perennial.alerts")


def on_failure(spec: ModelSpec) -> Callable[[Context], None]:
    """The failure hook of the tasks of one model. It never raises: a webhook that is away must not add a failure."""

    def tell(context: Context) -> None:
        try:
            message = describe(spec, context)
            log.error("task failed", **message)
            urls = [os.environ.get("PERENNIAL_ALERT_URL", "").strip(), *spec.alerts]
            for url in dict.fromkeys(urls):
                if url:
                    (publish if url.startswith("arn:") else post)(url, message)
        except Exception as error:
            log.warning("the alert could not be made", error=type(error).__name__)

    return tell


def describe(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """What is told. The text of an unexpected error may hold values of the data, so only its kind is told."""
    instance, error = context["task_instance"], context.get("exception")
    told = isinstance(error, AirflowException | str)
    return {
        "model": spec.name,
        "stage": instance.dag_id.rpartition(".")[2],
        "task": instance.task_id,
        "run_id": instance.run_id,
        "partition": _partition(context),
        "try_number": instance.try_number,
        "owner": spec.owner,
        "cause": str(error)[:2000] if told else f"{type(error).__name__}: see the task's log",
        "log": getattr(instance, "log_url", None),
    }


def _partition(context: Context) -> str | None:
    """The run's partition, or the range it was asked for; Airflow may call the hook with half a context."""
    key: str | None = getattr(context.get("dag_run"), "partition_key", None)
    wishes = context.get("params") or {}
    asked = [str(wishes[name]) for name in ("start", "end", "as_of") if wishes.get(name)]
    return key or "..".join(asked) or None


def post(url: str, message: dict[str, Any]) -> bool:
    """POST as JSON; False, and a line in the log, where that fails.

    The address may hold a secret: only its host is told.
    """
    host = urlsplit(url).hostname
    try:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("not an http address")
        request = urllib.request.Request(
            url, data=json.dumps(message, default=str).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return bool(answer.status < 400)
    except (OSError, ValueError) as error:
        log.warning("an alert was not delivered", host=host, error=type(error).__name__)
        return False


def publish(topic: str, message: dict[str, Any]) -> bool:
    """Publish as JSON to a topic of SNS; False, and a line in the log, where that fails.

    Credentials are those of the environment, as for the lake; the region is the topic's.
    """
    try:
        from airflow.providers.amazon.aws.hooks.sns import SnsHook
        from botocore.config import Config

        config = Config(
            connect_timeout=TIMEOUT,
            read_timeout=TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": 2},
        )
        subject = f"{message['model']}.{message['stage']} failed, partition {message['partition'] or 'none'}"
        hook = SnsHook(aws_conn_id=None, region_name=topic.split(":")[3], config=config)
        hook.publish_to_target(topic, json.dumps(message, default=str), subject=subject[:100])
        return True
    except Exception as error:  # of the client, its configuration or the service: none may add a failure
        log.warning("an alert was not delivered", topic=topic, error=type(error).__name__)
        return False
