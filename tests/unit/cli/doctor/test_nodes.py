"""The pod of a profile compared with descriptions of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from perennial.cli.doctor import nodes

NODE = {
    "metadata": {"name": "n1", "labels": {"pool": "ml"}},
    "spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]},
    "status": {
        "allocatable": {
            "cpu": "3920m", "memory": "8Gi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": "1", "pods": "10"
        },
        "conditions": [{"type": "Ready", "status": "True"}],
        "images": [{"names": ["docker.io/perennial/trainer:1.0", "quay.io/x@sha256:1"]}],
    },
}  # fmt: skip
TOLERATED = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}


def needing(**requests: str) -> dict[str, Any]:
    return {"containers": [{"resources": {"requests": requests}}]} | TOLERATED


@pytest.mark.parametrize(
    ("pod", "reason", "big_enough"),
    [
        (needing(cpu="3900m", memory="7Gi"), "", True),
        (needing(cpu="4"), "cpu: 4 needed, it has 3.92", False),
        (needing(memory="9Gi"), "memory: 9 GiB needed, it has 8 GiB", False),
        (needing(**{"nvidia.com/gpu": "2"}), "nvidia.com/gpu: 2 needed, it has 1", False),
        (needing(**{"amd.com/gpu": "1"}), "amd.com/gpu: 1 needed, it has 0", False),
        (needing(**{"ephemeral-storage": "60Gi"}), "ephemeral-storage: 60 GiB needed", False),
        (needing(cpu="1") | {"nodeSelector": {"pool": "web"}}, "label pool is 'ml', not 'web'", False),
        (needing(cpu="1") | {"tolerations": [{"key": "gpu", "value": "no"}]}, "taint gpu is not tolerated", False),
        (needing(cpu="1") | {"tolerations": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}, "", True),
        (needing(cpu="1") | {"tolerations": [{"operator": "Exists"}]}, "", True),
        (needing(cpu="1", **{"nvidia.com/gpu": "1"}), "", True),
    ],
)  # fmt: skip
def test_a_pod_is_compared_with_a_node(pod: dict[str, Any], reason: str, big_enough: bool) -> None:
    (fit,) = nodes.fits(pod, [NODE])
    assert fit.big_enough is big_enough and (reason in fit.reason if reason else not fit.reason), fit


def test_what_other_pods_use_is_not_free() -> None:
    others = [
        {"spec": {"nodeName": "n1", **needing(cpu="2", memory="1Gi")}},
        # limits count where nothing is requested; the largest container that runs before the others counts
        {"spec": {"nodeName": "n1", "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}],
                  "initContainers": [{"resources": {"requests": {"cpu": "1"}}}]}},
        {"spec": {"nodeName": "elsewhere", **needing(cpu="3")}},
    ]  # fmt: skip
    (fit,) = nodes.fits(needing(cpu="900m"), [NODE], others)
    assert not fit.reason
    (fit,) = nodes.fits(needing(cpu="1", **{"nvidia.com/gpu": "1"}), [NODE], others)
    assert fit.big_enough
    assert fit.occupied == (
        "cpu: 1 needed, 0.92 of 3.92 is free", "nvidia.com/gpu: 1 needed, 0 of 1 is free"
    )  # fmt: skip


@pytest.mark.parametrize("change", [{"unschedulable": True}, {}])
def test_a_node_that_takes_no_pods_is_excluded(change: dict[str, Any]) -> None:
    status = NODE["status"] | ({} if change else {"conditions": [{"type": "Ready", "status": "Unknown"}]})  # type: ignore[operator]
    (fit,) = nodes.fits(needing(cpu="1"), [NODE | {"spec": change, "status": status}])
    assert fit.reason == ("it is cordoned" if change else "it is not ready")


def test_images_of_a_node() -> None:
    assert nodes.has_image(NODE, "perennial/trainer:1.0")
    assert nodes.has_image(NODE, "perennial/trainer:1.1") is False
    many = [{"names": [f"i:{i}"]} for i in range(nodes.MAX_IMAGES_LISTED)]
    full = NODE | {"status": {"images": many}}
    assert nodes.has_image(full, "perennial/trainer:1.0") is None  # a kubelet lists no more
