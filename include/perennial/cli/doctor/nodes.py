"""Whether a pod fits the nodes of a cluster: their size, what is free on them, selectors, taints, images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["NodeFit", "fits", "has_image", "names_registry", "number", "pod_requests"]

_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
             "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip
#: Most images that a kubelet lists in the status of its node, by default.
MAX_IMAGES_LISTED = 50


def number(quantity: Any) -> float:
    """Convert a Kubernetes quantity, such as ``500m`` or ``2Gi``, to a number; 0 if it is invalid."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(quantity))
    return float(match[1]) * _SUFFIXES.get(match[2], 1.0) if match else 0.0


@dataclass(frozen=True)
class NodeFit:
    """Whether a pod can run on one node.

    Attributes:
        node: name of the node.
        excluded: why the node is not for this pod, whatever its size; empty if it is.
        too_small: what the node never has enough of.
        occupied: what the node has not enough of at present, because of other pods.
    """

    node: str
    excluded: str = ""
    too_small: tuple[str, ...] = ()
    occupied: tuple[str, ...] = ()

    @property
    def big_enough(self) -> bool:
        """Whether the pod could run on the node if nothing else did."""
        return not self.excluded and not self.too_small

    @property
    def reason(self) -> str:
        """Why the pod does not fit, in words; empty if it does."""
        return self.excluded or ", ".join(self.too_small or self.occupied)


def pod_requests(spec: dict[str, Any]) -> dict[str, float]:
    """What the scheduler reserves for a pod: the requests of its containers, or their limits where there are none.

    Args:
        spec: the pod's spec, as JSON.
    """
    needed = {"pods": 1.0}

    def amounts(container: dict[str, Any]) -> dict[str, float]:
        resources = container.get("resources") or {}
        given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        return {name: number(value) for name, value in given.items()}

    for container in spec.get("containers") or []:
        for name, value in amounts(container).items():
            needed[name] = needed.get(name, 0.0) + value
    for container in spec.get("initContainers") or []:
        for name, value in amounts(container).items():
            needed[name] = max(needed.get(name, 0.0), value)
    return needed


def fits(
    spec: dict[str, Any], nodes: Iterable[dict[str, Any]], pods: Iterable[dict[str, Any]] = ()
) -> list[NodeFit]:
    """Compare a pod with each node. Affinities are not considered.

    Args:
        spec: the pod's spec, as JSON.
        nodes: the nodes, as JSON.
        pods: the pods that run or wait on them, as JSON.
    """
    needed = pod_requests(spec)
    used: dict[str, dict[str, float]] = {}
    for pod in pods:
        on_node = used.setdefault(pod["spec"].get("nodeName") or "", {})
        for name, value in pod_requests(pod["spec"]).items():
            on_node[name] = on_node.get(name, 0.0) + value
    return [_fit(spec, needed, node, used.get(node["metadata"]["name"], {})) for node in nodes]


def _fit(
    spec: dict[str, Any], needed: dict[str, float], node: dict[str, Any], used: dict[str, float]
) -> NodeFit:
    name = node["metadata"]["name"]
    if excluded := next(_exclusions(spec, node), ""):
        return NodeFit(name, excluded)
    allocatable = node["status"].get("allocatable") or {}
    too_small, occupied = [], []
    for resource, amount in needed.items():
        size = number(allocatable.get(resource, "0"))
        free = max(0.0, size - used.get(resource, 0.0))
        if amount > size:
            too_small.append(f"{resource}: {_text(resource, amount)} needed, it has {_text(resource, size)}")
        elif amount > free:
            occupied.append(
                f"{resource}: {_text(resource, amount)} needed, {_text(resource, free)} of "
                f"{_text(resource, size)} is free"
            )
    return NodeFit(name, "", tuple(too_small), tuple(occupied))


def _exclusions(spec: dict[str, Any], node: dict[str, Any]) -> Iterator[str]:
    """Why the node is not for the pod."""
    labels = node["metadata"].get("labels") or {}
    for key, value in (spec.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            yield f"its label {key} is {labels.get(key)!r}, not {value!r}"
    if node["spec"].get("unschedulable"):
        yield "it is cordoned"
    tolerations = spec.get("tolerations") or []
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] in ("NoSchedule", "NoExecute") and not any(
            _tolerates(toleration, taint) for toleration in tolerations
        ):
            yield f"its taint {taint['key']} is not tolerated"
    conditions = {c["type"]: c["status"] for c in node["status"].get("conditions") or []}
    if conditions.get("Ready", "True") != "True":
        yield "it is not ready"


def _tolerates(toleration: dict[str, Any], taint: dict[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (
        taint.get("value") or ""
    )


def _text(resource: str, amount: float) -> str:
    """An amount as people write it: memory and disk in GiB."""
    if resource in ("memory", "ephemeral-storage"):
        return f"{amount / 2**30:.3g} GiB"
    return f"{amount:.4g}"


def names_registry(image: str) -> bool:
    """Whether the name of an image begins with a registry."""
    first, slash, _ = image.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def has_image(node: dict[str, Any], image: str) -> bool | None:
    """Whether a node lists an image among those that it has; None if its list may be incomplete."""
    listed = node["status"].get("images") or []
    names = {name for item in listed for name in item.get("names") or []}
    spellings = (
        {image} if names_registry(image) else {f"docker.io/{image}", f"docker.io/library/{image}", image}
    )
    if names & spellings:
        return True
    return None if len(listed) >= MAX_IMAGES_LISTED else False
