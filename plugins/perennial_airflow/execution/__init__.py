"""Where a step runs: in this process, or in pods of a cluster, as its compute profile says.

`runner` decides; `pods` is the only module that makes pod operators. `pods`, `step_pod` and `pod_outcome` import the
Kubernetes provider, which takes seconds: they are imported only by a task whose step runs in a pod.
"""

__all__ = ["maintenance", "operators", "pod_outcome", "pods", "runner", "step_pod"]
