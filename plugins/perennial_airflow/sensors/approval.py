"""A person's approval of a retraining or a promotion, on Airflow's page of required actions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowSkipException

from perennial.alerting import decisions
from perennial.core.errors import PerennialError
from perennial.lifecycle import ledger_anchors, promotion, promotion_approval, retraining
from perennial.lifecycle.promotion_approval import Question
from perennial_airflow import retries, run_request
from perennial_airflow.alerting import alerts
from perennial_airflow.web import links

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec


class _Asked(NamedTuple):
    """A question as it is put to a person.

    Attributes:
        partition: partition that it is about.
        body: for Airflow's page, Markdown.
        text: for channels.
        reason: why it is asked.
        report: URI of a report; empty if there is none.
    """

    partition: str
    body: str
    text: str
    reason: str
    report: str


class _PersonsApproval(ApprovalOperator):
    """Asks a person, and writes the answer, or its absence, to the ledger.

    It occupies no worker and no trigger: the task is in the state *awaiting input*. The API resumes it with an answer,
    or the scheduler with the default answer, *Reject*, when the time is over.

    Args:
        spec: the model.
        hours: time for an answer.
        kwargs: of the operator. A retry asks again if an answer could not be recorded, or if Airflow lost it (airflow
            72716).

    Attributes:
        topic: what is to be approved, in words.
    """

    topic: str

    def __init__(self, *, spec: ModelSpec, hours: int, **kwargs: Any) -> None:
        super().__init__(
            defaults=[ApprovalOperator.REJECT], response_timeout=timedelta(hours=hours), **kwargs
        )
        self.spec = spec
        self.hours = hours

    @abstractmethod
    def ask(self, context: Context) -> _Asked:
        """The question; raises AirflowSkipException where there is none."""

    @abstractmethod
    def record(self, context: Context, *, approved: bool, user: dict[str, str] | None, reason: str) -> str:
        """Record the answer, of nobody without a user; returns it in words."""

    def execute(self, context: Context) -> Any:
        """Wait for an answer; skipped where there is no question."""
        with retries.translated(self.task_id, model=self.spec.name):
            asked = self.ask(context)
        self.body = asked.body
        if not run_request.is_test(context):
            self._notify_channels(context, asked)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer; *Reject* skips the tasks downstream."""
        if "error" not in event:
            fields = event["params_input"] or {}
            # before the answer is recorded, so that the question is asked again
            self.validate_params_input(fields)
            with ledger_anchors.anchored(self.spec.name):
                recorded = self.record(
                    context,
                    approved=event["chosen_options"] == [self.APPROVE],
                    # the default answer that the scheduler gives has no user
                    user=event.get("responded_by_user"),
                    reason=str(fields.get("reason") or ""),
                )
            self.log.info("Recorded the answer: %s.", recorded.rstrip("."))
            from perennial.status import refresh  # DAG files import this module

            refresh.refresh_quietly(self.spec)
        return super().execute_complete(context, event)  # raises to skip the tasks downstream

    def _notify_channels(self, context: Context, asked: _Asked) -> None:
        """Notify the model's channels as well: few people watch the page of required actions."""
        task = context["task_instance"]
        page = links.ui_url(f"/dags/{task.dag_id}/runs/{task.run_id}/tasks/{task.task_id}/required_actions")
        text = f"{self.subject}\n{asked.partition}: {asked.text}\nAnswer at {page}"
        facts = {"model": self.spec.name, "partition": asked.partition, "reason": asked.reason}
        facts |= {"answer_at": page, "report": asked.report}
        key = f"{asked.partition}/{task.run_id}"
        try:
            decisions.ask(self.spec, subject=self.topic, key=key, text=text, details=facts)
        except PerennialError as error:  # the question itself is on Airflow's page
            self.log.warning("Nobody could be told of the question: %s", error)
        else:
            alerts.deliver_outbox(self.spec)


class RetrainingApproval(_PersonsApproval):
    """Asks for approval of a proposed retraining.

    Args:
        spec: the model.
        decision: gives the decision on the run's partition, as it stands in the ledger.
    """

    topic = "a retraining"

    def __init__(
        self, *, spec: ModelSpec, decision: Callable[[ModelSpec, Context], dict[str, Any]], **kwargs: Any
    ) -> None:
        super().__init__(spec=spec, hours=spec.retraining.approval_hours, **kwargs)
        self.decision = decision

    def ask(self, context: Context) -> _Asked:
        """The proposal; none where no retraining is proposed, or a person has answered already."""
        decision = self.decision(self.spec, context)
        if not decision["proposed"]:
            raise AirflowSkipException(f"No approval is needed: {decision['reason']}")
        day, uri = run_request.as_of(context).start, str(decision["report"] or "")
        no_answer = f"Without an answer within {self.hours} hours the retraining is rejected."
        body = (
            f"As of **{day}**: {decision['reason']}{_link(links.report_url(uri), 'report')}\n\n"
            f"*Approve* starts `{self.spec.name}.train` for that date; its gate still decides whether the new version "
            f"becomes champion.\n\n{no_answer}"
        )
        return _Asked(day, body, f"{decision['reason']}\n{no_answer}", decision["reason"], uri)

    def record(self, context: Context, *, approved: bool, user: dict[str, str] | None, reason: str) -> str:
        """Record the answer."""
        with retries.translated(self.task_id, model=self.spec.name):
            recorded = retraining.record_answer(
                self.spec,
                as_of=run_request.as_of(context).start,
                approved=approved,
                actor=_name(user) if user else None,
                reason=reason,
            )
        return recorded["reason"]


