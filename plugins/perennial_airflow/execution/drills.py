"""``perennial.reproduce`` and ``perennial.rollback_drill``: what must work one day is tried each week.

``perennial.reproduce`` trains a version again from its recipe, where the model's trainings run, and compares it: by
hand the one that the form names, each week the champion that was reproduced longest ago. ``perennial.rollback_drill``
checks, for every model, the version that a rollback would go to; no champion moves. The ledger has the outcomes. A bad
one opens the incident `reproduction` or `rollback_target`, which a good one closes. ``PERENNIAL_DRILLS=off`` in the
environment of Airflow ends the schedules; both can still be started by hand.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import DAG, BaseOperator, Context, Param
from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout

from perennial.alerting.incidents import SignalObservation
from perennial.core.errors import PerennialError, time_heals
from perennial.core.settings import settings
from perennial.spec import catalog
from perennial_airflow import retries, run_request
from perennial_airflow.bundle_dags import bundle_dag, for_each_model
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import PodLink, StageTask

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

log = logging.getLogger("airflow.task")
#: The signals of the incidents that a bad outcome opens.
REPRODUCTION, ROLLBACK_TARGET = "reproduction", "rollback_target"
_CHOOSE = "choose_version"


def dags() -> dict[str, DAG]:
    """The DAGs, by id; each for all models."""
    scheduled = settings().drills
    with bundle_dag(
        "reproduce",
        description="Trains a version again from its recipe and compares it; each week one champion.",
        doc=__doc__,
        schedule="0 5 * * 6" if scheduled else None,
        tag="drill",
        params=_form(),
    ) as reproduce:
        ChooseVersion(task_id=_CHOOSE) >> Reproduce(
            task_id="reproduce", execution_timeout=timedelta(hours=48)
        )
    with bundle_dag(
        "rollback_drill",
        description="Checks the version that each model would be rolled back to, once a week.",
        doc=__doc__,
        schedule="0 6 * * 6" if scheduled else None,
        tag="drill",
    ) as rollback:
        CheckRollbackTargets(task_id="check_targets", execution_timeout=timedelta(hours=6))
    return {dag.dag_id: dag for dag in (reproduce, rollback)}


def _form() -> dict[str, Param]:
    """The trigger form of ``perennial.reproduce``."""
    return {
        "model": Param(
            None,
            type=["null", "string"],
            title="Model",
            description_md="Name of the model. Empty: the one whose champion was reproduced longest ago.",
        ),
        "version": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Version",
            description_md="Version in the model registry. Empty: the champion.",
        ),
    }


class ChooseVersion(BaseOperator):
    """Chooses what is reproduced: what the form says, or the champion that waited longest."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, str]:
        """Choose.

        Returns:
            model, version.

        Raises:
            AirflowSkipException: there is no champion with a recipe.
        """
        from perennial.governance import reproduction

        model, version = (run_request.param(context, name) for name in ("model", "version"))
        with retries.translated(self.task_id):
            if version and not model:
                raise PerennialError(f"version {version} of which model?", "name the model, too")
            if model:
                chosen = _choice_of_form(catalog.load_model_by_name(str(model)).name, version)
            else:
                champion = reproduction.longest_ago(catalog.load_models()[0].values())
                if champion is None:
                    raise AirflowSkipException("No model has a champion with a recipe")
                chosen = champion
        log.info("Version %s of %s is reproduced.", chosen["version"], chosen["model"])
        return chosen


def _choice_of_form(model: str, version: int | None) -> dict[str, str]:
    """The version that the form names, or the model's champion.

    Raises:
        PerennialError: the ledger does not have it. This is a mistake in the form, and nothing that is wrong with a
            version.
    """
    from perennial.governance import reproduction

    number = reproduction.recorded_version(model, str(version or ""))
    if not number:
        raise PerennialError(
            f"the ledger has no training of version {version}" if version else "the ledger has no champion",
            f"name a version that `perennial ledger show {model}` lists",
            model=model,
        )
    return {"model": model, "version": number}


class Reproduce(StageTask):
    """Reproduces the chosen version where the model's trainings run, and reports the outcome as an incident."""

    operator_extra_links = (PodLink(),)

    def __init__(self, **kwargs: Any) -> None:
        # which model, only the run says
        super().__init__(spec=cast("ModelSpec", None), call=_reproduce, **kwargs)

    def _call(self, context: Context) -> Any:
        with retries.translated(self.task_id):
            self.spec = catalog.load_model_by_name(_chosen(context)["model"])
        return super()._call(context)

    def _lineage(self, *, failed: bool) -> None:
        """Nothing: it writes no data."""
        return


def _chosen(context: Context) -> dict[str, str]:
    chosen: dict[str, str] = context["ti"].xcom_pull(task_ids=_CHOOSE)
    return chosen


def _reproduce(spec: ModelSpec, context: Context) -> dict[str, Any]:
    from perennial.governance import reproduction

    version, actor = _chosen(context)["version"], run_request.actor(context)
    try:
        result = runner.run_as_training("reproduce", spec, context, version=version, actor=actor)
    except (PerennialError, AirflowTaskTimeout) as error:
        instance, needs_person = context["ti"], isinstance(error, PerennialError) and not time_heals(error)
        if needs_person or instance.try_number > instance.max_tries:  # or else it is tried again
            cause = error.cause if isinstance(error, PerennialError) else "it took longer than the task may"
            _report(spec, REPRODUCTION, "bad", f"it cannot be trained again: {cause}")
            reproduction.record_failure(spec, version, cause, type(error).__name__, actor=actor)
        raise
    state = "bad" if result["outcome"] == "different" else "ok"
    _report(
        spec, REPRODUCTION, state, reproduction.summarise(cast("reproduction.ReproductionResult", result))
    )
    return result


class CheckRollbackTargets(BaseOperator):
    """Checks the version that each model would be rolled back to."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, Any]:
        """Check them.

        Returns:
            By model: the outcome, the version, and the seconds of the check.

        Raises:
            AirflowException: a model could not be checked; the others were. It is tried again if time may heal that.
        """
        from perennial.lifecycle import rollback_drill

        def check(spec: ModelSpec) -> dict[str, Any]:
            result = rollback_drill.drill(spec, actor="perennial.rollback_drill")
            log.info("%s: %s, in %.1f s.", spec.name, result["reason"], result["seconds"])
            if result["outcome"] != "no target":
                state = "bad" if result["outcome"] == "failed" else "ok"
                _report(spec, ROLLBACK_TARGET, state, result["reason"])
            return {key: result[key] for key in ("outcome", "version", "rows", "seconds")}

        return for_each_model(check, "not checked")


def _report(spec: ModelSpec, signal: str, state: Any, reason: str) -> None:
    from perennial_airflow.alerting import alerts

    # its date is that of the run: what is checked belongs to no partition
    alerts.report_signals(
        spec, spec.cadence.key_of(datetime.now(UTC)), {signal: SignalObservation(state, reason)}
    )
