"""How a step runs in a pod, and how its outcome is read; the tests on a cluster are in tests/integration/kubernetes."""

from __future__ import annotations

import importlib
import json
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from airflow.providers.amazon.aws.operators.eks import EksPodOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

from perennial.cli.doctor import cluster
from perennial.core import runtime
from perennial.core.errors import PerennialError, StepInterruptedError, WorkersUnavailableError, time_heals
from perennial.spec import compute_profile, pod_manifest
from perennial.spec.compute_profile import ComputeProfile
from perennial.spec.model_spec import StepLimits
from perennial.storage import object_store
from perennial_airflow.dag_factory.dag_builder import task_limits
from perennial_airflow.execution import pod_outcome, pods
from perennial_airflow.execution.operators import StageTask
from perennial_airflow.execution.pod_outcome import PodOutcome
from perennial_airflow.execution.pod_start import StepAsyncPodManager
from perennial_airflow.execution.pods import Attempt
from perennial_airflow.execution.step_pod import LOG_SECONDS
from support import toys
from support.pods import as_pod

#: Labels that Airflow's operator adds to what it submits.
AIRFLOW_LABELS = {"airflow_version", "airflow_kpo_in_cluster", "kubernetes_pod_operator"}
#: Fields whose default is true.
TRUE_BY_DEFAULT = {"automountServiceAccountToken", "enableServiceLinks", "allowPrivilegeEscalation"}


