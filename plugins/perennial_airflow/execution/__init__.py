"""Where a step runs: in this process, or in pods of a cluster, as its compute profile says; and in which order.

`runner` decides; `pods` is the only module that makes pod operators. `pods`, `step_pod` and all whose names begin with
`pod_` import the Kubernetes provider, which takes seconds: they are imported only by a task whose step runs in a pod.
"""

__all__ = [
    "drills",
    "earlier_runs",
    "erasure",
    "maintenance",
    "operators",
    "pod_outcome",
    "pod_start",
    "pod_trigger",
    "pod_trigger_eks",
    "pods",
    "retention",
    "runner",
    "step_pod",
    "verification",
]
