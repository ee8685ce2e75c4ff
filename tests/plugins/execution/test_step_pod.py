"""The operator of one attempt at a step: quota, workers and outcome, with a small API server.

What a cluster does with such pods is tested in tests/integration/kubernetes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from airflow.sdk import DAG
from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.client.exceptions import ApiException

from perennial.spec import pod_manifest
from perennial_airflow.execution import step_pod
from perennial_airflow.execution.pod_outcome import PodOutcome
from perennial_airflow.execution.step_pod import StepPod
from support.pods import as_pod

RENDEZVOUS = "s3://lake/rendezvous/1"
TRAINER = {
    "metadata": {"name": "train-1", "namespace": "perennial", "uid": "u-1",
                 "annotations": {pod_manifest.RENDEZVOUS_ANNOTATION: RENDEZVOUS}},
}  # fmt: skip
FULL = (403, 'pods "train-1" is forbidden: exceeded quota: gpus')


class ApiServer(ThreadingHTTPServer):
    """Answers with the trainer's pod, and to each POST with the next of some answers; then it creates the pod."""

    answers: list[tuple[int, str]]
    created: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        self._send(200, TRAINER)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, message = self.server.answers.pop(0) if self.server.answers else (201, "")
        if status == 201:
            self.server.created.append(body)
        self._send(status, body if status == 201 else {"message": message})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(step_pod, "QUOTA_POLL_SECONDS", 0.01)
    with ApiServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.created = [], []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def worker(rank: int, rendezvous: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"step": "train"}},
        "spec": {"containers": [{"name": "base", "args": [str(rank), rendezvous]}]},
    }


def operator(api: ApiServer | None = None, **options: Any) -> StepPod:
    with DAG("d", schedule=None):
        pod = StepPod(task_id="train", name="train", image="i:1", **{"wait_seconds": 60} | options)
    if api is not None:
        configuration = Configuration(host=f"http://127.0.0.1:{api.server_port}")
        pod.__dict__["client"] = CoreV1Api(ApiClient(configuration))
    return pod


def test_every_worker_is_started_for_its_trainer(api: ApiServer) -> None:
    operator(api, worker_count=2, worker_manifest=worker)._start_workers(
        as_pod(TRAINER), time.monotonic() + 60
    )
    assert [pod["metadata"]["name"] for pod in api.created] == ["train-1-w0", "train-1-w1"]
    for rank, pod in enumerate(api.created):
        assert pod["spec"]["containers"][0]["args"] == [str(rank), RENDEZVOUS]
        assert pod["metadata"]["labels"] == {"step": "train", pod_manifest.TRAINER_LABEL: "train-1"}
        # Kubernetes deletes them with their trainer.
        assert pod["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Pod", "name": "train-1", "uid": "u-1"}
        ]


def test_workers_that_are_there_already_are_left_and_missing_ones_are_started(api: ApiServer) -> None:
    api.answers = [(409, 'pods "train-1-w0" already exists')]
    operator(api, worker_count=3, worker_manifest=worker)._start_workers(
        as_pod(TRAINER), time.monotonic() + 60
    )
    assert [pod["metadata"]["name"] for pod in api.created] == ["train-1-w1", "train-1-w2"]


def test_a_step_without_workers_starts_none(api: ApiServer) -> None:
    operator(api)._start_workers(as_pod(TRAINER), time.monotonic() + 60)
    assert api.created == []


def test_a_pod_waits_for_quota_and_says_so_once(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    api.answers = [FULL] * 3
    with caplog.at_level("INFO", logger="airflow.task"):
        operator(api, worker_count=1, worker_manifest=worker)._start_workers(
            as_pod(TRAINER), time.monotonic() + 60
        )
    assert len(api.created) == 1
    waiting = [r.getMessage() for r in caplog.records if "Waiting for quota" in r.getMessage()]
    assert waiting == [f"Waiting for quota: {FULL[1]}"]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(FULL, -1.0), ((403, "forbidden: violates PodSecurity"), 60.0), ((500, "internal error"), 60.0)],
    ids=["the time is up", "another refusal", "another error"],
)
def test_what_waiting_does_not_heal_is_raised_at_once(
    api: ApiServer, answer: tuple[int, str], seconds: float
) -> None:
    api.answers = [answer]
    trainer = as_pod(TRAINER)
    with pytest.raises(ApiException) as error:
        operator(api, worker_count=1, worker_manifest=worker)._start_workers(
            trainer, time.monotonic() + seconds
        )
    assert error.value.status == answer[0]
    assert api.created == []


def ended(reason: str = "", exit_code: int = 0, phase: str = "Succeeded") -> Any:
    state = {"terminated": {"exitCode": exit_code, "reason": reason}}
    container = {
        "name": "base",
        "state": state,
        "image": "",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
    }
    return as_pod({"metadata": {"name": "p"}, "status": {"phase": phase, "containerStatuses": [container]}})


def test_how_the_attempt_ended() -> None:
    pod = operator()
    assert pod.outcome(None) == PodOutcome("done")
    assert pod.outcome(ValueError("no such step")) == PodOutcome("failed", "no such step")
    assert pod.outcome(ApiException(status=404)).kind == "interrupted"
    pod.final_pod = ended("OOMKilled", 137, "Failed")
    assert pod.outcome(ValueError("the pod failed")) == PodOutcome("memory", "exit code 137")
    pod.final_pod = ended()
    assert pod.outcome(None).kind == "done"
    pod.gone = True
    assert pod.outcome(None) == PodOutcome("interrupted", "the pod is gone: deleted, or its node was lost")


def test_the_reason_of_a_missing_worker_is_that_of_its_pod() -> None:
    pod = operator(worker_count=3, worker_manifest=worker)
    pod.worker_pods = [ended(), ended("Error", 1, "Failed")]
    assert pod.worker_outcome() is None  # they ended when the trainer did
    pod.worker_pods.append(ended("OOMKilled", 137, "Failed"))
    assert pod.worker_outcome() == PodOutcome("memory", "a worker: exit code 137")
