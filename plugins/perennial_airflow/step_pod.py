"""The pod operator of one attempt at a step, with the pods of its workers where it has some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client.exceptions import ApiException

from perennial_airflow import pod_spec
from perennial_airflow.pod_ending import Ending, ending, lost, message

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

log = logging.getLogger("airflow.task")
Made = TypeVar("Made")
QUOTA_POLL_SECONDS = 5.0


class StepPod(KubernetesPodOperator):
    """One pod for one attempt at a step; `ending` tells how it went.

    Args:
        wait_seconds: how long a node, or quota, is waited for.
        crew: pods of workers beside this one. worker: makes one, given its rank and the place where the trainer says
            where it is.
    """

    def __init__(
        self,
        *,
        wait_seconds: float,
        crew: int = 0,
        worker: Callable[[int, str], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # What the cluster says about a waiting pod is shown in the task's log.
            log_events_on_startup=True,
            # The result comes through the lake: no sidecar, no XCom.
            do_xcom_push=False,
            log_pod_spec_on_failure=False,
            on_finish_action="delete_pod",
            # A retry of a task that was killed finds its pod again. Found by name and not by uid (airflow 71743): the
            # random suffix keeps names apart.
            durable=True,
            random_name_suffix=True,
            schedule_timeout_seconds=max(1, int(wait_seconds)),
            startup_check_interval_seconds=1,
            base_container_status_polling_interval=0.5,
            base_container_name=pod_spec.CONTAINER,
            **kwargs,
        )
        self.wait_seconds = wait_seconds
        self.last_seen: k8s.V1Pod | None = None
        self.gone = False
        self.crew, self.worker = crew, worker
        self.crew_seen: list[k8s.V1Pod] = []

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """As the operator's, but a full quota is waited for, and workers are started with it."""
        deadline = time.monotonic() + self.wait_seconds
        create = super().get_or_create_pod
        self.pod = self._patiently(lambda: create(pod_request_obj, context), deadline)
        try:
            self._hire(self.pod, deadline)
        except BaseException:
            self.process_pod_deletion(self.pod, reraise=False)  # the operator would leave it
            raise
        return self.pod

    def _hire(self, trainer: k8s.V1Pod, deadline: float) -> None:
        """Start the workers' pods, or those that are missing; Kubernetes deletes them with the trainer's."""
        if self.worker is None:
            return
        place, name = trainer.metadata.namespace, trainer.metadata.name
        known = self.client.read_namespaced_pod(name, place).metadata
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": known.uid}
        for rank in range(self.crew):
            # The pod may be one that an earlier try started: its workers meet it where it was told to.
            wanted = self.worker(rank, known.annotations[pod_spec.MEETING])
            wanted["metadata"] |= {"name": f"{name}-w{rank}", "ownerReferences": [owner]}
            wanted["metadata"]["labels"][pod_spec.TRAINER] = name
            try:
                self._patiently(lambda body=wanted: self.client.create_namespaced_pod(place, body), deadline)
            except ApiException as error:
                if error.status != 409:  # it is there already
                    raise

    @staticmethod
    def _patiently(create: Callable[[], Made], deadline: float) -> Made:
        told = ""
        while True:
            try:
                return create()
            except ApiException as error:
                reason = message(error)
                if error.status != 403 or "exceeded quota" not in reason or time.monotonic() > deadline:
                    raise
                if reason != told:
                    log.info("Waiting for quota: %s", reason)
                    told = reason
                time.sleep(QUOTA_POLL_SECONDS)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Look at the pod, and at those of its workers, once more before they are deleted."""
        try:
            self.last_seen = self.pod_manager.read_pod(pod)
            if self.worker is not None:
                mine = f"{pod_spec.TRAINER}={pod.metadata.name}"
                self.crew_seen = self.client.list_namespaced_pod(
                    pod.metadata.namespace, label_selector=mine
                ).items
        except ApiException as error:
            self.gone = error.status == 404
        super().cleanup(pod, remote_pod, *args, **kwargs)

    def ending(self, error: BaseException | None) -> Ending:
        """How the pod ended, after the operator returned or raised ``error``."""
        if self.gone or (self.last_seen is None and lost(error)):
            return Ending("interrupted", "the pod is gone: deleted, or its node was lost")
        if self.last_seen is None:
            return Ending("done") if error is None else Ending("failed", message(error))
        return ending(self.last_seen)

    def crew_ending(self) -> Ending | None:
        """Why a worker was not there, as far as its pod tells."""
        for found in map(ending, self.crew_seen):
            if found.kind in ("memory", "unschedulable", "image", "secret"):
                return Ending(found.kind, f"a worker: {found.detail}")
        return None
