"""The operator of every task, and the link to the report that a task made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from perennial.core.errors import (
    LockHeldError,
    PerennialError,
    RegistryError,
    StepInterruptedError,
    StorageError,
)

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec
    from perennial_airflow.execution.step_pod import StepPod

#: Errors that another try may overcome: a lock of another run, a lost worker, a server that is down, a full disk.
RETRYABLE = (LockHeldError, StepInterruptedError, RegistryError, StorageError)


class StageTask(BaseOperator):
    """Calls one function with the spec and the run's context.

    A `PerennialError` that is not in `RETRYABLE` fails the task without retries. The log then ends with its message
    (model, partition, cause and what to do), not with a stack trace.

    Args:
        spec: the model.
        call: the function; its result, small and JSON-able, becomes the task's XCom.
        part: the part of the range that this mapped task processes.
    """

    ui_color = "#e8f4ea"

    def __init__(
        self,
        *,
        spec: ModelSpec,
        call: Callable[[ModelSpec, Context], Any],
        part: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.call = call
        self.part = part
        #: The event of the trigger, where the task waited for the step's pod in the triggerer.
        self.event: dict[str, Any] | None = None
        #: The operator of the pod that the step runs in.
        self.pod: StepPod | None = None
        #: Whether the task was killed.
        self.killed = False
        #: What the function returned, for lineage.
        self.result: dict[str, Any] = {}

    def execute(self, context: Context) -> Any:
        """Call the function."""
        return self._call(context)

    def _call(self, context: Context) -> Any:
        try:
            result = self.call(self.spec, context)
            self.result = result if isinstance(result, dict) else {}
            return result
        except PerennialError as error:
            error.model = error.model or self.spec.name
            kind = AirflowException if isinstance(error, RETRYABLE) else AirflowFailException
            raise kind(str(error)) from None

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Continue after the step's pod ended. (Airflow stores this method's name while the task is deferred.)"""
        self.event = event
        return self._call(context)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """What OpenLineage reports as read and written by this task, where it is configured."""
        from perennial_airflow.alerting import lineage

        return lineage.task_lineage(self.spec, self.task_id, self.result)

    def on_kill(self) -> None:
        """Stop the step's pod together with the task."""
        self.killed = True
        if self.pod is not None:
            self.pod.on_kill()


class ReportLink(BaseOperatorLink):
    """The button "Report" of a task that wrote a report."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the report; empty where there is none."""
        from perennial_airflow.web.links import report_url

        return report_url(getattr(operator, "report", ""))


class ReportingTask(StageTask):
    """A task whose result names a report (``report``, or the last of ``docs``)."""

    operator_extra_links = (ReportLink(),)

    report = ""

    def _call(self, context: Context) -> dict[str, Any]:
        result: dict[str, Any] = super()._call(context)
        docs = result.get("docs") or [""]
        self.report = str(result.get("report") or docs[-1] or "")
        return result