class PromotionApproval(_PersonsApproval):
    """Asks for approval of a version that passed the gate, and its trial if there is one.

    Args:
        spec: the model, with ``gate.approval``.
        as_of: gives the partition date of the training; empty if there is nothing to ask about.
    """

    topic = "a promotion"

    def __init__(self, *, spec: ModelSpec, as_of: Callable[[ModelSpec, Context], str], **kwargs: Any) -> None:
        assert spec.gate.approval is not None
        super().__init__(spec=spec, hours=spec.gate.approval.hours, **kwargs)
        self.as_of = as_of

    def ask(self, context: Context) -> _Asked:
        """The question; none where no version waits for an approval."""
        question = self._question(context)
        if question is None:
            raise AirflowSkipException("No version waits for an approval")
        policy = self.spec.gate.approval
        assert policy is not None
        no_answer = f"Without an answer within {self.hours} hours it is not promoted."
        page = links.version_url(self.spec.name, question.version)
        body = (
            "\n".join(f"- {line}" for line in question.evidence)
            + f"\n\n{_link(links.report_url(question.report), 'report of the training')}"
            + f"{_link(page, 'page of the version')}"
            + f"{_link(page and f'{page}/card', 'model card')}\n\n"
            + f"*Approve* makes version {question.version} champion. {', '.join(policy.who)} may answer, not who "
            + f"requested the training, and give a reason. {no_answer}"
        )
        reason = question.evidence[0]
        return _Asked(question.as_of, body, f"{reason}\n{no_answer}", reason, question.report)

    def record(self, context: Context, *, approved: bool, user: dict[str, str] | None, reason: str) -> str:
        """Record the answer; one that does not count fails the task, whose next try asks again."""
        with retries.translated(self.task_id, model=self.spec.name):
            question = self._question(context)
        if question is None:
            return "there was nothing to decide any more"
        if user:
            names = tuple(filter(None, (user.get("name"), user.get("id"))))
            try:
                promotion_approval.check_answer(
                    self.spec, question, actor=_name(user), names=names, reason=reason
                )
            except PerennialError as error:
                raise ValueError(f"The answer does not count: {error.cause}") from None
        with retries.translated(self.task_id, model=self.spec.name):
            recorded = promotion_approval.record_answer(
                self.spec,
                question,
                approved=approved,
                actor=_name(user) if user else None,
                reason=reason,
            )
        return recorded["reason"]

    def _question(self, context: Context) -> Question | None:
        as_of = self.as_of(self.spec, context)
        return promotion.open_question(self.spec, as_of=as_of) if as_of else None


def _name(user: dict[str, str]) -> str:
    """How the ledger names a user, who may have no name."""
    return user["name"] or user["id"]


def _link(url: str | None, text: str) -> str:
    return f" ([{text}]({url}))" if url else ""


def _reason_field(reasons: list[str]) -> Param:
    """The field of the question in which a person says why. The answer of the scheduler leaves it empty."""
    choices: dict[str, Any] = {"enum": [None, *reasons]} if reasons else {}
    return Param(
        None,
        type=["null", "string"],
        maxLength=500,
        title="Reason",
        description_md="Why, above all why not. The ledger records it.",
        **choices,
    )


def approval_task(
    spec: ModelSpec, decision: Callable[[ModelSpec, Context], dict[str, Any]], **limits: Any
) -> RetrainingApproval:
    """The approval of a model's retrainings; without an answer within the policy's hours one is rejected.

    Args:
        spec: the model.
        decision: as for `RetrainingApproval`.
        limits: retries and timeout.
    """
    return RetrainingApproval(
        task_id="approve_retraining",
        spec=spec,
        decision=decision,
        subject=f"Retrain {spec.name}?",
        params={"reason": _reason_field([])},
        **limits,
    )


def promotion_approval_task(
    spec: ModelSpec, as_of: Callable[[ModelSpec, Context], str], **limits: Any
) -> PromotionApproval:
    """The approval of a model's promotions; without an answer within the policy's hours a version is not promoted.

    Args:
        spec: the model, with ``gate.approval``.
        as_of: as for `PromotionApproval`.
        limits: retries and timeout.
    """
    assert spec.gate.approval is not None
    return PromotionApproval(
        task_id="approve_promotion",
        spec=spec,
        as_of=as_of,
        subject=f"Promote a new version of {spec.name}?",
        params={"reason": _reason_field(spec.gate.approval.reasons)},
        **limits,
    )
