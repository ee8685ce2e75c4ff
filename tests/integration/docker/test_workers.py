"""Trainer and workers of one training, each in a container of the trainer image, as their pods are."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial import __version__
from perennial.core import runtime
from perennial.spec.model_spec import ModelSpec
from perennial.storage import object_store
from perennial.training.checkpoint import Checkpoint
from support import servers, toys

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(600)]
DOCKER = os.environ.get("DOCKER", "docker")
IMAGE = os.environ.get("PERENNIAL_TRAINER_IMAGE") or f"perennial/trainer:{__version__}"
RENDEZVOUS = "s3://perennial/lake/rendezvous.json"
#: The fit of the train step, without the registry that it uses afterwards.
TRAINER = f"""
import json, sys
from perennial.features.engine import FeatureQuery
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training._distributed_dataset import DatasetRef, build_distributed_dataset
from perennial.training.checkpoint import Checkpoint
from perennial.training.dask_cluster import worker_pool
from perennial.training.search import search_and_fit
from perennial.training.windows import split_partitions

spec = ModelSpec.from_bundle(json.load(sys.stdin))
features = FeatureQuery(spec)
published, labels = (delta_tables.table_uri(kind, spec.name) for kind in ("published", "labels"))
versions = delta_tables.version(published), delta_tables.version(labels)
windows = split_partitions(spec, {toys.LAST!r}, delta_tables.partitions(labels))
checkpoint = Checkpoint.for_inputs(spec.name, "test", {{}})
with worker_pool(2, {RENDEZVOUS!r}) as pool:
    source = DatasetRef(spec, features.reference_versions, *versions)
    data = build_distributed_dataset(pool, source, windows, tuple(features.columns))
    fitted = search_and_fit(spec, data, checkpoint=checkpoint)
print(json.dumps({{"rounds": fitted.rounds, "loss": fitted.trials[0].loss, "resumed": checkpoint.resumed}}))
"""


class Containers:
    """Starts the image on Docker's own network, and ends all that it started."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._options = [f"--env={name}={value}" for name, value in environ.items()]
        self.names: list[str] = []

    def start(self, name: str, *arguments: str, entrypoint: str = "") -> subprocess.Popen[str]:
        """Run one, restricted as a pod is."""
        own = toys.unique(name)
        self.names.append(own)
        command = [
            DOCKER, "run", "--rm", "--interactive", "--name", own, "--read-only", "--tmpfs", "/tmp:mode=1777",
            "--tmpfs", "/scratch:uid=10001,gid=10001,mode=0770", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--memory", "2g", *self._options,
            *(["--entrypoint", entrypoint] if entrypoint else []), IMAGE, *arguments,
        ]  # fmt: skip
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def kill(self, *names: str) -> None:
        """End containers at once, as a lost node does."""
        subprocess.run([DOCKER, "kill", *names], capture_output=True, timeout=60)


@pytest.fixture
def containers(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containers]:
    """The image of this checkout, beside a lake on S3 that containers reach."""
    import boto3

    found = subprocess.run(
        [DOCKER, "run", "--rm", IMAGE, "library-digest"], capture_output=True, text=True, timeout=120
    )
    if found.returncode:
        pytest.skip(f"there is no engine, or no image {IMAGE} in it (make images IMAGES=trainer)")
    assert found.stdout.strip() == runtime.library_digest(), f"{IMAGE} is older: make images IMAGES=trainer"
    look = [DOCKER, "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    host = subprocess.run(look, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    with servers.s3(tmp_path, host) as url:
        environ = {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "PERENNIAL_LAKE": "s3://perennial/lake",
            "PERENNIAL_LANDING": "s3://perennial/landing", "PERENNIAL_THREADS": "1",
            "PERENNIAL_CHECKPOINT_SECONDS": "1", "PERENNIAL_WORKERS_MINUTES": "2",
        }  # fmt: skip
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, host)
        boto3.resource("s3").Bucket("perennial").create()
        made = Containers(environ)
        try:
            yield made
        finally:
            made.kill(*made.names)


@pytest.fixture
def make(containers: Containers, tmp_path: Path) -> Callable[..., ModelSpec]:
    def make(**training: Any) -> ModelSpec:
        spec = toys.model(tmp_path / "models", toys.unique(), training=training)
        toys.publish(spec)
        return spec

    return make


def fit(containers: Containers, spec: ModelSpec) -> tuple[subprocess.Popen[str], list[subprocess.Popen[str]]]:
    """Start a trainer and two workers."""
    command = ["worker", "--rendezvous", RENDEZVOUS, "--library-digest", runtime.library_digest(), "--rank"]
    trainer = containers.start("trainer", "-c", TRAINER, entrypoint="python")
    assert trainer.stdin
    trainer.stdin.write(json.dumps(spec.bundle()))
    trainer.stdin.close()
    trainer.stdin = None
    return trainer, [containers.start(f"worker{rank}", *command, str(rank)) for rank in (0, 1)]


def test_containers_train_together(containers: Containers, make: Callable[..., ModelSpec]) -> None:
    trainer, workers = fit(containers, make())
    out, err = trainer.communicate(timeout=300)
    assert trainer.returncode == 0, err
    done = json.loads(out.splitlines()[-1])
    assert 1 <= done["rounds"] <= 25 and done["loss"] < 0.6 and done["resumed"] == 0
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert not object_store.exists(RENDEZVOUS)


def test_what_a_lost_container_interrupts_goes_on(
    containers: Containers, make: Callable[..., ModelSpec]
) -> None:
    spec = make(rounds=1500, early_stopping_rounds=1000, params={"learning_rate": 0.001})
    trainer, _ = fit(containers, spec)
    checkpoint = Checkpoint.for_inputs(spec.name, "test", {})
    lost = threading.Thread(
        target=_kill_once_it_boosts, args=(containers, containers.names[-1], checkpoint), daemon=True
    )
    lost.start()
    _, err = trainer.communicate(timeout=300)
    assert trainer.returncode == 1 and "StepInterruptedError: 1 of 2 workers lost" in err, err
    again, _ = fit(containers, spec)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["resumed"] > 0


def _kill_once_it_boosts(containers: Containers, name: str, place: Checkpoint) -> None:
    while not object_store.exists(f"{place.uri}/trial-0.ubj"):
        time.sleep(0.2)
    containers.kill(name)