def status(phase: str, *, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    deleted = {"deletionTimestamp": "2024-01-01T00:00:00Z"} if more.pop("deleted", False) else {}
    container = {
        "name": "base",
        "state": state,
        "image": "",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
    }
    content = {"phase": phase, "containerStatuses": [container] if state else [], **more}
    return {"metadata": {"name": "p", **deleted}, "status": content}


@pytest.mark.parametrize(
    ("pod", "kind", "detail"),
    [
        (status("Succeeded", state={"terminated": {"exitCode": 0}}), "done", ""),
        (status("Failed", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), "memory", "137"),
        (status("Failed", state={"terminated": {"exitCode": 1, "message": "error: no"}}), "refused", "error: no"),
        (status("Failed", state={"terminated": {"exitCode": 2}}), "refused", "exit code 2"),
        (status("Failed", state={"terminated": {"exitCode": 75}}), "failed", "exit code 75"),
        (status("Failed", state={"terminated": {"exitCode": 139}}), "failed", "exit code 139"),
        (status("Failed", state={"terminated": {"exitCode": 137}}, reason="Evicted", message="disk"),
         "interrupted", "disk"),
        (status("Failed", state={"terminated": {"exitCode": 143}}), "interrupted", "143"),
        (status("Running", state={"terminated": {"exitCode": 137}}, deleted=True), "interrupted", "stopped"),
        (status("Running", state={"running": {}}, deleted=True), "interrupted", "stopped"),
        (status("Failed", reason="NodeLost"), "interrupted", "NodeLost"),
        (status("Failed", reason="DeadlineExceeded", message="too long"), "deadline", "too long"),
        (status("Pending", state={"waiting": {"reason": "ErrImagePull", "message": "no such"}}), "image", "no such"),
        (status("Pending", state={"waiting": {"reason": "InvalidImageName", "message": "bad"}}), "image", "bad"),
        (status("Pending", state={"waiting": {"reason": "CreateContainerConfigError", "message": "no secret s"}}),
         "secret", "no secret s"),
        (status("Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]),
         "unschedulable", "0/1 nodes"),
    ],
)  # fmt: skip
def test_how_a_pod_ended(pod: dict[str, Any], kind: str, detail: str) -> None:
    outcome = pod_outcome.outcome_of(as_pod(pod))
    assert outcome.kind == kind and detail in outcome.detail


@pytest.mark.parametrize("kind", get_args(pod_outcome.OutcomeKind))
def test_every_end_of_a_pod_is_sorted_by_whether_time_heals_it(kind: pod_outcome.OutcomeKind) -> None:
    error = pod_outcome.outcome_error(
        PodOutcome(kind), ComputeProfile(name="p", kind="kubernetes"), "train", None, {}
    )
    assert time_heals(error) is (kind in ("done", "failed", "memory", "interrupted"))


@pytest.mark.parametrize(
    ("status_code", "kind"),
    [(401, "refused"), (403, "refused"), (422, "refused"), (429, "failed"), (500, "failed"), (0, "failed")],
)
def test_what_the_api_server_refuses_is_not_tried_again(status_code: int, kind: str) -> None:
    failure = AirflowException("Pod creation failed")
    failure.__cause__ = ApiException(status=status_code) if status_code else ConnectionError()
    assert pod_outcome.failure_outcome(failure).kind == kind


def test_the_spec_and_every_argument_travel_with_the_call(empty_home: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    arguments = {
        "start": "2024-01-01",
        "end": None,
        "force": True,
        "backfill": False,
        "reason": "",
        "run_id": "r",
    }
    words = pods.command("data", spec, arguments, "s3://b/result.json")
    assert words[:2] == ["run", "data"]
    given = dict(zip(words[2::2], words[3::2], strict=False))
    assert object_store.read_text(given["--spec-file"]) == json.dumps(spec.bundle())
    assert given["--library-digest"] == runtime.library_digest()
    assert words[-5:] == ["--start", "2024-01-01", "--force", "--run-id", "r"]
    assert not {"--backfill", "--end", "--reason"} & set(words)  # the command refuses an empty reason


def test_the_operator_finds_its_pod_again_and_shows_events(remote_lake: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy_model")
    profile = ComputeProfile(name="p", kind="kubernetes", wait_minutes=2, start_minutes=3, deferrable=True)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    manifest = pod_manifest.step_pod(profile, spec, "train", [], memory="2Gi", interruptions=0)
    operator = pods.make_operator(profile, task, manifest, Attempt("2Gi", 1))
    assert operator.reattach_on_restart and operator.random_name_suffix and operator.log_events_on_startup
    assert (
        operator.schedule_timeout_seconds == 120
        and operator.startup_timeout_seconds == 180
        and operator.deferrable
    )
    assert operator.trigger_kwargs == {"memory": "2Gi", "interruptions": 1}
    built = operator.build_pod_request_obj(None, dry_run=True)
    assert built.metadata.name.startswith("toy-model-train-") and built.metadata.namespace == "perennial"
    sent = ApiClient().sanitize_for_serialization(built)
    assert sent["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert sent["spec"]["automountServiceAccountToken"] is False
    assert len(sent["spec"]["containers"]) == 1


@pytest.mark.parametrize("kind", ["kubernetes", "eks"])
def test_a_deferrable_step_waits_by_our_trigger(
    kind: str, remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubeconfig").write_text("{}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    spec = toys.model(tmp_path / "models", "toy")
    content = {"name": "p", "kind": kind, "deferrable": True, "start_minutes": 3}
    profile = ComputeProfile.model_validate(content | ({"cluster": "c"} if kind == "eks" else {}))
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    manifest = pod_manifest.step_pod(profile, spec, "train", [], memory="2Gi", interruptions=0)
    operator = pods.make_operator(profile, task, manifest, Attempt("2Gi", 1))
    operator.kubernetes_conn_id = None
    operator.pod = as_pod({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Pending"}})
    with pytest.raises(TaskDeferred) as deferred:
        operator.invoke_defer_method()
    path, arguments = deferred.value.trigger.serialize()
    assert "airflow.providers" not in path
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**arguments)  # as the triggerer makes it
    assert again.serialize() == (path, arguments)
    assert arguments["config_dict"] is None  # with a connection, the trigger would refuse it
    assert isinstance(again.pod_manager, StepAsyncPodManager)
    assert (again.pod_name, again.startup_timeout, again.logging_interval) == ("p", 180, LOG_SECONDS)
    assert again.trigger_kwargs["memory"] == "2Gi"
    assert getattr(again, "eks_cluster_name", None) == ("c" if kind == "eks" else None)


def without_identity(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod without its name, its command, and the labels and annotations of its owner."""
    metadata = {k: v for k, v in pod["metadata"].items() if k not in ("name", "generateName")}
    for field in ("labels", "annotations"):
        others = {
            k: v for k, v in metadata[field].items() if not re.match("perennial/(model|step|team|task)$", k)
        }
        metadata[field] = {k: v for k, v in others.items() if k not in AIRFLOW_LABELS}
    containers = [{k: v for k, v in c.items() if k != "args"} for c in pod["spec"]["containers"]]
    return {"metadata": metadata, "spec": pod["spec"] | {"containers": containers}}


def without_defaults(value: Any) -> Any:
    """A manifest without fields that are empty or have their default, which the API server reads like missing ones."""
    if isinstance(value, list):
        return [without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    given = {k: v for k, v in value.items() if v not in (None, {}, [], False) or k in TRUE_BY_DEFAULT}
    return {
        k: without_defaults(v) for k, v in given.items() if (k, v) != ("terminationMessagePolicy", "File")
    }


@pytest.mark.parametrize("kind", ["kubernetes", "eks"])
def test_the_doctor_tries_the_pod_that_the_operator_submits(
    kind: str, remote_lake: Path, tmp_path: Path
) -> None:
    template = {"spec": {"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["proxy"]}],
                         "containers": [{"name": "beside", "image": "proxy:1"}]}}  # fmt: skip
    (remote_lake / "base.yaml.txt").write_text(json.dumps(template))
    content = {
        "name": "p", "kind": kind, "template": "base.yaml.txt", "cpu": "1500m", "gpu": {"count": 1, "kind": "H200"},
        "spot": True, "queue": "q", "priority_class": "high", "service_account": "sa", "pull_secrets": ["pull"],
        "run_minutes": 5, "node_selector": {"pool": "ml"}, "tolerations": [{"key": "t", "operator": "Exists"}],
        "secrets": [{"env": "TOKEN", "secret": "s", "key": "k"}], "secret_env": ["aws"], "env": {"A": "1"},
        "labels": {"cost_centre": "42"}, "annotations": {"note": "x"},
    } | ({"cluster": "c"} if kind == "eks" else {})  # fmt: skip
    (remote_lake / "p.yaml").write_text(json.dumps(content))
    profile = compute_profile.load_profile("p")
    spec = toys.model(tmp_path / "models", "toy")
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    manifest = pod_manifest.step_pod(
        profile, spec, "train", ["run"], memory=profile.memory, interruptions=0,
        annotations={pod_manifest.TASK_ANNOTATION: "{}"},
    )  # fmt: skip
    operator = pods.make_operator(profile, task, manifest, Attempt(profile.memory))
    submitted = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(None, dry_run=True))
    tried = cluster.dry_run_pod(profile)
    assert tried["metadata"]["generateName"] == "perennial-doctor-"
    assert without_defaults(without_identity(tried)) == without_defaults(without_identity(submitted))


def test_memory_limits_are_tried_in_turn() -> None:
    profile = ComputeProfile(name="p", kind="kubernetes", memory="1Gi", more_memory=["2Gi", "4Gi"])
    assert pods._next_memory(profile, "1Gi", "train", {}) == "2Gi"
    assert pods._next_memory(profile, "2Gi", "train", {}) == "4Gi"
    with pytest.raises(PerennialError, match="limit of 4Gi, the largest of profile p"):
        pods._next_memory(profile, "4Gi", "train", {})


def test_on_eks_the_operator_is_amazons(remote_lake: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    profile = ComputeProfile(name="p", kind="eks", cluster="c", region="eu-central-1")
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    manifest = pod_manifest.step_pod(profile, spec, "train", [], memory="2Gi", interruptions=0)
    operator = pods.make_operator(profile, task, manifest, Attempt("2Gi"))
    assert isinstance(operator, EksPodOperator) and isinstance(operator, pods.StepPod)
    assert (operator.cluster_name, operator.region, operator.namespace) == ("c", "eu-central-1", "perennial")
    built = operator.build_pod_request_obj(None, dry_run=True)
    assert built.metadata.name.startswith("toy-train-")
    assert operator.trigger_kwargs == {"memory": "2Gi", "interruptions": 0, "eks_cluster_name": "c"}


def test_a_task_that_was_killed_starts_no_other_pod(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(pods, "command", lambda *_: [])  # there is no S3 here
    monkeypatch.setattr(pods.result_file, "read_result", lambda _: None)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    begun: list[pods.StepPod] = []

    def stopped(attempt: pods.StepPod, *_: Any) -> None:
        begun.append(attempt)
        attempt.gone = True
        if len(begun) == 2:
            attempt._killed = task.killed = True

    monkeypatch.setattr(pods, "_run_attempt", stopped)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1)
    profile = ComputeProfile(name="p", kind="kubernetes", interruptions=5)
    with pytest.raises(StepInterruptedError, match="step train was stopped with its task"):
        pods.run("train", spec, profile, {"as_of": "2024-01-01"}, {"task": task, "ti": ti})
    # the first was lost and tried again; the second was ended with its task
    assert [a.trigger_kwargs["interruptions"] for a in begun] == [0, 1]


def test_waiting_for_a_node_is_not_the_steps_own_time() -> None:
    limit = StepLimits(timeout_minutes=60)
    waits = ComputeProfile(name="p", kind="kubernetes", wait_minutes=240, start_minutes=10)
    assert task_limits(limit, waits)["execution_timeout"] == timedelta(minutes=310)
    assert task_limits(limit, compute_profile.load_profile("local"))["execution_timeout"] == timedelta(
        minutes=60
    )
    assert task_limits(limit)["execution_timeout"] == timedelta(minutes=60)


def test_a_worker_that_did_not_start_explains_the_failure(remote_lake: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    profile = ComputeProfile(name="p", kind="kubernetes", workers=2)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    manifest = pod_manifest.step_pod(
        profile, spec, "train", [], memory="2Gi", interruptions=0, role="trainer"
    )
    attempt = pods.make_operator(
        profile, task, manifest, Attempt("2Gi"), worker_count=2, worker_manifest=lambda *_: {}
    )
    running = status("Running", state={"running": {}})
    waiting = status(
        "Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/9 nodes"}]
    )
    killed = status("Failed", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    for others, kind in (
        ([running], None),
        ([running, waiting], "unschedulable"),
        ([killed, running], "memory"),
    ):
        attempt.worker_pods = [as_pod(p) for p in others]
        outcome = attempt.worker_outcome()
        assert (outcome.kind if outcome else None) == kind
    attempt.worker_pods = [as_pod(waiting)]
    error = pod_outcome.outcome_error(
        attempt.worker_outcome(), profile, "train", None, {"model": "toy", "partition": "2024-01-01"}
    )
    assert "found no node within 30 minutes: a worker: 0/9 nodes" in str(error)


def test_an_interruption_that_the_step_reports_is_tried_again(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(pods, "command", lambda *_: [])  # there is no S3 here
    results: list[Any] = [StepInterruptedError("1 of 2 workers lost", "-"), {"status": "trained"}]

    def read(_: str) -> Any:
        if isinstance(result := results.pop(0), Exception):
            raise result
        return result

    monkeypatch.setattr(pods.result_file, "read_result", read)
    begun: list[pods.StepPod] = []
    monkeypatch.setattr(pods, "_run_attempt", lambda attempt, *_: begun.append(attempt))
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1)
    profile = ComputeProfile(name="p", kind="kubernetes", workers=2, interruptions=1)
    done = pods.run("train", spec, profile, {"as_of": "2024-01-01"}, {"task": task, "ti": ti})
    assert done == {"status": "trained"}
    assert [a.trigger_kwargs["interruptions"] for a in begun] == [0, 1] and [
        a.worker_count for a in begun
    ] == [2, 2]
    rendezvous = {
        a.pod_template_dict["metadata"]["annotations"][pod_manifest.RENDEZVOUS_ANNOTATION] for a in begun
    }
    assert len(rendezvous) == 2  # nobody finds the trainer of another attempt


def test_workers_that_did_not_come_are_not_waited_for_again(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(pods, "command", lambda *_: [])  # there is no S3 here

    def absent(_: str) -> Any:
        raise WorkersUnavailableError("0 of 2 workers came within 40 minutes", "see network policies")

    def ended(attempt: pods.StepPod, *_: Any) -> None:
        attempt.final_pod = as_pod(status("Failed", state={"terminated": {"exitCode": 1}}))
        attempt.worker_pods = [as_pod(p) for p in others]

    monkeypatch.setattr(pods.result_file, "read_result", absent)
    monkeypatch.setattr(pods, "_run_attempt", ended)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1)
    profile = ComputeProfile(name="p", kind="kubernetes", workers=2, interruptions=5)
    others = [status("Running", state={"running": {}})] * 2
    with pytest.raises(WorkersUnavailableError, match="0 of 2 workers came"):
        pods.run("train", spec, profile, {"as_of": "2024-01-01"}, {"task": task, "ti": ti})
    others = [status("Pending", state={"waiting": {"reason": "ErrImagePull", "message": "no such"}})]
    with pytest.raises(PerennialError, match=r"cannot start image .* a worker: ErrImagePull: no such"):
        pods.run("train", spec, profile, {"as_of": "2024-01-01"}, {"task": task, "ti": ti})


def test_only_training_has_workers() -> None:
    profile = ComputeProfile(name="p", kind="kubernetes", workers=3)
    assert [profile.worker_count(step) for step in ("data", "train", "score", "monitor")] == [1, 3, 1, 1]
