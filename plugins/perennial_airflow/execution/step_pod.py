"""The pod operator of one attempt at a step, with the pods of its workers, if any."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client.exceptions import ApiException

from perennial.spec import pod_manifest
from perennial_airflow.execution.pod_outcome import (
    PodOutcome,
    error_message,
    failure_outcome,
    is_pod_missing,
    outcome_of,
)
from perennial_airflow.execution.pod_start import StepPodManager
from perennial_airflow.execution.pod_trigger import StepPodTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger
    from kubernetes.client import models as k8s

log = logging.getLogger("airflow.task")
Created = TypeVar("Created")
#: Makes the manifest of a worker's pod from its rank and the URI at which it finds the trainer.
WorkerManifest = Callable[[int, str], dict[str, Any]]
QUOTA_POLL_SECONDS = 5.0
#: Seconds between two looks at the log of a pod that is waited for in the triggerer.
LOG_SECONDS = 20


class StepPod(KubernetesPodOperator):
    """One pod for one attempt at a step; `outcome` says how it ended.

    Args:
        wait_seconds: how long the pod may wait for a node or for quota.
        worker_count: number of workers' pods in addition to this one.
        worker_manifest: makes the manifest of each of them; None for a step without workers.
    """

    #: The trigger that waits for the pod of a deferrable profile.
    trigger_class: type[StepPodTrigger] = StepPodTrigger

    def __init__(
        self,
        *,
        wait_seconds: float,
        worker_count: int = 0,
        worker_manifest: WorkerManifest | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # What the cluster says about a waiting pod is shown in the task's log.
            log_events_on_startup=True,
            # The result comes through the lake: no sidecar, no XCom.
            do_xcom_push=False,
            log_pod_spec_on_failure=False,
            on_finish_action="delete_pod",
            # A retry of a task that was killed finds its pod again, by name and not by uid (airflow 71743): the random
            # suffix makes names unique.
            durable=True,
            random_name_suffix=True,
            schedule_timeout_seconds=max(1, int(wait_seconds)),
            startup_check_interval_seconds=1,
            base_container_status_polling_interval=0.5,
            logging_interval=LOG_SECONDS,
            base_container_name=pod_manifest.CONTAINER,
            **kwargs,
        )
        self.wait_seconds = wait_seconds
        self.worker_count, self.worker_manifest = worker_count, worker_manifest
        #: The pod, and those of its workers, as they were before they were deleted.
        self.final_pod: k8s.V1Pod | None = None
        self.worker_pods: list[k8s.V1Pod] = []
        #: Whether the pod was deleted from outside.
        self.gone = False

    @cached_property
    def pod_manager(self) -> StepPodManager:
        """What starts the pod, and reads its state and its log."""
        return StepPodManager(kube_client=self.client, callbacks=self.callbacks)

    def convert_config_file_to_dict(self) -> None:
        """As the operator's, except that the connection decides, and not KUBECONFIG: the trigger refuses both."""
        if self.config_file:
            super().convert_config_file_to_dict()  # type: ignore[no-untyped-call]
        else:
            self._config_dict = None

    def defer(self, *, trigger: BaseTrigger, **options: Any) -> NoReturn:
        """As the operator's, with our trigger."""
        super().defer(trigger=self.trigger_class.like(trigger), **options)

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """As the operator's, except that it waits for quota, and starts the workers with the pod."""
        deadline = time.monotonic() + self.wait_seconds
        create = super().get_or_create_pod
        self.pod = self._create_within_quota(lambda: create(pod_request_obj, context), deadline)
        try:
            self._start_workers(self.pod, deadline)
        except BaseException:
            self.process_pod_deletion(self.pod, reraise=False)  # the operator would not delete it
            raise
        return self.pod

    def _start_workers(self, trainer: k8s.V1Pod, deadline: float) -> None:
        """Start the workers' pods, or those that are missing; Kubernetes deletes them with the trainer's."""
        if self.worker_manifest is None:
            return
        namespace, name = trainer.metadata.namespace, trainer.metadata.name
        known = self.client.read_namespaced_pod(name, namespace).metadata
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": known.uid}
        for rank in range(self.worker_count):
            # The pod may be one that an earlier try started: its annotation says where it expects its workers.
            manifest = self.worker_manifest(rank, known.annotations[pod_manifest.RENDEZVOUS_ANNOTATION])
            manifest["metadata"] |= {"name": f"{name}-w{rank}", "ownerReferences": [owner]}
            manifest["metadata"]["labels"][pod_manifest.TRAINER_LABEL] = name
            try:
                self._create_within_quota(
                    partial(self.client.create_namespaced_pod, namespace, manifest), deadline
                )
            except ApiException as error:
                if error.status != 409:  # it exists already
                    raise

    @staticmethod
    def _create_within_quota(create: Callable[[], Created], deadline: float) -> Created:
        """Create a pod; as long as the quota is full, try again until ``deadline`` (of the monotonic clock)."""
        logged = ""
        while True:
            try:
                return create()
            except ApiException as error:
                reason = error_message(error)
                if error.status != 403 or "exceeded quota" not in reason or time.monotonic() > deadline:
                    raise
                if reason != logged:
                    log.info("Waiting for quota: %s", reason)
                    logged = reason
                time.sleep(QUOTA_POLL_SECONDS)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Read the pod, and those of its workers, again before they are deleted."""
        try:
            self.final_pod = self.pod_manager.read_pod(pod)
            if self.worker_manifest is not None:
                selector = f"{pod_manifest.TRAINER_LABEL}={pod.metadata.name}"
                self.worker_pods = self.client.list_namespaced_pod(
                    pod.metadata.namespace, label_selector=selector
                ).items
        except ApiException as error:
            self.gone = error.status == 404
        if (
            not self.gone
        ):  # the operator would try to label and delete it, and dump each answer of the API server
            super().cleanup(pod, remote_pod, *args, **kwargs)

    def outcome(self, error: BaseException | None) -> PodOutcome:
        """How the pod ended, after the operator returned or raised ``error``."""
        if self.gone or (self.final_pod is None and is_pod_missing(error)):
            return PodOutcome("interrupted", "the pod is gone: deleted, or its node was lost")
        if self.final_pod is None:
            return PodOutcome("done") if error is None else failure_outcome(error)
        return outcome_of(self.final_pod)

    def worker_outcome(self) -> PodOutcome | None:
        """Why a worker is missing, where its pod says so."""
        for outcome in map(outcome_of, self.worker_pods):
            if outcome.kind in ("memory", "unschedulable", "image", "secret"):
                return PodOutcome(outcome.kind, f"a worker: {outcome.detail}")
        return None
