"""Compute profiles: where a step runs, and with what. A YAML file each, in ``include/compute`` or a team's folder.

A model's spec names a profile for a step (``compute: {train: gpu}``); ``PERENNIAL_PROFILE`` names the one for all heavy
steps that the spec leaves open. Nothing else changes between a laptop and a cluster.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from perennial import __version__
from perennial.core.errors import SpecError
from perennial.core.settings import ROOT
from perennial.spec.sections import Name, StrictModel

LOCAL = "local"
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
Cpu = Annotated[str, StringConstraints(pattern=r"^(\d+m|\d+(\.\d+)?)$")]
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip


def quantity_bytes(quantity: str) -> int:
    """A Kubernetes quantity such as ``2Gi`` in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", quantity)
    assert found, quantity
    return int(float(found[1]) * _UNITS[found[2]])


class GpuRequest(StrictModel):
    """GPUs that a pod asks for."""

    count: int = Field(1, ge=1, le=16, description="How many.")
    resource: str = Field(
        "nvidia.com/gpu", description="The resource's name in Kubernetes; a slice has its own."
    )
    kind: str | None = Field(
        None, description="Card, as the node label nvidia.com/gpu.product says; any when not given."
    )


class SecretKey(StrictModel):
    """One environment variable of the pod, from a Kubernetes secret."""

    env: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="The variable.")
    secret: str = Field(min_length=1, description="Name of the secret.")
    key: str = Field(min_length=1, description="Its key.")


class ComputeProfile(StrictModel):
    """A compute profile: ``include/compute/<name>.yaml``."""

    name: Name = Field(description="The file's name without .yaml.")
    kind: Literal["local", "kubernetes", "eks"] = Field(
        description="local: in the Airflow worker. kubernetes: a pod. eks: a pod on Amazon EKS."
    )
    description: str = Field("", max_length=500, description="What it is for.")

    connection: str = Field("kubernetes_default", description="Airflow connection to the cluster.")
    cluster: str | None = Field(None, description="eks: the cluster's name.")
    region: str | None = Field(None, description="eks: the cluster's region.")
    aws_connection: str = Field("aws_default", description="eks: Airflow connection to AWS.")
    namespace: str = Field(
        "perennial", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="Namespace of the pods."
    )
    image: str = Field(
        "perennial/trainer:{version}",
        description="The trainer image; {version} is the library's. PERENNIAL_TRAINER_IMAGE replaces the default.",
    )
    pull_secrets: list[str] = Field([], description="Secrets that the image is pulled with.")
    template: str | None = Field(
        None, description="A pod in YAML beside this file that everything here is laid over."
    )

    cpu: Cpu = Field("1", description="CPU cores asked for; steps use as many threads.")
    memory: Quantity = Field("2Gi", description="Memory: request and limit.")
    more_memory: list[Quantity] = Field(
        [], max_length=6, description="Limits tried in turn after an OOM kill; none: an OOM kill is the end."
    )
    scratch: Quantity = Field(
        "4Gi", description="Disk for working files; the rest of the pod's disk is read-only."
    )
    gpu: GpuRequest | None = Field(None, description="GPUs; none when not given.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="train: so many fit together, by XGBoost's Dask interface. Each is a pod of these resources, "
        "with one GPU where gpu is given; one more without a GPU leads them. local: processes.",
    )

    node_selector: dict[str, str] = Field({}, description="Labels that the node must have.")
    tolerations: list[dict[str, Any]] = Field(
        [], description="Taints that the pod accepts, as Kubernetes writes them."
    )
    priority_class: str | None = Field(None, description="Priority class.")
    service_account: str | None = Field(
        None, description="Service account (for IAM roles); its token is not mounted."
    )
    queue: str | None = Field(None, description="Kueue's local queue that admits the pod.")
    spot: bool = Field(False, description="Prefer spot nodes: by Karpenter's, EKS's or GKE's label.")
    labels: dict[str, str] = Field({}, description="Further labels, such as team and cost_centre.")
    annotations: dict[str, str] = Field({}, description="Further annotations.")

    env: dict[str, str] = Field({}, description="Further environment variables; no secrets here.")
    secrets: list[SecretKey] = Field([], description="Environment variables from Kubernetes secrets.")
    secret_env: list[str] = Field([], description="Secrets whose every key becomes a variable.")

    wait_minutes: float = Field(
        30,
        gt=0,
        le=1440,
        description="How long a pod may wait for a node or for quota before that is a failure.",
    )
    start_minutes: float = Field(
        10, gt=0, le=120, description="How long a pod with a node may take to pull its image and start."
    )
    run_minutes: float | None = Field(
        None, gt=0, le=10080, description="How long a pod may run; without end when not given."
    )
    interruptions: int = Field(
        3,
        ge=0,
        le=20,
        description="Evictions and lost nodes that are tried again, beside the task's retries.",
    )
    deferrable: bool = Field(False, description="Wait in the triggerer, for pods that run for long.")

    @model_validator(mode="after")
    def _across(self) -> Self:
        if self.kind == "eks" and not self.cluster:
            raise ValueError("cluster is missing: kind eks needs the cluster's name")
        if self.kind != "eks" and (self.cluster or self.region):
            raise ValueError(f"cluster and region belong to kind eks; kind is {self.kind!r}")
        if self.kind == "local" and self.gpu:
            raise ValueError("gpu belongs to pods: on this machine training.device decides")
        if self.workers > 1 and self.gpu and self.gpu.count > 1:
            raise ValueError(
                f"gpu.count is {self.gpu.count} with {self.workers} workers: each uses one GPU; have more workers"
            )
        ladder = [self.memory, *self.more_memory]
        sizes = [quantity_bytes(q) for q in ladder]
        if sizes[0] < 256 * 2**20:
            raise ValueError(f"memory is {self.memory!r}: a step needs 256Mi at least")
        if sizes != sorted(set(sizes)):
            raise ValueError(
                f"more_memory is {self.more_memory}: each must be more than the one before (memory is {self.memory})"
            )
        if taken := sorted(set(self.env) & {s.env for s in self.secrets}):
            raise ValueError(f"env.{taken[0]} is given in secrets too: one of them")
        return self

    @property
    def runs_in_pods(self) -> bool:
        """Whether steps run in pods."""
        return self.kind != LOCAL

    @property
    def image_name(self) -> str:
        """The image, with the library's version."""
        image = self.image
        if image == ComputeProfile.model_fields["image"].default:
            image = os.environ.get("PERENNIAL_TRAINER_IMAGE", "").strip() or image
        return image.replace("{version}", __version__)

    def worker_count(self, step: str) -> int:
        """How many processes do a step's work: several for training alone."""
        return self.workers if step == "train" else 1

    def memory_limits(self) -> list[str]:
        """Memory limits in the order that they are tried."""
        return [self.memory, *self.more_memory]


