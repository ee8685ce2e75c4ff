"""`perennial doctor` against real servers: healthy, broken in one way each, and dead."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.cli.doctor import cluster, environment, finding, nodes
from perennial.core import signing_keys
from perennial.spec.compute_profile import ComputeProfile
from support import servers, toys, trouble


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def clean(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that says nothing of AWS or of a cluster; one model."""
    for name in list(os.environ):
        if name.startswith(
            ("AWS_", "AIRFLOW_CONN_", "PERENNIAL_PROFILE", "PERENNIAL_TRAINER", "PERENNIAL_COMPUTE")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    toys.model(tmp_path / "models", "toy")
    return tmp_path


@pytest.fixture
def proxy(clean: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[trouble.Proxy]:
    """Lake and landing area in a bucket of their own, behind a proxy."""
    import boto3

    bucket = toys.unique("bucket").replace("_", "-")
    with trouble.between(s3_url) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
            "PERENNIAL_LAKE": f"s3://{bucket}/lake", "PERENNIAL_LANDING": f"s3://{bucket}/landing",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3", endpoint_url=s3_url)
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key="landing/rows.parquet", Body=b"x")
        yield proxy
        left = [o["Key"] for o in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
        assert left == ["landing/rows.parquet"] or any(f.kind == "forbidden" for f in proxy.faults)


@pytest.fixture
def profile(clean: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a compute profile."""
    folder = clean / "compute"
    folder.mkdir()
    monkeypatch.setenv("PERENNIAL_COMPUTE", str(folder))

    def make(**changes: Any) -> str:
        values = {
            "name": "pods",
            "kind": "kubernetes",
            "namespace": "there-is-no-such",
            "cpu": "100m",
        } | changes
        (folder / "pods.yaml").write_text(yaml.safe_dump(values))
        return "pods"

    return make


def states(*profiles: str) -> dict[str, finding.Finding]:
    return {f.what: f for f in environment.examine(profiles)}


def test_the_checks_pass_on_a_laptop(clean: Path, mlflow_home: Path) -> None:
    findings = states()
    assert {f.what for f in findings.values() if f.state == "missing"} == set()
    assert findings["models"].detail.endswith("toy")
    assert findings["profile local"].detail.startswith("local, used by ")
    assert findings["lake"].state == "ok"
    assert findings["landing area"].state == "warning"  # nothing has landed
    assert findings["MLflow: artifacts"].state == "ok"
    assert not (mlflow_home / "lake").exists()  # asking leaves nothing behind


def test_s3_is_tried_in_every_way_that_steps_need(proxy: trouble.Proxy) -> None:
    findings = states()
    for what in ("write", "read", "conditional writes", "remove"):
        assert findings[f"lake: {what}"].state == "ok", findings
    assert findings["landing area: read"].state == "ok"


@pytest.mark.parametrize(
    ("kind", "method", "what", "remedy"),
    [
        ("blind", "PUT", "lake: conditional writes", "supports If-None-Match"),
        ("forbidden", "PUT", "lake: write", "s3:PutObject"),
        ("forbidden", "DELETE", "lake: remove", "s3:DeleteObject"),
    ],
)
def test_what_s3_does_not_do_is_named(
    proxy: trouble.Proxy, kind: Any, method: str, what: str, remedy: str
) -> None:
    proxy.add(kind, 99, method, r"\.doctor")
    findings = states()
    assert findings[what].state == "missing"
    assert remedy in findings[what].remedy


def test_a_bucket_that_may_not_be_listed_or_is_not_there(
    proxy: trouble.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = os.environ["PERENNIAL_LANDING"].split("/")[2]
    proxy.add("forbidden", 99, "GET", "landing")
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://there-is-no-such-bucket/lake")
    findings = states()
    assert "s3:ListBucket" in findings[f"landing area: bucket {bucket}"].remedy
    assert "aws s3 mb s3://there-is-no-such-bucket" in findings["lake: bucket there-is-no-such-bucket"].remedy


def test_an_eks_cluster_is_looked_up(proxy: trouble.Proxy, s3_url: str) -> None:
    import boto3

    values = {"name": "p", "kind": "eks", "cluster": "night", "region": "eu-central-1"}
    profile = ComputeProfile.model_validate(values)
    (result,) = cluster._eks(profile)
    assert result.state == "missing"
    assert "eks:DescribeCluster" in result.remedy
    eks = boto3.client("eks", region_name="eu-central-1", endpoint_url=s3_url)
    role = "arn:aws:iam::123456789012:role/eks"
    eks.create_cluster(name="night", roleArn=role, resourcesVpcConfig={})
    (result,) = cluster._eks(profile)
    assert (result.state, result.detail) == ("ok", "status ACTIVE")


@pytest.mark.parametrize("dead", ["refused", "silent"])
def test_dead_servers_are_reported_in_seconds(
    dead: str, proxy: trouble.Proxy, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "REQUEST_SECONDS", 0.5)
    with socket.socket() as ear:  # takes connections, and says nothing
        ear.bind(("127.0.0.1", 0))
        ear.listen(64)
        port = ear.getsockname()[1] if dead == "silent" else 9
        url = f"http://127.0.0.1:{port}"
        config = Path(os.environ["PERENNIAL_COMPUTE"], "kubeconfig")
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }))  # fmt: skip
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "MLFLOW_TRACKING_URI": url,
            "KUBECONFIG": str(config),
        }.items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        findings = states(profile())
        assert time.monotonic() - began < 20
    bucket = os.environ["PERENNIAL_LAKE"].split("/")[2]
    for what in (f"lake: bucket {bucket}", f"landing area: bucket {bucket}", "MLflow", "pods: API"):
        assert findings[what].state == "missing"
        assert findings[what].remedy


def test_a_check_that_hangs_or_breaks_hides_no_other() -> None:
    def hangs() -> Iterator[finding.Finding]:
        yield finding.Finding("first", "ok", "fine")
        time.sleep(5)

    def breaks() -> Iterator[finding.Finding]:
        yield finding.Finding("first", "ok", "fine")
        raise ZeroDivisionError("a division by zero it was")

    slow = finding.run_with_time_limit("it", hangs, 0.2)
    assert [(f.what, f.state) for f in slow] == [("first", "ok"), ("it", "missing")]
    assert "no answer within 0.2 seconds" in slow[1].detail
    broken = finding.run_with_time_limit("it", breaks)
    assert broken[1].detail == "could not be checked: a division by zero it was"


def test_pods_cannot_see_a_folder(
    clean: Path, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "examine", lambda _: [])
    assert states()["PERENNIAL_LAKE"].state == "ok"
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING"):
        assert states(profile())[name].state == "missing"
        assert "s3://" in states(profile())[name].remedy
    Path(os.environ["PERENNIAL_COMPUTE"], "pod.yaml.txt").write_text("{}")
    assert states(profile(template="pod.yaml.txt"))["PERENNIAL_LAKE"].state == "warning"
    monkeypatch.setenv("PERENNIAL_PROFILE", "pods")  # in use, without being named
    assert states()["profile pods"].detail.endswith("more")


def test_pods_cannot_reach_the_loopback_address(
    clean: Path, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "examine", lambda _: [])
    monkeypatch.setattr(finding, "REQUEST_SECONDS", 0.5)
    for name, value in {
        "MLFLOW_TRACKING_URI": "http://localhost:9", "AWS_ENDPOINT_URL": "http://127.1:9", "AWS_REGION": "us-east-1",
        "PERENNIAL_LAKE": "s3://b/lake", "PERENNIAL_LANDING": "s3://b/landing",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert not {"MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"} & set(states())  # no step runs in a pod
    findings = states(profile())
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        assert findings[name].state == "missing"
        assert (
            "the loopback address of this machine, which pods of profile pods cannot" in findings[name].detail
        )
        assert f"set {name} to an address that pods can reach" in findings[name].remedy
    assert findings["PERENNIAL_LAKE"].state == "ok"
    findings = states(profile(env={"MLFLOW_TRACKING_URI": "http://192.0.2.7:5000"}))
    assert "MLFLOW_TRACKING_URI" not in findings and findings["AWS_ENDPOINT_URL"].state == "missing"


def test_pods_that_train_need_the_signing_key(
    empty_home: Path, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "examine", lambda _: [])
    what = "signing key of profile pods"
    assert what not in states(profile()), "nothing is verified"
    assert signing_keys.make_local_keys(empty_home)
    finding_of = states(profile())[what]
    assert finding_of.state == "missing"
    assert "create secret generic perennial-signing --from-file private.pem=" in finding_of.remedy
    key = {"env": "PERENNIAL_SIGNING_KEY", "secret": "perennial-signing", "key": "private.pem"}
    assert states(profile(secrets=[key]))[what].state == "ok"
    assert what not in states(), "no step runs in a pod"


def test_broken_models_profiles_and_settings_are_reported(
    clean: Path, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / "models" / "toy" / "features.sql").unlink()
    monkeypatch.setattr(cluster, "examine", lambda _: [])
    profile(cpu="lots")
    findings = states("pods", "no_such")
    assert (
        findings["model toy"].state
        == findings["profile pods"].state
        == findings["profile no_such"].state
        == "missing"
    )
    assert "features.sql" in findings["model toy"].detail
    monkeypatch.setenv("PERENNIAL_THREADS", "many")
    assert "PERENNIAL_THREADS is 'many'" in states()["settings"].detail


@pytest.mark.parametrize(
    ("image", "state"),
    [
        ("1.dkr.ecr.eu-central-1.amazonaws.com/perennial/trainer:0.1.0", "ok"),
        ("perennial/trainer@sha256:" + "0" * 64, "warning"),
        ("localhost:5000/trainer@sha256:" + "0" * 64, "ok"),
        ("perennial/trainer:0.1.0", "warning"),
        ("registry.example.com:5000/trainer", "missing"),
        ("registry.example.com/trainer:latest", "missing"),
    ],
)
def test_an_image_is_pinned_and_names_its_registry(image: str, state: str) -> None:
    profile = ComputeProfile.model_validate({"name": "p", "kind": "kubernetes", "image": image})
    (result,) = cluster._image(profile)
    assert result.state == state


@pytest.mark.parametrize("tag", ["0.1.0", "latest"])
def test_the_remedy_for_an_image_names_the_setting_that_decides(
    tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_TRAINER_IMAGE", f"perennial/trainer:{tag}")
    (result,) = cluster._image(ComputeProfile(name="p", kind="kubernetes"))
    assert (
        result.detail.startswith(f"perennial/trainer:{tag} ") and "PERENNIAL_TRAINER_IMAGE" in result.remedy
    )
    (result,) = cluster._image(ComputeProfile(name="p", kind="kubernetes", image=f"perennial/own:{tag}"))
    assert result.detail.startswith(f"perennial/own:{tag} ")  # the variable does not replace it
    assert "image of the profile p (PERENNIAL_TRAINER_IMAGE replaces only the default" in result.remedy


def test_an_image_is_looked_up_in_ecr(proxy: trouble.Proxy, s3_url: str) -> None:
    import boto3

    ecr = boto3.client("ecr", region_name="eu-central-1", endpoint_url=s3_url)
    account = ecr.create_repository(repositoryName="perennial/trainer")["repository"]["registryId"]
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": media, "layers": []})
    ecr.put_image(repositoryName="perennial/trainer", imageManifest=manifest, imageTag="1.0")

    def look_up(path: str) -> finding.Finding:
        image = f"{account}.dkr.ecr.eu-central-1.amazonaws.com/{path}"
        (result,) = cluster._image(ComputeProfile(name="p", kind="kubernetes", image=image))
        return result

    assert look_up("perennial/trainer:1.0").state == "ok"
    for path in ("perennial/trainer:1.1", "perennial/other:1.0", "perennial/trainer@sha256:" + "0" * 64):
        assert look_up(path).state == "missing"
        assert "is not in the registry" in look_up(path).detail
    proxy.add("forbidden", 99, "POST", "")
    assert look_up("perennial/trainer:1.0").state == "warning"
    assert "ecr:DescribeImages" in look_up("perennial/trainer:1.0").remedy


def test_the_pod_of_a_step_is_submitted_without_being_started(remote_lake: Path) -> None:
    """That it is the pod of the operator is a test of tests/plugins/execution."""
    profile = ComputeProfile(name="p", kind="kubernetes", namespace="ml", image="i:1", env={"A": "1"})
    checked = cluster.Cluster(profile)
    submitted: list[Any] = []
    checked.api = SimpleNamespace(ApiException=ValueError)
    checked.core = SimpleNamespace(
        create_namespaced_pod=lambda *arguments, **options: submitted.append((*arguments, options))
    )
    (result,) = checked._dry_run()
    assert (result.what, result.state) == ("p: pod", "ok")
    ((namespace, pod, options),) = submitted
    assert namespace == "ml" and options["dry_run"] == "All"
    container = pod["spec"]["containers"][0]
    assert container["image"] == "i:1" and {"name": "A", "value": "1"} in container["env"]
    assert container["resources"]["limits"]["memory"] == profile.memory
    assert pod["metadata"]["labels"]["perennial/step"] == "perennial-doctor"


def test_the_command_ends_with_1_and_speaks_json(clean: Path, mlflow_home: Path) -> None:
    good = CliRunner().invoke(app, ["doctor"])
    assert good.exit_code == 0, good.output
    assert "missing" not in good.output
    bad = CliRunner().invoke(app, ["doctor", "--profile", "no_such", "--json"])
    assert bad.exit_code == 1
    rows = {f["what"]: f for f in json.loads(bad.stdout)}
    assert rows["profile no_such"]["state"] == "missing"
    assert "What to do" in CliRunner().invoke(app, ["doctor", "--profile", "no_such"]).output


# --- a real API server


@pytest.fixture
def namespace() -> Iterator[tuple[Any, str]]:
    """A namespace of its own, in the cluster of ``KUBECONFIG``."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set, so no cluster is asked")
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    core = client.CoreV1Api()
    name = toys.unique("perennial-doctor").replace("_", "-")
    core.create_namespace({"metadata": {"name": name}})
    deadline = time.monotonic() + 60
    while not core.list_namespaced_service_account(name).items:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield core, name
    core.delete_namespace(name, grace_period_seconds=0)


@pytest.mark.kubernetes
def test_a_cluster_that_has_everything(namespace: tuple[Any, str], profile: Callable[..., str]) -> None:
    core, name = namespace
    core.create_namespaced_secret(name, {"metadata": {"name": "keys"}, "stringData": {"id": "x"}})
    core.create_namespaced_service_account(name, {"metadata": {"name": "step"}})
    made = profile(
        namespace=name, service_account="step", secret_env=["keys"],
        secrets=[{"env": "ID", "secret": "keys", "key": "id"}],
    )  # fmt: skip
    findings = states(made)
    for what in (
        "API",
        "namespace",
        "rights",
        "secret keys",
        "service account step",
        "quota",
        "nodes",
        "pod",
    ):
        assert findings[f"pods: {what}"].state == "ok", findings[f"pods: {what}"]
    assert core.list_namespaced_pod(name).items == []  # the pod was judged, not started


@pytest.mark.kubernetes
def test_a_cluster_that_lacks_things(namespace: tuple[Any, str], profile: Callable[..., str]) -> None:
    core, name = namespace
    core.create_namespaced_secret(name, {"metadata": {"name": "keys"}, "stringData": {"id": "x"}})
    core.create_namespaced_resource_quota(
        name, {"metadata": {"name": "q"}, "spec": {"hard": {"requests.memory": "1Gi"}}}
    )
    deadline = time.monotonic() + 30
    while not core.read_namespaced_resource_quota("q", name).status.hard:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    made = profile(
        namespace=name, service_account="no-such", secret_env=["no-such"], gpu={"count": 9}, memory="2Gi",
        secrets=[{"env": "ID", "secret": "keys", "key": "no_such"}], priority_class="no-such",
    )  # fmt: skip
    findings = states(made)
    for what, detail in {
        "secret no-such": "is not in", "secret keys": "no key no_such", "service account no-such": "is not in",
        "quota": "allows 1Gi", "nodes": "nvidia.com/gpu: 9 needed, it has", "pod": "no-such",
    }.items():  # fmt: skip
        assert findings[f"pods: {what}"].state == "missing", findings[f"pods: {what}"]
        assert detail in findings[f"pods: {what}"].detail
    assert "pods: namespace" in states(profile(namespace="there-is-no-such-namespace"))


@pytest.mark.kubernetes
def test_a_profile_is_compared_with_the_nodes(
    namespace: tuple[Any, str], profile: Callable[..., str]
) -> None:
    core, name = namespace
    listed = core.list_node().items
    largest = max(nodes.number(node.status.allocatable["cpu"]) for node in listed)
    found = states(profile(namespace=name, cpu=str(int(largest) + 1)))["pods: nodes"]
    assert found.state == "missing" and f"cpu: {int(largest) + 1} needed, it has" in found.detail, found
    found = states(profile(namespace=name, memory="900Ti"))["pods: nodes"]
    assert found.state == "missing" and "memory: 9.22e+05 GiB needed" in found.detail, found
    found = states(profile(namespace=name, more_memory=["900Ti"]))["pods: nodes"]  # the later of two findings
    assert found.state == "warning" and "none has 900Ti, to which more_memory" in found.detail, found
    found = states(profile(namespace=name, node_selector={"no-such": "label"}))["pods: nodes"]
    assert found.state == "missing" and "its label no-such is None" in found.detail, found
    # a little is in use on every node, so that a pod that needs a whole one has to wait
    node = max(listed, key=lambda node: nodes.number(node.status.allocatable["cpu"]))
    box = {"name": "b", "image": "no/such:1", "resources": {"requests": {"cpu": "20m"}}}
    core.create_namespaced_pod(
        name, {"metadata": {"name": "beside"}, "spec": {"containers": [box], "nodeName": node.metadata.name}}
    )
    whole = f"{int(nodes.number(node.status.allocatable['cpu']) * 1000)}m"
    found = states(profile(namespace=name, cpu=whole))["pods: nodes"]
    assert found.state == "warning" and "all are occupied at present" in found.detail, found
    assert "wait_minutes" in found.remedy


@pytest.mark.kubernetes
def test_an_image_without_a_registry_is_looked_for_on_the_nodes(
    namespace: tuple[Any, str], profile: Callable[..., str]
) -> None:
    core, name = namespace
    findings = states(profile(namespace=name, image="perennial/there-is-no-such:1.0"))
    assert findings["pods: image on nodes"].state in ("missing", "warning")
    images = [image for node in core.list_node().items for image in node.status.images]
    named = [n for image in images for n in image.names or []]  # an image that was replaced has none
    here = next(
        image.removeprefix("docker.io/library/") for image in named
        if image.startswith("docker.io/library/") and "@" not in image
    )  # fmt: skip
    findings = states(profile(namespace=name, image=here))
    assert findings["pods: image on nodes"].state == "ok", findings["pods: image on nodes"]
    assert "looks at neither secrets, image nor nodes" in findings["pods: pod"].detail


@pytest.mark.kubernetes
def test_missing_rights_of_an_account_are_named(
    namespace: tuple[Any, str], profile: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, name = namespace
    deadline = time.monotonic() + 60
    while not (secrets := core.read_namespaced_service_account("default", name).secrets):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    import base64

    token = base64.b64decode(core.read_namespaced_secret(secrets[0].name, name).data["token"]).decode()
    values = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    for user in values["users"]:
        user["user"] = {"token": token}
    config = tmp_path / "kubeconfig"
    config.write_text(yaml.safe_dump(values))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(config), "in_cluster": False}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    findings = states(profile(namespace=name, secret_env=["keys"]))
    assert findings["pods: rights"].state == "missing"
    assert "may not create pods, get pods" in findings["pods: rights"].detail
    assert "rbac.yaml" in findings["pods: rights"].remedy
    assert findings["pods: namespace"].state == "warning"
    assert "the API server looks at it itself" in findings["pods: namespace"].remedy
    # what the dry run does not tell is not called harmless
    assert findings["pods: secrets"].state == findings["pods: nodes"].state == "warning"
    assert f"kubectl --namespace {name} get secret" in findings["pods: secrets"].remedy
    assert "whether one has room shows when the first pod starts" in findings["pods: nodes"].remedy
    assert findings["pods: pod"].state == "missing"
