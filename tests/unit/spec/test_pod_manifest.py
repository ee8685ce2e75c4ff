"""The manifest of a step's pod; the tests on a cluster are in tests/integration/kubernetes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.errors import PerennialError
from perennial.spec import compute_profile, pod_manifest
from perennial.spec.compute_profile import ComputeProfile
from support import toys


def make_pod(tmp_path: Path, profile: ComputeProfile, **changes: Any) -> dict[str, Any]:
    spec = toys.model(tmp_path / "models", "toy", owner="Team Ø / forecasts")
    options = {"memory": profile.memory, "interruptions": 0} | changes
    return pod_manifest.step_pod(profile, spec, "train", ["run", "train"], **options)


def test_it_meets_the_restricted_standard(remote_lake: Path, tmp_path: Path) -> None:
    pod = make_pod(tmp_path, ComputeProfile(name="p", kind="kubernetes"))
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/scratch", "/tmp"}
    assert "very secret" not in json.dumps(pod)


def test_a_pod_gets_the_connections_of_its_step_from_secrets(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", "postgresql://ann:very secret@db/shop")
    source = {"sql": "SELECT * FROM t WHERE seen_at >= {start}", "connection": "shop"}
    spec = toys.model(tmp_path / "models", "queried", data={"source": source})

    def made(step: str, **profile: object) -> str:
        return json.dumps(
            pod_manifest.step_pod(
                ComputeProfile.model_validate({"name": "p", "kind": "kubernetes"} | profile), spec, step, ["run"],
                memory="1Gi", interruptions=0,
            )
        )  # fmt: skip

    with pytest.raises(PerennialError, match="does not get connection shop"):
        made("data")
    secret = {"env": "PERENNIAL_CONNECTION_SHOP", "secret": "shop", "key": "uri"}
    for pod in (made("data", secrets=[secret]), made("data", secret_env=["shop"]), made("train")):
        assert "very secret" not in pod
    with pytest.raises(ValueError, match="name a Kubernetes secret"):
        made("data", env={"PERENNIAL_CONNECTION_SHOP": "postgresql://ann:pw@db/shop"})


def test_every_step_gets_the_trusted_keys_and_only_the_training_the_private_one(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The private key by reference; of the trusted ones the content, because their files are not in the pod."""
    public = "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----"
    (tmp_path / "public.pem").write_text(public)
    monkeypatch.setenv("PERENNIAL_TRUSTED_KEYS", str(tmp_path / "public.pem"))
    since = f"toy=12:{'0a' * 32}"
    monkeypatch.setenv("PERENNIAL_SIGNED_SINCE", since)
    certificate = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----"
    (tmp_path / "certificate.pem").write_text(f"{certificate}\n{certificate}\n")
    monkeypatch.setenv("PERENNIAL_SIGNING_CERTIFICATE", str(tmp_path / "certificate.pem"))
    monkeypatch.setenv("PERENNIAL_SIGNING_KEY", "very secret")
    secret = {"env": "PERENNIAL_SIGNING_KEY", "secret": "perennial-signing", "key": "private.pem"}
    profile = ComputeProfile.model_validate({"name": "p", "kind": "kubernetes", "secrets": [secret]})
    spec = toys.model(tmp_path / "models", "toy")

    def environment(step: str, role: str | None = None) -> dict[str, Any]:
        pod = pod_manifest.step_pod(
            profile, spec, step, ["run", step], memory="1Gi", interruptions=0, role=role
        )
        assert "very secret" not in json.dumps(pod)
        return {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}

    for step, role in (("train", None), ("train", "trainer"), ("train", "worker"), ("score", None)):
        variables = environment(step, role)
        assert variables["PERENNIAL_TRUSTED_KEYS"] == public
        assert variables["PERENNIAL_SIGNED_SINCE"] == since
        signs = step == "train" and role != "worker"
        assert ("PERENNIAL_SIGNING_KEY" in variables) == signs
        assert variables.get("PERENNIAL_SIGNING_CERTIFICATE") == (
            f"{certificate}\n{certificate}" if signs else None
        )
    (tmp_path / "certificate.pem").unlink()
    environment("score")  # which does not need it
    with pytest.raises(PerennialError, match="cannot be read"):
        environment("train")