def profile_folders() -> list[Path]:
    """Where profiles are looked for; a team's own folders (``PERENNIAL_COMPUTE``) come first."""
    extra = os.environ.get("PERENNIAL_COMPUTE", "").split(os.pathsep)
    return [*(Path(p).resolve() for p in extra if p.strip()), ROOT / "include" / "compute"]


def profile_files() -> dict[str, Path]:
    """Files of the profiles, by name."""
    return {
        path.stem: path for folder in reversed(profile_folders()) for path in sorted(folder.glob("*.yaml"))
    }


def load_profile(name: str) -> ComputeProfile:
    """The profile called ``name``.

    Raises:
        SpecError: there is none, or its file is broken.
    """
    if name == LOCAL:
        return ComputeProfile(name=LOCAL, kind="local")
    if name not in (found := profile_files()):
        names = [LOCAL, *found]
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        raise SpecError(
            f"there is no compute profile {name!r}; {hint}",
            f"name one of them, or put {name}.yaml into include/compute or a folder of PERENNIAL_COMPUTE",
        )
    return _read(found[name], found[name].stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed: int) -> ComputeProfile:
    """A profile's file; read once as long as it does not change, since the DAG files of all models ask for it."""
    from perennial.spec import yaml_reader

    profile = yaml_reader.parse_yaml(path, ComputeProfile, model=None)
    if profile.name != path.stem:
        raise SpecError(
            f"{yaml_reader.display_path(path)}: name is {profile.name!r}, the file is {path.name!r}",
            "a profile's name is its file's name",
        )
    if profile.template and not (path.parent / profile.template).is_file():
        raise SpecError(
            f"{yaml_reader.key_location(path, 'template')}: template {profile.template!r} is not beside it",
            "put the pod's YAML there, or leave the key out",
        )
    return profile


def load_template(profile: ComputeProfile) -> dict[str, Any]:
    """The pod that a profile is laid over; empty where it names none."""
    import yaml

    if not profile.template:
        return {}
    return dict(
        yaml.safe_load((profile_files()[profile.name].parent / profile.template).read_text("utf-8")) or {}
    )


def default_profile() -> str:
    """The profile of heavy steps whose spec names none."""
    return os.environ.get("PERENNIAL_PROFILE", "").strip() or LOCAL
