"""The trigger of a deferred task that waits for its step's pod on Amazon EKS.

Airflow stores its import path: it stays in this module. It is not in `pod_trigger`, because Amazon's provider takes a
second to import.
"""

from __future__ import annotations

from airflow.providers.amazon.aws.triggers.eks import EksPodTrigger

from perennial_airflow.execution.pod_trigger import StepPodTrigger


class EksStepPodTrigger(StepPodTrigger, EksPodTrigger):
    """Amazon's trigger, which renews the credentials, except that it waits for images."""
