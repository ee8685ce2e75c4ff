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
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec

#: Errors that trying again may heal: somebody else's lock, a lost worker, a server that is away, a disk that was full.
PASSING = (LockHeldError, StepInterruptedError, RegistryError, StorageError)


class StageTask(BaseOperator):
    """Calls one plain function with the spec and the run's context.

    A `PerennialError` that waiting cannot heal fails the task at once; the log then ends in its message, which names
    the model, the partition, the cause and what to do, and not in a stack trace.
    """

    ui_color = "#e8f4ea"

    def __init__(
        self,
        *,
        spec: ModelSpec,
        call: Callable[[ModelSpec, Context], Any],
        part: dict[str, str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.call = call
        #: What this one of several mapped tasks works on.
        self.part = part
        #: What the triggerer saw of the step's pod, where the task waited in it.
        self.event: dict[str, Any] | None = None
        #: The operator of the pod that the step runs in.
        self.pod: Any = None
        self.killed = False
        #: What it returned, for its lineage.
        self.result: dict[str, Any] = {}

    def execute(self, context: Context) -> Any:
        """Run it; the result, small and JSON-able, becomes the task's XCom."""
        return self._call(context)

    def _call(self, context: Context) -> Any:
        try:
            result = self.call(self.spec, context)
            self.result = result if isinstance(result, dict) else {}
            return result
        except PerennialError as error:
            error.model = error.model or self.spec.name
            kind = AirflowException if isinstance(error, PASSING) else AirflowFailException
            raise kind(str(error)) from None

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the triggerer has waited for the step's pod."""
        self.event = event
        return self._call(context)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What OpenLineage, where it is configured, is told that this task read and wrote."""
        from perennial_airflow import lineage

        return lineage.of_task(self.spec, self.task_id, self.result)

    def on_kill(self) -> None:
        """Stop the step's pod with the task."""
        self.killed = True
        if self.pod is not None:
            self.pod.on_kill()


class ReportLink(BaseOperatorLink):
    """The button "Report" of a task that made one."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the report; empty where there is none."""
        from perennial_airflow.links import report_url

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
