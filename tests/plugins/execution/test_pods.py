"""How a step runs in a pod, and how its end is read; the cluster itself is in tests/integration/kubernetes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.amazon.aws.operators.eks import EksPodOperator
from airflow.sdk import DAG
from kubernetes.client import ApiClient

from perennial.core import runtime
from perennial.core.errors import PerennialError, StepInterruptedError, StorageError, WorkersUnavailableError
from perennial.spec import compute_profile, pod_manifest
from perennial.spec.compute_profile import ComputeProfile
from perennial.spec.model_spec import StepLimits
from perennial.storage import object_store
from perennial_airflow.dag_factory.dag_builder import limits
from perennial_airflow.execution import pod_outcome, pods
from perennial_airflow.execution.operators import StageTask
from support import toys
from support.pod_content import as_pod


def status(phase: str, *, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    deleted = {"deletionTimestamp": "2024-01-01T00:00:00Z"} if more.pop("deleted", False) else {}
    box = {"name": "base", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}
    told = {"phase": phase, "containerStatuses": [box] if state else [], **more}
    return {"metadata": {"name": "p", **deleted}, "status": told}


@pytest.mark.parametrize(
    ("pod", "kind", "said"),
    [
        (status("Succeeded", state={"terminated": {"exitCode": 0}}), "done", ""),
        (status("Failed", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), "memory", "137"),
        (status("Failed", state={"terminated": {"exitCode": 1, "message": "error: no"}}), "failed", "error: no"),
        (status("Failed", state={"terminated": {"exitCode": 137}}, reason="Evicted", message="disk"),
         "interrupted", "disk"),
        (status("Failed", state={"terminated": {"exitCode": 143}}), "interrupted", "143"),
        (status("Running", state={"terminated": {"exitCode": 137}}, deleted=True), "interrupted", "stopped"),
        (status("Running", state={"running": {}}, deleted=True), "interrupted", "stopped"),
        (status("Failed", reason="NodeLost"), "interrupted", "NodeLost"),
        (status("Failed", reason="DeadlineExceeded", message="too long"), "deadline", "too long"),
        (status("Pending", state={"waiting": {"reason": "ErrImagePull", "message": "no such"}}), "image", "no such"),
        (status("Pending", state={"waiting": {"reason": "CreateContainerConfigError", "message": "no secret s"}}),
         "secret", "no secret s"),
        (status("Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]),
         "unschedulable", "0/1 nodes"),
    ],
)  # fmt: skip
def test_how_a_pod_ended(pod: dict[str, Any], kind: str, said: str) -> None:
    found = pod_outcome.ending(as_pod(pod))
    assert found.kind == kind and said in found.detail


def test_the_spec_and_every_wish_travel_with_the_call(house: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    wishes = {"start": "2024-01-01", "end": None, "force": True, "backfill": False, "run_id": "r"}
    found = pods.command("data", spec, wishes, "s3://b/result.json")
    assert found[:2] == ["run", "data"]
    given = dict(zip(found[2::2], found[3::2], strict=False))
    assert object_store.read_text(given["--spec-file"]) == json.dumps(spec.bundle(), sort_keys=True)
    assert given["--library-digest"] == runtime.library_digest()
    assert found[-5:] == ["--start", "2024-01-01", "--force", "--run-id", "r"]
    assert "--backfill" not in found and "--end" not in found


def test_the_operator_finds_its_pod_again_and_shows_events(lake: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy_model")
    profile = ComputeProfile(name="p", kind="kubernetes", wait_minutes=2, start_minutes=3, deferrable=True)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    wanted = pod_manifest.pod(profile, spec, "train", [], memory="2Gi", interruptions=0)
    made = pods.make(profile, task, wanted, "2Gi", 1)
    assert made.reattach_on_restart and made.random_name_suffix and made.log_events_on_startup
    assert made.schedule_timeout_seconds == 120 and made.startup_timeout_seconds == 180 and made.deferrable
    assert made.trigger_kwargs == {"memory": "2Gi", "interruptions": 1}
    built = made.build_pod_request_obj(None, dry_run=True)
    assert built.metadata.name.startswith("toy-model-train-") and built.metadata.namespace == "perennial"
    sent = ApiClient().sanitize_for_serialization(built)
    assert sent["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert sent["spec"]["automountServiceAccountToken"] is False
    assert len(sent["spec"]["containers"]) == 1


def test_more_memory_is_asked_for_in_turn() -> None:
    profile = ComputeProfile(name="p", kind="kubernetes", memory="1Gi", more_memory=["2Gi", "4Gi"])
    assert pods._more(profile, "1Gi", "train", {}) == "2Gi"
    assert pods._more(profile, "2Gi", "train", {}) == "4Gi"
    with pytest.raises(PerennialError, match="limit of 4Gi, the largest of profile p"):
        pods._more(profile, "4Gi", "train", {})


def test_on_eks_the_operator_is_amazons(lake: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    profile = ComputeProfile(name="p", kind="eks", cluster="c", region="eu-central-1")
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    wanted = pod_manifest.pod(profile, spec, "train", [], memory="2Gi", interruptions=0)
    made = pods.make(profile, task, wanted, "2Gi", 0)
    assert isinstance(made, EksPodOperator) and isinstance(made, pods.StepPod)
    assert (made.cluster_name, made.region, made.namespace) == ("c", "eu-central-1", "perennial")
    built = made.build_pod_request_obj(None, dry_run=True)
    assert built.metadata.name.startswith("toy-train-")
    assert made.trigger_kwargs == {"memory": "2Gi", "interruptions": 0, "eks_cluster_name": "c"}


def test_a_task_that_was_killed_starts_no_other_pod(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(pods, "command", lambda *_: [])  # there is no S3 here
    monkeypatch.setattr(pods.results, "read", lambda _: None)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    begun: list[pods.StepPod] = []

    def stopped(attempt: pods.StepPod, *_: Any) -> None:
        begun.append(attempt)
        attempt.gone = True
        if len(begun) == 2:
            attempt._killed = task.killed = True

    monkeypatch.setattr(pods, "_attempt", stopped)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1)
    profile = ComputeProfile(name="p", kind="kubernetes", interruptions=5)
    with pytest.raises(StorageError, match="step train was stopped with its task"):
        pods.run("train", spec, profile, {"as_of": "2024-01-01"}, {"task": task, "ti": ti})
    # the first was lost and tried again; the second was ended with its task
    assert [a.trigger_kwargs["interruptions"] for a in begun] == [0, 1]


def test_waiting_for_a_node_is_not_the_steps_own_time() -> None:
    limit = StepLimits(timeout_minutes=60)
    waits = ComputeProfile(name="p", kind="kubernetes", wait_minutes=240, start_minutes=10)
    assert limits(limit, waits)["execution_timeout"] == timedelta(minutes=310)
    assert limits(limit, compute_profile.load_profile("local"))["execution_timeout"] == timedelta(minutes=60)
    assert limits(limit)["execution_timeout"] == timedelta(minutes=60)


def test_a_worker_that_did_not_start_explains_the_failure(lake: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    profile = ComputeProfile(name="p", kind="kubernetes", workers=2)
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    wanted = pod_manifest.pod(profile, spec, "train", [], memory="2Gi", interruptions=0, role="trainer")
    attempt = pods.make(profile, task, wanted, "2Gi", 0, crew=2, worker=lambda *_: {})
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
        attempt.crew_seen = [as_pod(p) for p in others]
        found = attempt.crew_ending()
        assert (found.kind if found else None) == kind
    attempt.crew_seen = [as_pod(waiting)]
    error = pod_outcome.told(
        attempt.crew_ending(), profile, "train", None, {"model": "toy", "partition": "2024-01-01"}
    )
    assert "found no node within 30 minutes: a worker: 0/9 nodes" in str(error)


def test_an_interruption_that_the_step_tells_of_is_tried_again(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(pods, "command", lambda *_: [])  # there is no S3 here
    told: list[Any] = [StepInterruptedError("1 of 2 workers lost", "-"), {"status": "trained"}]

    def read(_: str) -> Any:
        if isinstance(found := told.pop(0), Exception):
            raise found
        return found

    monkeypatch.setattr(pods.results, "read", read)
    begun: list[pods.StepPod] = []
    monkeypatch.setattr(pods, "_attempt", lambda attempt, *_: begun.append(attempt))
    with DAG("d", schedule=None):
        task = StageTask(task_id="train", spec=spec, call=lambda *_: {})
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1)
    profile = ComputeProfile(name="p", kind="kubernetes", workers=2, interruptions=1)
    done = pods.run("train", spec, profile, {"as_of": "2024-01-01"}, {"task": task, "ti": ti})
    assert done == {"status": "trained"}
    assert [a.trigger_kwargs["interruptions"] for a in begun] == [0, 1] and [a.crew for a in begun] == [2, 2]
    meetings = {a.pod_template_dict["metadata"]["annotations"][pod_manifest.MEETING] for a in begun}
    assert len(meetings) == 2  # nobody finds the trainer of another attempt


def test_workers_that_did_not_come_are_not_waited_for_again(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    monkeypatch.setattr(pods, "command", lambda *_: [])  # there is no S3 here

    def absent(_: str) -> Any:
        raise WorkersUnavailableError("0 of 2 workers came within 40 minutes", "see network policies")

    def ended(attempt: pods.StepPod, *_: Any) -> None:
        attempt.last_seen = as_pod(status("Failed", state={"terminated": {"exitCode": 1}}))
        attempt.crew_seen = [as_pod(p) for p in others]

    monkeypatch.setattr(pods.results, "read", absent)
    monkeypatch.setattr(pods, "_attempt", ended)
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
