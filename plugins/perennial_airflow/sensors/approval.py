"""A person's approval of a retraining, on Airflow's page of required actions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException

from perennial.lifecycle import retraining
from perennial_airflow import run_request
from perennial_airflow.alerting import notifiers
from perennial_airflow.web import links

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec

#: The signal with which a channel subscribes to these messages (``signals: [approval]``).
SIGNAL = "approval"


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
        self._notify_channels(context, day, decision["reason"])
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer; *Reject* skips the tasks downstream."""
        # the default answer that the scheduler gives has no user; a user may have no name
        user = event.get("responded_by_user")
        if "error" not in event:
            retraining.record_answer(
                self.spec,
                as_of=run_request.as_of(context).start,
                approved=event["chosen_options"] == [self.APPROVE],
                actor=(user["name"] or user["id"]) if user else None,
            )
        return super().execute_complete(context, event)  # raises to skip the tasks downstream

    def _notify_channels(self, context: Context, day: str, reason: str) -> None:
        """Notify the model's channels as well: few people watch the page of required actions."""
        task = context["task_instance"]
        page = links.ui_url(f"/dags/{task.dag_id}/runs/{task.run_id}/tasks/{task.task_id}/required_actions")
        hours = self.spec.retraining.approval_hours
        text = (
            f"{self.subject}\n{day}: {reason}\n"
            f"Without an answer within {hours} hours the retraining is rejected. Answer at {page}"
        )
        facts = {"model": self.spec.name, "partition": day, "reason": reason, "answer_at": page}
        message = notifiers.Message(f"{self.spec.name}: approve a retraining?", text, facts)
        for channel in self.spec.alerts.all_channels():
            if channel.accepts(SIGNAL, "bad"):
                notifiers.deliver(channel, message)


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
        response_timeout=timedelta(hours=spec.retraining.approval_hours),
        **limits,
    )
