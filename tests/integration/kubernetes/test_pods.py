"""The loop of a small model with every heavy step in a pod, and what disturbs pods."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx
import psutil
import pytest

from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.spec.compute_profile import ComputeProfile
from perennial.storage import manifests, object_store
from support import toys
from support.pods import LATE_IMAGE, NO_GPU, Cluster, Pods, wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]
LAST_OF_HISTORY = "2024-01-15"
NIGHT = "2024-01-16"


def play(pods: Pods, model: str) -> dict[str, Any]:
    """History, training, one night, one look at it; what is the same wherever the steps run."""
    pods.succeeds(f"{model}.data", pods.run(f"{model}.data", start=toys.FIRST, end=LAST_OF_HISTORY))
    pods.succeeds(f"{model}.train", pods.run(f"{model}.train", key=LAST_OF_HISTORY))
    pods.succeeds(f"{model}.data", pods.run(f"{model}.data", start=NIGHT))
    pods.succeeds(f"{model}.score", pods.run(f"{model}.score", start=NIGHT))
    pods.succeeds(f"{model}.monitor", pods.run(f"{model}.monitor", key=NIGHT))
    champion = registry.get_champion(pods.specs[model])
    assert champion is not None
    found = toys.content_of("predictions", model, without=("run_id", "scored_at"))
    assert len(found) == toys.ROWS
    for step, key in (("data", NIGHT), ("train", LAST_OF_HISTORY), ("score", NIGHT), ("monitor", NIGHT)):
        assert manifests.read(model, step, key) is not None, step
    return {"digest": champion.digest, "predictions": found}


def registered(model: str) -> int:
    """How many versions of a model are registered."""
    found = httpx.get(
        f"{settings().mlflow_uri}/api/2.0/mlflow/model-versions/search",
        params={"filter": f"name='{model}'"},
        trust_env=False,
    )
    return len(found.raise_for_status().json().get("model_versions", []))


def checkpointed(model: str) -> bool:
    """Whether a booster of the model is under way."""
    from pyarrow.fs import FileSelector

    place = FileSelector(f"{settings().lake.removeprefix('s3://')}/checkpoints/{model}", True, recursive=True)
    return any(f.base_name.endswith(".ubj") for f in object_store.filesystem().get_file_info(place))


def train_slowly(pods: Pods, model: str, **labels: str) -> tuple[str, Any]:
    """A training that goes on in its pod; its run and the pod, of its pods the one with these labels."""
    pods.succeeds(f"{model}.data", pods.run(f"{model}.data", start=toys.FIRST, end=LAST_OF_HISTORY))
    run = pods.run(f"{model}.train", key=LAST_OF_HISTORY)
    return run, pods.cluster.running(model, "train", **labels)


def test_the_same_folder_gives_the_same_predictions_in_pods_and_here(pods_stack: Pods) -> None:
    in_pods, here = play(pods_stack, "pod_loop"), play(pods_stack, "pod_here")
    assert in_pods["digest"] == here["digest"]
    assert in_pods["predictions"] == here["predictions"]
    assert play(pods_stack, "pod_deferred")["digest"] == here["digest"]
    run = pods_stack.airflow.runs("pod_loop.monitor")[0]["dag_run_id"]
    assert "profile pod" in pods_stack.log("pod_loop.monitor", run, "monitor")
    assert "in a pod" not in pods_stack.log(
        "pod_here.data", pods_stack.airflow.runs("pod_here.data")[0]["dag_run_id"], "data"
    )


def test_a_pod_is_restricted_and_labelled(pods_stack: Pods) -> None:
    run, pod = train_slowly(pods_stack, "pod_deleted")
    spec, box = pod.spec, pod.spec.containers[0]
    assert (
        spec.security_context.run_as_non_root
        and spec.security_context.seccomp_profile.type == "RuntimeDefault"
    )
    assert not spec.automount_service_account_token and not spec.host_network
    assert (
        not box.security_context.allow_privilege_escalation and box.security_context.read_only_root_filesystem
    )
    assert box.security_context.capabilities.drop == ["ALL"] and not box.security_context.privileged
    whole = str(pod.to_dict())
    assert not [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if os.environ[name] in whole]
    assert [source.secret_ref.name for source in box.env_from] == ["perennial-aws"]
    labels = pod.metadata.labels
    assert labels["perennial/model"] == "pod_deleted" and labels["perennial/step"] == "train"
    assert labels["perennial/team"] == "tests" and labels["cost_centre"] == "tests" and labels["run_id"]

    # deleted in the midst of its training: a new pod goes on from the checkpoint, and the task is not retried
    wait_for(lambda: checkpointed("pod_deleted"), "a checkpoint")
    pods_stack.cluster.api.delete_namespaced_pod(
        pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0
    )
    again = wait_for(
        lambda: next((p for p in pods_stack.cluster.pods(**{"perennial/model": "pod_deleted"})
                      if p.metadata.name != pod.metadata.name and not p.metadata.deletion_timestamp), None),
        "another pod",
    )  # fmt: skip
    assert again.metadata.annotations["perennial/interruptions"] == "1"
    pods_stack.succeeds("pod_deleted.train", run)
    assert pods_stack.task("pod_deleted.train", run, "train")["try_number"] == 1
    done = manifests.read("pod_deleted", "train", LAST_OF_HISTORY)
    assert done is not None and done.result["resumed_rounds"] > 0
    assert registered("pod_deleted") == 1
    told = pods_stack.log("pod_deleted.train", run, "train")
    assert "Traceback" not in told and "HTTP response" not in told  # that the pod is gone is said in words
    assert "git executable" not in told.lower()  # of which MLflow warns, and which no step needs
    assert ": round " in told
    assert not checkpointed("pod_deleted")


def test_a_killed_task_finds_its_pod_again(pods_stack: Pods) -> None:
    run, pod = train_slowly(pods_stack, "pod_killed")
    title = f"airflow worker -- {pods_stack.task('pod_killed.train', run, 'train')['id']}"
    mine = [p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or ()).strip() == title]
    assert len(mine) == 1, "the process of the task was not found"
    mine[0].kill()
    pods_stack.succeeds("pod_killed.train", run, 400)
    task = pods_stack.task("pod_killed.train", run, "train")
    assert task["try_number"] == 2
    told = pods_stack.log("pod_killed.train", run, "train", 2)
    assert pod.metadata.name in told
    assert registered("pod_killed") == 1


def test_too_little_memory_is_named_and_tried_again_with_more(pods_stack: Pods) -> None:
    runs = {}
    for model in ("pod_little_memory", "pod_too_little_memory"):
        pods_stack.succeeds(
            f"{model}.data", pods_stack.run(f"{model}.data", start=toys.FIRST, end=LAST_OF_HISTORY)
        )
        runs[model] = pods_stack.run(f"{model}.train", key=LAST_OF_HISTORY)
    pods_stack.succeeds("pod_little_memory.train", runs["pod_little_memory"])
    told = pods_stack.log("pod_little_memory.train", runs["pod_little_memory"], "train")
    assert "Out of memory at its limit of 256Mi: it is tried again with 1200Mi" in told
    assert registered("pod_little_memory") == 1

    assert pods_stack.ended("pod_too_little_memory.train", runs["pod_too_little_memory"]) == "failed"
    told = pods_stack.log("pod_too_little_memory.train", runs["pod_too_little_memory"], "train")
    assert "out of memory at its limit of 256Mi, the largest of profile too_little_memory" in told
    assert "add a larger one to more_memory of the profile" in told


def test_a_missing_image_and_a_missing_gpu_are_told(pods_stack: Pods) -> None:
    image = pods_stack.run("pod_no_image.data", start=toys.FIRST)
    gpu = pods_stack.run("pod_gpu_nowhere.data", start=toys.FIRST)
    assert pods_stack.ended("pod_no_image.data", image) == "failed"
    told = pods_stack.log("pod_no_image.data", image, "data")
    assert "The image cannot be pulled: " in told
    assert "cannot start image perennial/there-is-no-such-image:0.0.1 within 0.5 minutes: " in told
    assert "make images" in told and "start_minutes" in told
    assert pods_stack.ended("pod_gpu_nowhere.data", gpu) == "failed"
    told = pods_stack.log("pod_gpu_nowhere.data", gpu, "data")
    assert "found no node within 0.3 minutes" in told and NO_GPU in told


@pytest.mark.parametrize("model", ["pod_late_image", "pod_late_image_deferred"])
def test_an_image_that_comes_later_is_waited_for(pods_stack: Pods, model: str) -> None:
    run = pods_stack.run(f"{model}.data", start=toys.FIRST)
    (pod,) = wait_for(lambda: pods_stack.cluster.pods(**{"perennial/model": model}), "its pod")
    wait_for(
        lambda: "The image cannot be pulled: " in pods_stack.log(f"{model}.data", run, "data"),
        "the task to say that it waits",
    )
    assert pod.spec.containers[0].image == LATE_IMAGE
    # Now the node can start it. (The image of a pod may be changed, which needs no registry.)
    box = {"name": "base", "image": ComputeProfile(name="any", kind="kubernetes").image_name}
    pods_stack.cluster.api.patch_namespaced_pod(
        pod.metadata.name, pod.metadata.namespace, {"spec": {"containers": [box]}}
    )
    pods_stack.succeeds(f"{model}.data", run)
    assert pods_stack.task(f"{model}.data", run, "data")["try_number"] == 1
    assert "The image was pulled after all" in pods_stack.log(f"{model}.data", run, "data")


def test_an_address_that_no_pod_reaches_is_refused_at_once(pods_stack: Pods) -> None:
    run = pods_stack.run("pod_loopback.data", start=toys.FIRST)
    assert pods_stack.ended("pod_loopback.data", run) == "failed"
    told = pods_stack.log("pod_loopback.data", run, "data")
    assert "MLFLOW_TRACKING_URI is http://127.1:5000, the loopback address of this machine" in told
    assert "PERENNIAL_MLFLOW_HOST" in told
    assert "in a pod" not in told  # none was started, and no retry would help
    assert pods_stack.task("pod_loopback.data", run, "data")["try_number"] == 1


def test_the_log_of_a_deferred_training_grows_while_it_runs(pods_stack: Pods) -> None:
    model = "pod_followed"
    run, _ = train_slowly(pods_stack, model)

    def rounds() -> list[str]:
        log = pods_stack.log(f"{model}.train", run, "train")
        return [line.partition("INFO: ")[2] for line in log.splitlines() if ": round " in line]

    wait_for(lambda: len(rounds()) >= 2, "lines about its rounds")
    assert pods_stack.task(f"{model}.train", run, "train")["state"] == "deferred"
    pods_stack.succeeds(f"{model}.train", run, 600)
    said = rounds()
    # The API server counts in seconds: a line may be there twice, but not the whole log.
    assert len(said) < 1.5 * len(set(said))
    # The last fit takes all rows: it has none to judge it by.
    assert all(
        (", logloss 0." in line) == line.startswith("trial") and line.endswith(" rows") for line in said
    )


def test_a_missing_secret_is_named(pods_stack: Pods) -> None:
    run = pods_stack.run("pod_no_secret.data", start=toys.FIRST)
    assert pods_stack.ended("pod_no_secret.data", run) == "failed"
    told = pods_stack.log("pod_no_secret.data", run, "data")
    assert 'secret "there-is-no-such-secret" not found' in told and "secret_env" in told
    assert "cannot start image" not in told


def test_an_exhausted_quota_is_waited_for(pods_stack: Pods) -> None:
    api, namespace = pods_stack.cluster.api, pods_stack.cluster.namespace
    api.create_namespaced_resource_quota(
        namespace, {"metadata": {"name": "full"}, "spec": {"hard": {"requests.cpu": "100m"}}}
    )
    wait_for(
        lambda: api.read_namespaced_resource_quota("full", namespace).status.hard, "the quota to be in force"
    )
    try:
        run = pods_stack.run("pod_big.data", start=toys.FIRST)
        wait_for(
            lambda: "Waiting for quota" in pods_stack.log("pod_big.data", run, "data")
            if pods_stack.task("pod_big.data", run, "data")["state"] == "running" else None,
            "the task to say that it waits",
        )  # fmt: skip
        assert not pods_stack.cluster.pods(**{"perennial/model": "pod_big"})
    finally:
        api.delete_namespaced_resource_quota("full", namespace)
    pods_stack.succeeds("pod_big.data", run)


def test_an_error_of_the_step_reaches_the_task_in_its_own_words(pods_stack: Pods) -> None:
    run = pods_stack.run("pod_loop.data", start="2024-01-30")
    assert pods_stack.ended("pod_loop.data", run) == "failed"
    told = pods_stack.log("pod_loop.data", run, "data")
    assert "2024-01-30" in told and "What to do" in told
    assert pods_stack.task("pod_loop.data", run, "data")["try_number"] == 1  # no retry mends missing data
    assert manifests.read("pod_loop", "data", "2024-01-30") is None


def test_twenty_partitions_are_scored_by_twenty_pods(pods_stack: Pods) -> None:
    model = "pod_many"
    pods_stack.succeeds(f"{model}.data", pods_stack.run(f"{model}.data", start=toys.FIRST, end=toys.LAST))
    pods_stack.succeeds(f"{model}.train", pods_stack.run(f"{model}.train", key=LAST_OF_HISTORY))
    run = pods_stack.run(f"{model}.score", start=toys.FIRST, end=toys.LAST, tasks=20)
    pods_stack.succeeds(f"{model}.score", run, 600)
    tasks = [t for t in pods_stack.airflow.tasks(f"{model}.score", run) if t["task_id"] == "score"]
    assert sorted(t["map_index"] for t in tasks) == list(range(20))
    assert len(toys.content_of("predictions", model)) == toys.DAYS * toys.ROWS


def test_a_pod_whose_task_is_gone_is_deleted(pods_stack: Pods) -> None:
    run, pod = train_slowly(pods_stack, "pod_orphan")
    title = f"airflow worker -- {pods_stack.task('pod_orphan.train', run, 'train')['id']}"
    worker = next(
        p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or ()).strip() == title
    )
    pods_stack.airflow.call("PATCH", f"/dags/pod_orphan.train/dagRuns/{run}/taskInstances/train",
                            json={"new_state": "failed"})  # fmt: skip
    worker.kill()  # before it could delete its pod
    assert pods_stack.ended("pod_orphan.train", run) == "failed"
    api, name = pods_stack.cluster.api, pod.metadata.name
    assert api.read_namespaced_pod(name, pod.metadata.namespace).metadata.deletion_timestamp is None
    pods_stack.airflow.unpause("perennial.maintenance")
    sweep = pods_stack.run("perennial.maintenance", minutes=0)
    pods_stack.succeeds("perennial.maintenance", sweep)
    assert name in pods_stack.log("perennial.maintenance", sweep, "delete_orphaned_pods")


def test_a_task_that_is_marked_failed_leaves_no_pod_and_starts_none(pods_stack: Pods) -> None:
    run, pod = train_slowly(pods_stack, "pod_stopped")
    pods_stack.airflow.call("PATCH", f"/dags/pod_stopped.train/dagRuns/{run}/taskInstances/train",
                            json={"new_state": "failed"})  # fmt: skip
    assert pods_stack.ended("pod_stopped.train", run) == "failed"
    mine = {"perennial/model": "pod_stopped"}
    wait_for(lambda: not pods_stack.cluster.pods(**mine), "its pod to be gone", 120)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        seen = [p.metadata.name for p in pods_stack.cluster.pods(**mine)]
        assert not seen, f"{pod.metadata.name} was ended, and then there were {seen}"
        time.sleep(0.5)
    assert registered("pod_stopped") == 0


def crew_of(pods: Pods, model: str) -> list[Any]:
    return pods.cluster.pods(**{"perennial/model": model, "perennial/role": "worker"})


@pytest.fixture(scope="module")
def connected(cluster: Cluster) -> None:
    """A cluster whose pods reach each other, as Kubernetes asks of every network."""
    server = cluster.start("server", "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler)"
                           ".serve_forever()")  # fmt: skip
    address = wait_for(
        lambda: cluster.api.read_namespaced_pod(server, cluster.namespace).status.pod_ip, "its address"
    )
    look = f"import time, socket; time.sleep(10); socket.create_connection(({address!r}, 8000), timeout=10)"
    client = cluster.start("client", look)
    phase = wait_for(
        lambda: p if (p := cluster.api.read_namespaced_pod(client, cluster.namespace).status.phase)
        in ("Succeeded", "Failed") else None, "it to connect",
    )  # fmt: skip
    for name in (server, client):
        cluster.api.delete_namespaced_pod(name, cluster.namespace, grace_period_seconds=0)
    if phase == "Failed":
        pytest.skip("pods of this cluster cannot reach each other: nothing is tested of workers in pods")


def test_two_workers_train_together(pods_stack: Pods, connected: None) -> None:
    model = "pod_workers"
    pods_stack.succeeds(
        f"{model}.data", pods_stack.run(f"{model}.data", start=toys.FIRST, end=LAST_OF_HISTORY)
    )
    run = pods_stack.run(f"{model}.train", key=LAST_OF_HISTORY)
    trainer = pods_stack.cluster.running(model, "train", **{"perennial/role": "trainer"})
    crew = wait_for(lambda: found if len(found := crew_of(pods_stack, model)) == 2 else None, "two workers")
    for rank, pod in enumerate(sorted(crew, key=lambda p: p.metadata.name)):
        assert pod.metadata.name == f"{trainer.metadata.name}-w{rank}"
        assert [o.uid for o in pod.metadata.owner_references] == [trainer.metadata.uid]
        assert pod.metadata.labels["perennial/step"] == "train" and "run_id" not in pod.metadata.labels
        assert pod.metadata.annotations["perennial/task"] == trainer.metadata.annotations["perennial/task"]
        box, whole = pod.spec.containers[0], trainer.spec.containers[0]
        assert (box.image, box.security_context, box.resources) == (
            whole.image, whole.security_context, whole.resources
        )  # fmt: skip
    pods_stack.succeeds(f"{model}.train", run)
    done = manifests.read(model, "train", LAST_OF_HISTORY)
    assert done is not None and done.result["workers"] == 2 and done.result["gate"]["passed"]
    wait_for(
        lambda: not pods_stack.cluster.pods(**{"perennial/model": model}), "workers to go with their trainer"
    )


def test_two_workers_train_together_in_an_airflow_worker(pods_stack: Pods) -> None:
    model = "pod_workers_here"
    pods_stack.succeeds(
        f"{model}.data", pods_stack.run(f"{model}.data", start=toys.FIRST, end=LAST_OF_HISTORY)
    )
    pods_stack.succeeds(f"{model}.train", pods_stack.run(f"{model}.train", key=LAST_OF_HISTORY))
    done = manifests.read(model, "train", LAST_OF_HISTORY)
    assert done is not None and done.result["workers"] == 2 and done.result["gate"]["passed"]


def test_a_lost_worker_is_an_interruption_that_costs_no_retry(pods_stack: Pods, connected: None) -> None:
    model = "pod_lost_worker"
    run, trainer = train_slowly(pods_stack, model, **{"perennial/role": "trainer"})
    wait_for(lambda: checkpointed(model), "a checkpoint")
    pods_stack.cluster.api.delete_namespaced_pod(
        f"{trainer.metadata.name}-w1", trainer.metadata.namespace, grace_period_seconds=0
    )
    again = wait_for(
        lambda: next((p for p in pods_stack.cluster.pods(**{"perennial/model": model, "perennial/role": "trainer"})
                      if p.metadata.name != trainer.metadata.name), None),
        "another trainer",
    )  # fmt: skip
    assert again.metadata.annotations["perennial/interruptions"] == "1"
    pods_stack.succeeds(f"{model}.train", run, 600)
    assert pods_stack.task(f"{model}.train", run, "train")["try_number"] == 1
    done = manifests.read(model, "train", LAST_OF_HISTORY)
    assert done is not None and done.result["resumed_rounds"] > 0 and done.result["workers"] == 2
    assert registered(model) == 1


def test_workers_that_find_no_node_are_told(pods_stack: Pods) -> None:
    model = "pod_workers_nowhere"
    pods_stack.succeeds(
        f"{model}.data", pods_stack.run(f"{model}.data", start=toys.FIRST, end=LAST_OF_HISTORY)
    )
    run = pods_stack.run(f"{model}.train", key=LAST_OF_HISTORY)
    assert pods_stack.ended(f"{model}.train", run) == "failed"
    told = pods_stack.log(f"{model}.train", run, "train")
    assert "found no node within 0.3 minutes: a worker" in told and NO_GPU in told


def test_no_pod_is_left(pods_stack: Pods) -> None:
    wait_for(lambda: not pods_stack.cluster.pods(), "the last pod to be gone", 60)
