"""What the network policies let through, judged as Kubernetes does: a table of connections, allowed and refused.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml

from perennial.core.settings import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
Policies = list[dict[str, Any]]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, by its namespace and labels, or a host, by its address."""

    address: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)


STEP = Peer("10.1.0.5", "perennial", {"app.kubernetes.io/part-of": "perennial", "perennial/step": "train"})
TRAINER = Peer("10.1.0.6", "perennial", {"perennial/role": "trainer"})
WORKER = Peer("10.1.0.7", "perennial", {"perennial/role": "worker"})
MLFLOW = Peer("10.1.0.8", "mlflow", {"app.kubernetes.io/name": "mlflow"})
AIRFLOW = Peer("10.1.0.9", "airflow", {"component": "worker"})
DNS = Peer("10.1.0.10", "kube-system", {"k8s-app": "kube-dns"})
STRANGER = Peer("10.1.0.11", "default", {"app.kubernetes.io/name": "mlflow"})
NODE_LOCAL_DNS, POD_IDENTITY, METADATA = (
    Peer("169.254.20.10"), Peer("169.254.170.23"), Peer("169.254.169.254"),
)  # fmt: skip
PUBLIC, PRIVATE = Peer("52.218.0.10"), Peer("10.9.0.1")


def policies() -> Policies:
    """The policies of ``network.yaml``."""
    return list(yaml.safe_load_all((FOLDER / "network.yaml").read_text("utf-8")))


NAMESPACES = {
    item["metadata"]["name"]: item["metadata"]["labels"]
    for item in yaml.safe_load_all((FOLDER / "namespaces.yaml").read_text("utf-8"))
} | {"default": {}, "kube-system": {}}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    assert all(e["operator"] == "In" for e in selector.get("matchExpressions", ()))
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ())
    )


def is_peer(item: dict[str, Any], peer: Peer, namespace: str) -> bool:
    """Whether a peer is one of those that a rule names; ``namespace`` is the policy's own."""
    if block := item.get("ipBlock"):  # meant for addresses outside the cluster
        address = ip_address(peer.address)
        outside = any(address in ip_network(cidr) for cidr in block.get("except", ()))
        return not peer.namespace and address in ip_network(block["cidr"]) and not outside
    if not peer.namespace:
        return False
    if "namespaceSelector" in item:
        here = selects(item["namespaceSelector"], NAMESPACES[peer.namespace])
    else:
        here = peer.namespace == namespace
    return here and selects(item.get("podSelector", {}), peer.labels)


def is_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    """Whether a rule names a port; one that names none means all."""
    return "ports" not in rule or any(
        p.get("protocol", "TCP") == protocol and p.get("port", port) == port for p in rule["ports"]
    )


def lets(every: Policies, pod: Peer, other: Peer, port: int, protocol: str, direction: str) -> bool:
    """Whether the policies of ``pod`` let it send to (``egress``) or receive from (``ingress``) another peer."""
    mine = [
        p for p in every
        if p["metadata"]["namespace"] == pod.namespace and direction.title() in p["spec"]["policyTypes"]
        and selects(p["spec"]["podSelector"], pod.labels)
    ]  # fmt: skip
    end = "to" if direction == "egress" else "from"
    return not mine or any(
        is_port(rule, port, protocol)
        and (end not in rule or any(is_peer(item, other, pod.namespace) for item in rule[end]))
        for policy in mine
        for rule in policy["spec"].get(direction, ())
    )