def test_the_profile_decides(remote_lake: Path, tmp_path: Path) -> None:
    profile = ComputeProfile(
        name="p", kind="kubernetes", image="i:1", cpu="1500m", memory="2Gi", gpu={"count": 2, "kind": "H200"},
        queue="q", priority_class="high", service_account="sa", pull_secrets=["pull"], spot=True, run_minutes=5,
        node_selector={"pool": "ml"}, tolerations=[{"key": "t", "operator": "Exists"}],
        secrets=[{"env": "TOKEN", "secret": "s", "key": "k"}], secret_env=["aws"], env={"A": "1"},
        labels={"cost_centre": "42"},
    )  # fmt: skip
    pod = make_pod(tmp_path, profile, memory="4Gi", interruptions=2)
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert container["resources"]["limits"] == {
        "memory": "4Gi",
        "ephemeral-storage": "4Gi",
        "nvidia.com/gpu": "2",
    }
    assert container["resources"]["requests"]["cpu"] == "1500m"
    env = {e["name"]: e.get("value") for e in container["env"]}
    # the plan is of the first memory, whichever attempt this is
    assert (env["PERENNIAL_MEMORY_MB"], env["PERENNIAL_THREADS"], env["A"]) == ("1536", "1", "1")
    assert env["PERENNIAL_LAKE"] == "s3://b/lake" and env["TOKEN"] is None
    assert container["envFrom"] == [{"secretRef": {"name": "aws"}}]
    assert spec["nodeSelector"] == {"pool": "ml", "nvidia.com/gpu.product": "H200"}
    assert spec["priorityClassName"] == "high" and spec["serviceAccountName"] == "sa"
    assert spec["activeDeadlineSeconds"] == 300 and "affinity" in spec
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    labels = pod["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "q" and labels["cost_centre"] == "42"
    assert labels["perennial/team"] == "Team-forecasts" and labels["perennial/step"] == "train"
    assert pod["metadata"]["annotations"] == {"perennial/memory": "4Gi", "perennial/interruptions": "2"}


def test_template_then_profile_then_step_and_lists_merge_by_name(remote_lake: Path, tmp_path: Path) -> None:
    template = {
        "metadata": {"labels": {"from": "template", "perennial/step": "none"}},
        "spec": {
            "hostAliases": [{"ip": "1.2.3.4"}],
            "tolerations": [{"key": "template"}],
            "containers": [
                {"name": "base", "image": "overridden:1",
                 "env": [{"name": "A", "value": "t"}, {"name": "T", "value": "t"}]},
                {"name": "beside", "image": "proxy:1"},
            ],
            "volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory"}}, {"name": "own", "emptyDir": {}}],
        },
    }  # fmt: skip
    (remote_lake / "base.yaml").write_text(yaml.safe_dump(template))
    content = {"name": "p", "kind": "kubernetes", "template": "base.yaml", "env": {"A": "p"}, "image": "i:1",
            "tolerations": [{"key": "profile"}]}  # fmt: skip
    (remote_lake / "p.yaml").write_text(yaml.safe_dump(content))
    pod = make_pod(tmp_path, compute_profile.load_profile("p"))
    base, beside = pod["spec"]["containers"]
    assert (base["name"], base["image"], beside["image"]) == ("base", "i:1", "proxy:1")
    env = {e["name"]: e["value"] for e in base["env"]}
    assert env["A"] == "p" and env["T"] == "t"
    assert (
        pod["metadata"]["labels"]["perennial/step"] == "train"
        and pod["metadata"]["labels"]["from"] == "template"
    )
    assert [t["key"] for t in pod["spec"]["tolerations"]] == ["template", "profile"]
    assert pod["spec"]["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert pod["spec"]["hostAliases"] == [{"ip": "1.2.3.4"}]


def test_a_lake_in_a_folder_is_refused(empty_home: Path, tmp_path: Path) -> None:
    with pytest.raises(PerennialError, match=r"PERENNIAL_LAKE is .* a folder of this machine"):
        make_pod(tmp_path, ComputeProfile(name="p", kind="kubernetes"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in (
            "localhost", "LocalHost", "localhost.", "mlflow.localhost", "localhost.localdomain", "ip6-localhost",
            "127.0.0.1", "127.8.8.8", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "127.0.0.1.", "0.0.0.0", "0",
            "[::1]", "[0:0:0:0:0:0:0:1]", "[::1%lo]", "[::ffff:127.0.0.1]", "[::]",
        )),
        *((host, False) for host in (
            "mlflow.mlflow", "localhost.example.com", "notlocalhost", "10.0.0.127", "127.example.com", "128.0.0.1",
            "[fd00::1]", "[::ffff:10.0.0.1]", "host.docker.internal",
        )),
    ],
)  # fmt: skip
def test_loopback_in_every_spelling(host: str, expected: bool) -> None:
    for url in (f"http://{host}:5000", f"https://user:word@{host}/path", f"HTTP://{host}"):
        assert pod_manifest.is_loopback(url) is expected, url


