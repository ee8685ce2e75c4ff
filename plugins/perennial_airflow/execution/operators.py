"""The operator of every task, and the links to the reports that a task wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout

from perennial.core.settings import settings
from perennial.storage import pages
from perennial_airflow import retries

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec
    from perennial_airflow.execution.step_pod import StepPod
    from perennial_airflow.run_request import PartitionRange

#: How far the clocks of a worker and of the lake may differ.
CLOCK_SKEW_SECONDS = 60


class ModelLink(BaseOperatorLink):
    """The button "Model": the model's page in the console, with its versions, incidents, decisions and reports."""

    name = "Model"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the page."""
        from perennial_airflow.web.links import model_url

        return model_url(cast(StageTask, operator).spec.name)


class StageTask(BaseOperator):
    """Calls one function with the spec and the run's context.

    What fails is raised as `retries` says: only what time heals is tried again.

    Args:
        spec: the model.
        call: the function; its result, small and JSON-able, becomes the task's XCom.
        part: the part of the range that this mapped task processes.
        await_turn: reschedules the task while what must end before it is active.
    """

    ui_color = "#e8f4ea"
    operator_extra_links: tuple[BaseOperatorLink, ...] = (ModelLink(),)
    #: The partitions whose reports the task wrote before it failed.
    failed_partitions: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        spec: ModelSpec,
        call: Callable[[ModelSpec, Context], Any],
        part: dict[str, str] | None = None,
        await_turn: Callable[[ModelSpec, Context], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.call = call
        self.part = part
        self.await_turn = await_turn
        #: The event of the trigger, where the task waited for the step's pod in the triggerer.
        self.event: dict[str, Any] | None = None
        #: The operator of the pod that the step runs in.
        self.pod: StepPod | None = None
        #: Whether the task was killed.
        self.killed = False
        #: What the function returned, for lineage.
        self.result: dict[str, Any] = {}
        #: What OpenLineage reports, where it is configured.
        self.lineage: OperatorLineage[Any, Any] | None = None

    def execute(self, context: Context) -> Any:
        """Call the function, when it is the task's turn."""
        if self.await_turn:
            with retries.translated(self.task_id, model=self.spec.name, hide=self.spec.hides_values):
                self.await_turn(self.spec, context)
        return self._traced(context)

    def _call(self, context: Context) -> Any:
        with retries.translated(self.task_id, model=self.spec.name, hide=self.spec.hides_values):
            result = self.call(self.spec, context)
        self.result = result if isinstance(result, dict) else {}
        return result

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Continue after the step's pod ended. (Airflow stores this method's name while the task is deferred.)"""
        self.event = event
        return self._traced(context)

    def _traced(self, context: Context) -> Any:
        """Call the function, and find out here what OpenLineage reports, where it is configured.

        Airflow asks for it in a fork of this process, in which neither deltalake nor DuckDB can be used.
        """
        try:
            result = self._call(context)
        except Exception:
            self._find_lineage(failed=True)
            raise
        self._find_lineage(failed=False)
        return result

    def _find_lineage(self, *, failed: bool) -> None:
        """Find out what OpenLineage reports; whatever fails here, also for want of time, the task ends as it did."""
        try:
            from airflow.providers.openlineage.conf import is_disabled

            if not is_disabled():
                self.lineage = self._lineage(failed=failed)
        except (Exception, AirflowTaskTimeout) as error:
            self.log.warning("OpenLineage: the event has no datasets: %s", type(error).__name__)

    def _lineage(self, *, failed: bool) -> OperatorLineage[Any, Any] | None:
        """What this task read and wrote; nothing was written where it failed or was skipped."""
        from perennial_airflow.alerting import lineage

        if failed or not self.result:
            return lineage.failure_lineage(self.spec, self.task_id, self.failed_partitions)
        return lineage.task_lineage(self.spec, self.task_id, self.result)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """What OpenLineage reports as read and written by this task, where it is configured."""
        return self.lineage

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """What OpenLineage reports of this task when it failed: nothing as written."""
        return self.lineage

    def on_kill(self) -> None:
        """Stop the step's pod together with the task."""
        self.killed = True
        if self.pod is not None:
            self.pod.on_kill()


