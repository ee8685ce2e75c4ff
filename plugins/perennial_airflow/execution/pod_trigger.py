"""The trigger of a deferred task that waits for its step's pod. Airflow stores its import path: it stays here."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.cncf.kubernetes.triggers.pod import ContainerState, KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

from perennial_airflow.execution.pod_outcome import is_pod_missing
from perennial_airflow.execution.pod_start import StepAsyncPodManager

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


class StepPodTrigger(KubernetesPodTrigger):
    """The trigger of Airflow's pod operator, except that it waits for images, and does not dump errors of lost pods."""

    @classmethod
    def like(cls, trigger: BaseTrigger) -> Self:
        """A trigger with the arguments of Airflow's."""
        return cls(**trigger.serialize()[1])

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Import path and arguments, from which the triggerer makes it; the provider's method names its own class."""
        return f"{type(self).__module__}.{type(self).__name__}", super().serialize()[1]

    async def _wait_for_pod_start(self) -> ContainerState:
        """As the operator's, except that a deleted pod is an outcome, not an error with a stack trace."""
        try:
            return await super()._wait_for_pod_start()
        except Exception as error:
            if not is_pod_missing(error):
                raise
            self.log.warning("Pod %s is gone: deleted, or its node was lost", self.pod_name)
            return ContainerState.FAILED

    async def _wait_for_container_completion(self) -> TriggerEvent:
        """As the operator's, except that a deleted pod is an outcome, not an error with a stack trace."""
        try:
            return await super()._wait_for_container_completion()
        except Exception as error:
            if not is_pod_missing(error):
                raise
            self.log.warning("Pod %s is gone: deleted, or its node was lost", self.pod_name)
            event = {"status": "failed", "name": self.pod_name, "namespace": self.pod_namespace}
            return TriggerEvent(event | {"message": "the pod is gone"} | self.trigger_kwargs)

    @cached_property
    def pod_manager(self) -> StepAsyncPodManager:
        """What reads the pod and its log."""
        return StepAsyncPodManager(async_hook=self.hook)