def test_only_addresses_are_read_as_such() -> None:
    for text in (
        "",
        "localhost",
        "127.0.0.1",
        "localhost:5000",
        "s3://bucket/localhost",
        "http://[broken",
        "1",
    ):
        assert not pod_manifest.is_loopback(text)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_address_that_only_this_machine_reaches_is_refused(
    name: str, remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:5000")
    expected = f"{name} is http://127.0.0.1:5000, the loopback address of this machine: a pod of profile p cannot reach"
    with pytest.raises(PerennialError, match=expected) as caught:
        make_pod(tmp_path, ComputeProfile(name="p", kind="kubernetes"))
    assert f"set {name} to an address that pods can reach" in caught.value.remedy
    assert ("PERENNIAL_MLFLOW_HOST" in caught.value.remedy) == (name == "MLFLOW_TRACKING_URI")
    # what counts is what the pod is handed: the profile may name another address, or such a one
    other = {name: "http://192.0.2.7:5000"}
    make_pod(tmp_path, ComputeProfile(name="p", kind="kubernetes", env=other))
    monkeypatch.setenv(name, "http://192.0.2.7:5000")
    with pytest.raises(PerennialError, match="OTHER_URL is http://localhost, the loopback"):
        make_pod(tmp_path, ComputeProfile(name="p", kind="kubernetes", env={"OTHER_URL": "http://localhost"}))


def test_the_default_address_of_mlflow_is_refused(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(PerennialError, match=r"MLFLOW_TRACKING_URI is http://127\.0\.0\.1:5000"):
        make_pod(tmp_path, ComputeProfile(name="p", kind="kubernetes"))


@pytest.mark.parametrize(
    "served", [{"hostNetwork": True}, {"containers": [{"name": "proxy", "image": "proxy:1"}]}]
)
def test_a_template_may_serve_the_loopback_address(
    served: dict[str, Any], remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    (remote_lake / "p.yaml").write_text(
        yaml.safe_dump({"name": "p", "kind": "kubernetes", "template": "base.txt"})
    )
    (remote_lake / "base.txt").write_text(yaml.safe_dump({"spec": {"hostAliases": []}}))
    with pytest.raises(PerennialError, match="loopback"):
        make_pod(tmp_path, compute_profile.load_profile("p"))
    (remote_lake / "base.txt").write_text(yaml.safe_dump({"spec": served}))
    pod = make_pod(tmp_path, compute_profile.load_profile("p"))
    (item,) = pod_manifest.unreachable_values(compute_profile.load_profile("p"), pod)
    assert (item.variable, item.certain) == ("MLFLOW_TRACKING_URI", False)


@pytest.mark.parametrize(
    ("text", "value"),
    [("a b", "a-b"), ("x" * 80, "x" * 63), ("-odd-", "odd"), ("µ", ""), ("ok_1.2", "ok_1.2")],
)
def test_labels_are_what_kubernetes_takes(text: str, value: str) -> None:
    assert pod_manifest.label_value(text) == value


def test_workers_are_made_as_their_trainer_is(remote_lake: Path, tmp_path: Path) -> None:
    profile = ComputeProfile(
        name="p", kind="kubernetes", workers=2, gpu={"count": 1, "kind": "H200"}, node_selector={"pool": "ml"},
        wait_minutes=4, start_minutes=2,
    )  # fmt: skip
    alone = make_pod(tmp_path, profile)
    trainer = make_pod(
        tmp_path, profile, role="trainer", annotations={pod_manifest.RENDEZVOUS_ANNOTATION: "s3://b/m"}
    )
    worker = make_pod(tmp_path, profile, role="worker")
    assert "perennial/role" not in alone["metadata"]["labels"]
    assert trainer["metadata"]["annotations"][pod_manifest.RENDEZVOUS_ANNOTATION] == "s3://b/m"
    for pod, role in ((trainer, "trainer"), (worker, "worker")):
        labels = pod["metadata"]["labels"]
        assert (labels["perennial/step"], labels["perennial/role"]) == ("train", role)
        container = pod["spec"]["containers"][0]
        assert {"name": "PERENNIAL_WORKERS_MINUTES", "value": "6"} in container["env"]
        assert pod["spec"]["nodeSelector"]["pool"] == "ml"
    # one GPU a worker, and none for the one that leads them
    assert worker["spec"] == alone["spec"]
    assert worker["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in trainer["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu.product" not in trainer["spec"]["nodeSelector"]