class ReportLink(BaseOperatorLink):
    """The button "Report" of a task that wrote reports: the report of its partition, or the list of a range's."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the report or list; empty where there is none."""
        return str(getattr(operator, "report_address", ""))


class AllReportsLink(BaseOperatorLink):
    """The button "All reports": the list of the model's reports."""

    name = "All reports"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the list."""
        from perennial_airflow.web.links import reports_url

        return reports_url(cast(StageTask, operator).spec.name)


class MlflowRunLink(BaseOperatorLink):
    """The button "MLflow run" of a task that trained: the run with parameters, metrics, datasets and plots."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the run; empty where there is none."""
        run = cast(StageTask, operator).result.get("run_id")
        return settings().mlflow_run_page(str(run)) if run else ""


class PodLink(BaseOperatorLink):
    """The button "Pod" of a task whose step ran in a pod, where ``PERENNIAL_POD_URL`` says where pods are shown."""

    name = "Pod"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Address of the pod in the cluster's console; empty without a pod, or without an address."""
        from perennial_airflow.web.links import pod_url

        operator_of_pod = cast(StageTask, operator).pod
        pod = operator_of_pod.pod if operator_of_pod is not None else None
        return pod_url(pod.metadata.namespace, pod.metadata.name) if pod is not None else ""


class ReportingTask(StageTask):
    """A task that writes reports, also when it fails: a stopped partition has its data doc.

    Args:
        partitions: gives the partitions that the run is for.
        kind: of the reports: their folder in the lake.
    """

    operator_extra_links: tuple[BaseOperatorLink, ...] = (
        ReportLink(),
        AllReportsLink(),
        ModelLink(),
        PodLink(),
    )

    report_address = ""

    def __init__(self, *, partitions: Callable[[Context], PartitionRange], kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partitions, self.kind = partitions, kind

    def _call(self, context: Context) -> dict[str, Any]:
        from perennial_airflow.web.links import report_url, reports_url

        try:
            result: dict[str, Any] = super()._call(context)
        except AirflowSkipException:
            raise
        except Exception:
            self.report_address = self._address_after_failure(context)
            raise
        requested = self.partitions(context)
        if requested.single:
            self.report_address = report_url(
                str(result.get("report") or (result.get("docs") or [""])[-1] or "")
            )
        else:
            self.report_address = reports_url(self.spec.name, requested.start, requested.last)
        return result

    def _address_after_failure(self, context: Context) -> str:
        """Address of what this try wrote before it failed; a step that failed in a pod cannot say it itself."""
        from perennial_airflow.web.links import report_url, reports_url

        try:
            requested = self.partitions(context)
            began = context["ti"].start_date
            since = (began.timestamp() - CLOCK_SKEW_SECONDS) * 1e9 if began else 0
            written = [
                page
                for page in pages.find(self.spec.name)
                if page.kind == self.kind
                and page.written_ns >= since
                and page.concerns(requested.start, requested.last)
            ]
        except Exception as error:  # the failure itself matters more
            self.log.warning("It is not known which reports were written: %s", type(error).__name__)
            return ""
        if not written:
            return ""
        self.failed_partitions = tuple(page.name for page in written)
        if requested.single:
            return report_url(written[0].uri)
        return reports_url(self.spec.name, requested.start, requested.last)


class FeatureTableTask(StageTask):
    """The task that computes a feature table.

    Args:
        table: the feature table.
    """

    def __init__(self, *, table: FeatureTable, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def _lineage(self, *, failed: bool) -> OperatorLineage[Any, Any] | None:
        from perennial_airflow.alerting import lineage

        return None if failed else lineage.table_lineage(self.table, self.spec, self.result)


class TrainingTask(ReportingTask):
    """The task that trains: its version has a run in MLflow, besides the report."""

    operator_extra_links = (ReportLink(), MlflowRunLink(), AllReportsLink(), ModelLink(), PodLink())


class ScoringTask(StageTask):
    """A task that scores: it writes no report."""

    operator_extra_links = (ModelLink(), PodLink())
