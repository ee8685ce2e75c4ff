"""A person's yes to a retraining, in Airflow's own page for required actions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException

from perennial.lifecycle import retraining
from perennial_airflow import asked, links, notifiers
from perennial_airflow.base import LIGHT, limits

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec


#: What the question counts as, where a channel names the signals that it tells of.
SIGNAL = "approval"


class RetrainingApproval(ApprovalOperator):
    """Asks only where a retraining was proposed, and writes the answer, or that there was none, into the ledger.

    No worker and no trigger waits: the task is in the state *awaiting input*, from which the API brings it back with an
    answer, and the scheduler with the default once the time is over.
    """

    def __init__(
        self, *, spec: ModelSpec, decision: Callable[[ModelSpec, Context], dict[str, Any]], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        #: Gives the decision on a run's partition, as it stands in the ledger.
        self.decision = decision

    def execute(self, context: Context) -> Any:
        """Wait for an answer; skipped where nothing was proposed, or a person has answered before."""
        decision = self.decision(self.spec, context)
        if not decision["proposed"]:
            raise AirflowSkipException(f"Nobody has to be asked: {decision['reason']}")
        day, hours = asked.as_of(context).start, self.spec.retraining.answer_hours
        report = links.report_url(str(decision["report"] or ""))
        self.body = (
            f"As of **{day}**: {decision['reason']}{f' ([report]({report}))' if report else ''}\n\n"
            f"*Approve* starts `{self.spec.name}.train` for that date; its gate still decides whether the new version "
            f"becomes champion.\n\nNo answer within {hours} hours is a no."
        )
        self._tell(context, day, decision["reason"])
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Note the answer; a no skips what follows."""
        # the default that the scheduler applies has no user; a user may have no name
        user = event.get("responded_by_user")
        if "error" not in event:
            retraining.answer(
                self.spec,
                as_of=asked.as_of(context).start,
                approved=event["chosen_options"] == [self.APPROVE],
                actor=(user["name"] or user["id"]) if user else None,
            )
        return super().execute_complete(context, event)  # which leaves by an exception to skip what follows

    def _tell(self, context: Context, day: str, reason: str) -> None:
        """Ask on the model's channels, too: nobody looks at a page without a cause."""
        task = context["task_instance"]
        page = links.page(f"/dags/{task.dag_id}/runs/{task.run_id}/tasks/{task.task_id}/required_actions")
        hours = self.spec.retraining.answer_hours
        text = f"{self.subject}\n{day}: {reason}\nNo answer within {hours} hours is a no. Answer at {page}"
        facts = {"model": self.spec.name, "partition": day, "reason": reason, "answer_at": page}
        message = notifiers.Message(f"{self.spec.name}: approve a retraining?", text, facts)
        for channel in self.spec.alerts.all():
            if channel.wants(SIGNAL, "bad"):
                notifiers.deliver(channel, message)


def approval(spec: ModelSpec, decision: Callable[[ModelSpec, Context], dict[str, Any]]) -> RetrainingApproval:
    """The task; no answer within the policy's hours is a no."""
    return RetrainingApproval(
        task_id="approve_retraining",
        spec=spec,
        decision=decision,
        subject=f"Retrain {spec.name}?",
        defaults=[ApprovalOperator.REJECT],
        response_timeout=timedelta(hours=spec.retraining.answer_hours),
        # an answer that could not be written down, or that Airflow lost (airflow 72716), is asked for again
        **limits(LIGHT),
    )