def connects(every: Policies, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is let through at both ends."""
    return (not source.namespace or lets(every, source, target, port, protocol, "egress")) and (
        not target.namespace or lets(every, target, source, port, protocol, "ingress")
    )


ALLOWED = [
    *((pod, DNS, 53, protocol) for pod in (STEP, MLFLOW) for protocol in ("UDP", "TCP")),
    *((pod, NODE_LOCAL_DNS, 53, protocol) for pod in (STEP, MLFLOW) for protocol in ("UDP", "TCP")),
    (STEP, MLFLOW, 5000, "TCP"), (AIRFLOW, MLFLOW, 5000, "TCP"),
    (STEP, PUBLIC, 443, "TCP"), (MLFLOW, PUBLIC, 443, "TCP"),
    (STEP, POD_IDENTITY, 80, "TCP"), (MLFLOW, POD_IDENTITY, 80, "TCP"),
    (MLFLOW, PRIVATE, 5432, "TCP"),
    (TRAINER, WORKER, 40123, "TCP"), (WORKER, TRAINER, 8786, "TCP"), (WORKER, WORKER, 9, "TCP"),
]  # fmt: skip
REFUSED = [
    *((pod, PUBLIC, port, "TCP") for pod in (STEP, TRAINER, WORKER, MLFLOW) for port in (22, 53, 80, 8080)),
    *((pod, PUBLIC, port, "UDP") for pod in (STEP, TRAINER, WORKER, MLFLOW) for port in (53, 443)),
    *((pod, METADATA, port, "TCP") for pod in (STEP, TRAINER, WORKER, MLFLOW) for port in (80, 443)),
    *((pod, PRIVATE, port, "TCP") for pod in (STEP, TRAINER, WORKER) for port in (80, 443, 5432, 8080)),
    *((STEP, Peer(address), 443, "TCP") for address in ("172.20.0.1", "192.168.1.1", "100.64.0.1")),
    (MLFLOW, PRIVATE, 443, "TCP"), (STEP, PUBLIC, 5432, "TCP"), (STEP, MLFLOW, 5432, "TCP"),
    (STEP, STRANGER, 5000, "TCP"), (STEP, AIRFLOW, 8080, "TCP"),
    (STEP, POD_IDENTITY, 443, "TCP"), (STEP, NODE_LOCAL_DNS, 80, "TCP"), (STEP, DNS, 80, "TCP"),
    (STRANGER, MLFLOW, 5000, "TCP"), (PUBLIC, MLFLOW, 5000, "TCP"), (AIRFLOW, MLFLOW, 22, "TCP"),
    *((other, pod, 8786, "TCP") for pod in (STEP, TRAINER) for other in (STEP, MLFLOW, AIRFLOW, STRANGER, PUBLIC)),
    (TRAINER, STEP, 8786, "TCP"), (TRAINER, WORKER, 8786, "UDP"),
]  # fmt: skip


def wrong(every: Policies) -> list[str]:
    """The connections of the two tables that the policies judge otherwise."""
    return [
        f"{source} -> {target} {protocol} {port} is {'refused' if expected else 'let through'}"
        for table, expected in ((ALLOWED, True), (REFUSED, False))
        for source, target, port, protocol in table
        if connects(every, source, target, port, protocol) is not expected
    ]


def test_the_policies_let_through_what_the_documents_say_and_nothing_else() -> None:
    assert not wrong(policies())


def named(every: Policies, name: str, namespace: str = "perennial") -> dict[str, Any]:
    (policy,) = [p for p in every if (p["metadata"]["name"], p["metadata"]["namespace"]) == (name, namespace)]
    return dict(policy["spec"])


CHANGES: dict[str, Callable[[Policies], Any]] = {
    "open to the internet": lambda every: every.append(
        {"metadata": {"name": "open", "namespace": "perennial"},
         "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}}
    ),
    "any port": lambda every: named(every, "s3")["egress"][0].pop("ports"),
    "the nodes' metadata": lambda every: named(every, "s3")["egress"][0]["to"][0]["ipBlock"].pop("except"),
    "no Pod Identity": lambda every: named(every, "pod-identity")["egress"].clear(),
    "no NodeLocal DNS": lambda every: named(every, "dns")["egress"][0]["to"].pop(),
    "no default": lambda every: every.remove(
        next(p for p in every if p["metadata"] | {"labels": 0}
             == {"name": "default-deny", "namespace": "perennial", "labels": 0})
    ),
    "MLflow by anyone": lambda every: named(every, "mlflow", "mlflow")["ingress"][0].pop("from"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_policy_that_lets_through_too_much_or_too_little_is_noticed(change: str) -> None:
    changed = copy.deepcopy(policies())
    CHANGES[change](changed)
    assert wrong(changed)


def test_cilium_lets_pods_reach_named_hosts_of_the_region_and_no_pattern() -> None:
    folder = ROOT / "docker" / "kubernetes"
    policy = yaml.safe_load((folder / "egress-cilium.yaml").read_text("utf-8"))
    assert policy["metadata"]["namespace"] == "perennial" and policy["spec"]["endpointSelector"] == {}
    assert not {"toCIDR", "toCIDRSet", "toEntities"} & {
        key for rule in policy["spec"]["egress"] for key in rule
    }
    (named,) = [rule for rule in policy["spec"]["egress"] if "toFQDNs" in rule]
    assert all(list(host) == ["matchName"] for host in named["toFQDNs"])
    values = yaml.safe_load((folder / "values-airflow.yaml").read_text("utf-8"))
    given = {item["name"]: item["value"] for item in values["env"]}
    suffix = f"s3.{given['AWS_REGION']}.amazonaws.com"
    buckets = {given[name].removeprefix("s3://") for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING")}
    hosts = {host["matchName"] for host in named["toFQDNs"]}
    assert hosts == {suffix, f"sts.{given['AWS_REGION']}.amazonaws.com", *(f"{b}.{suffix}" for b in buckets)}
    assert named["toPorts"] == [{"ports": [{"port": "443", "protocol": "TCP"}]}]
