"""Waiting for a pod to start: like Airflow's operator, except that an image may come later.

Kubernetes pulls an image again and again; Airflow's operator gives up at the first failure of most kinds. Here a pull
that failed is waited for as long as any other start, ``start_minutes`` of the profile: a node that cannot reach the
registry for a moment, or an image that is still being pushed, fails no task.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import PodLaunchFailedException
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    AsyncPodManager,
    PodLaunchTimeoutException,
    PodManager,
    PodPhase,
)

from perennial_airflow.execution.pod_outcome import image_problem

if TYPE_CHECKING:
    from kubernetes.client import models as k8s


class _WaitsForImage:
    """Adds to a pod manager that it waits for an image that cannot be pulled yet."""

    log: Any
    read_pod: Any
    stop_watching_events: bool

    async def await_pod_start(
        self,
        pod: k8s.V1Pod,
        schedule_timeout: int = 120,
        startup_timeout: int = 120,
        check_interval: float = 1,
    ) -> None:
        """Wait until the pod's containers run or have ended; the arguments are those of Airflow's method.

        Raises:
            PodLaunchTimeoutException: no node, or no start on the node, within the time.
            PodLaunchFailedException: the image has an impossible name.
        """
        try:
            await super().await_pod_start(pod, schedule_timeout, startup_timeout, check_interval)  # type: ignore[misc]
            return
        except PodLaunchFailedException:
            current = await self._read(pod)
            if not image_problem(current):
                raise
        deadline = time.monotonic() + startup_timeout - _seconds_on_node(current, startup_timeout)
        self.log.warning(
            "The image cannot be pulled: %s. Kubernetes tries again, and this task waits, up to %g minutes after it "
            "got a node (start_minutes of the profile)", image_problem(current), startup_timeout / 60,
        )  # fmt: skip
        while current.status.phase in (PodPhase.PENDING, PodPhase.UNKNOWN):
            if time.monotonic() >= deadline:
                raise PodLaunchTimeoutException(
                    f"the pod did not start within {startup_timeout / 60:g} minutes: {image_problem(current)}"
                )
            await asyncio.sleep(check_interval)
            current = await self._read(pod)
        self.stop_watching_events = True
        self.log.info("The image was pulled after all: the pod has reached phase %s", current.status.phase)

    async def _read(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        answer: k8s.V1Pod | Awaitable[k8s.V1Pod] = self.read_pod(pod)
        return await answer if inspect.isawaitable(answer) else answer


def _seconds_on_node(pod: k8s.V1Pod, at_most: float) -> float:
    """For how long a pod has had its node, by the cluster's clock; between 0 and ``at_most``."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.last_transition_time:
            passed: float = (datetime.now(UTC) - condition.last_transition_time).total_seconds()
            return min(max(passed, 0.0), at_most)
    return 0.0


class StepPodManager(_WaitsForImage, PodManager):
    """Airflow's pod manager of a worker, which waits for images."""


class StepAsyncPodManager(_WaitsForImage, AsyncPodManager):
    """Airflow's pod manager of the triggerer, which waits for images."""
