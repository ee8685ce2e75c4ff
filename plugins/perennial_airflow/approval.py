"""A person's yes to a retraining, in Airflow's own page for required actions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException

from perennial import decide
from perennial_airflow import asked

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec import ModelSpec

NOBODY = "nobody, in time"


class RetrainingApproval(ApprovalOperator):
    """Asks only where a retraining was proposed, and writes the answer, or that there was none, into the ledger."""

    def __init__(self, *, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Context) -> Any:
        """Wait for an answer; skipped, with all that follows, where nothing was proposed."""
        decision = context["ti"].xcom_pull(task_ids="decide")
        if not decision["proposed"]:
            raise AirflowSkipException(f"Nobody has to be asked: {decision['reason']}")
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Note the answer; a no skips what follows."""
        found = super().execute_complete(context, event)
        who = (found.get("responded_by_user") or {}).get("name") or NOBODY
        decide.answer(
            self.spec,
            as_of=asked.as_of(context).start,
            approved=found["chosen_options"] == [self.APPROVE],
            actor=who,
        )
        return found


def approval(spec: ModelSpec) -> RetrainingApproval:
    """The task; no answer within the policy's hours is a no."""
    return RetrainingApproval(
        task_id="approve_retraining",
        spec=spec,
        subject=f"Retrain {spec.name}?",
        body="{{ ti.xcom_pull(task_ids='decide')['reason'] }}",
        defaults=[ApprovalOperator.REJECT],
        response_timeout=timedelta(hours=spec.retraining.answer_hours),
    )
