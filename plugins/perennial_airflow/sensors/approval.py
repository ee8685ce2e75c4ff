"""A person's approval of a retraining, on Airflow's page of required actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowSkipException

from perennial.alerting import decisions
from perennial.core.errors import PerennialError
from perennial.lifecycle import retraining
from perennial_airflow import retries, run_request
from perennial_airflow.alerting import alerts
from perennial_airflow.web import links

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec


class RetrainingApproval(ApprovalOperator):
    """Asks for approval of a proposed retraining, and writes the answer, or its absence, to the ledger.

    It occupies no worker and no trigger: the task is in the state *awaiting input*. The API resumes it with an answer,
    or the scheduler with the default answer when the time is over.

    Args:
        spec: the model.
        decision: gives the decision on the run's partition, as it stands in the ledger.
    """

    def __init__(
        self, *, spec: ModelSpec, decision: Callable[[ModelSpec, Context], dict[str, Any]], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.decision = decision

    def execute(self, context: Context) -> Any:
        """Wait for an answer; skipped where no retraining is proposed, or a person has answered already."""
        with retries.translated(self.task_id, model=self.spec.name):
            decision = self.decision(self.spec, context)
        if not decision["proposed"]:
            raise AirflowSkipException(f"No approval is needed: {decision['reason']}")
        day, hours = run_request.as_of(context).start, self.spec.retraining.approval_hours
        report = links.report_url(str(decision["report"] or ""))
        self.body = (
            f"As of **{day}**: {decision['reason']}{f' ([report]({report}))' if report else ''}\n\n"
            f"*Approve* starts `{self.spec.name}.train` for that date; its gate still decides whether the new version "
            f"becomes champion.\n\nWithout an answer within {hours} hours the retraining is rejected."
        )
        if not run_request.is_test(context):
            self._notify_channels(context, day, decision)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer; *Reject* skips the tasks downstream."""
        # the default answer that the scheduler gives has no user; a user may have no name
        user = event.get("responded_by_user")
        if "error" not in event:
            fields = event["params_input"] or {}
            # before the answer is recorded, so that the question is asked again
            self.validate_params_input(fields)
            with retries.translated(self.task_id, model=self.spec.name):
                recorded = retraining.record_answer(
                    self.spec,
                    as_of=run_request.as_of(context).start,
                    approved=event["chosen_options"] == [self.APPROVE],
                    actor=(user["name"] or user["id"]) if user else None,
                    reason=str(fields.get("reason") or ""),
                )
            self.log.info("Recorded the answer: %s.", recorded["reason"].rstrip("."))
            from perennial.status import refresh  # DAG files import this module

            refresh.refresh_quietly(self.spec)
        return super().execute_complete(context, event)  # raises to skip the tasks downstream

    def _notify_channels(self, context: Context, day: str, decision: Mapping[str, Any]) -> None:
        """Notify the model's channels as well: few people watch the page of required actions."""
        task, reason = context["task_instance"], decision["reason"]
        page = links.ui_url(f"/dags/{task.dag_id}/runs/{task.run_id}/tasks/{task.task_id}/required_actions")
        hours = self.spec.retraining.approval_hours
        text = (
            f"{self.subject}\n{day}: {reason}\n"
            f"Without an answer within {hours} hours the retraining is rejected. Answer at {page}"
        )
        facts = {"model": self.spec.name, "partition": day, "reason": reason, "answer_at": page}
        facts |= {"report": decision["report"] or ""}
        try:
            decisions.ask(self.spec, key=f"{day}/{task.run_id}", text=text, details=facts)
        except PerennialError as error:  # the question itself is on Airflow's page
            self.log.warning("Nobody could be told of the question: %s", error)
        else:
            alerts.deliver_outbox(self.spec)


def _reason_field() -> Param:
    """The field of the question in which a person says why. The answer of the scheduler leaves it empty."""
    return Param(
        None,
        type=["null", "string"],
        maxLength=500,
        title="Reason",
        description_md="Why, above all why not. The ledger records it.",
    )


def approval_task(
    spec: ModelSpec, decision: Callable[[ModelSpec, Context], dict[str, Any]], **limits: Any
) -> RetrainingApproval:
    """The approval task of a model; without an answer within the policy's hours the retraining is rejected.

    Args:
        spec: the model.
        decision: as for `RetrainingApproval`.
        limits: retries and timeout. A retry asks again if an answer could not be recorded, or if Airflow lost it
            (airflow 72716).
    """
    return RetrainingApproval(
        task_id="approve_retraining",
        spec=spec,
        decision=decision,
        subject=f"Retrain {spec.name}?",
        defaults=[ApprovalOperator.REJECT],
        params={"reason": _reason_field()},
        response_timeout=timedelta(hours=spec.retraining.approval_hours),
        **limits,
    )
