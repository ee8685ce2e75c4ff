"""Compute profiles, YAML files that define where a step runs and with which resources.

They are in ``include/compute`` and in the folders of ``PERENNIAL_COMPUTE``. A spec names the profile of a step
(``compute: {train: gpu}``); ``PERENNIAL_PROFILE`` is the default of all heavy steps. Nothing else differs between a
laptop and a cluster.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, model_validator

from perennial import __version__
from perennial.core.errors import SpecError
from perennial.core.settings import ROOT
from perennial.spec import yaml_reader
from perennial.spec.sections import Name, StrictModel

__all__ = [
    "LOCAL",
    "ComputeProfile",
    "GpuRequest",
    "Price",
    "SecretKey",
    "default_profile",
    "load_profile",
    "load_template",
    "profile_files",
    "profile_folders",
    "quantity_bytes",
]

#: The profile of steps that run in the Airflow worker; it has no file.
LOCAL = "local"
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
Cpu = Annotated[str, StringConstraints(pattern=r"^(\d+m|\d+(\.\d+)?)$")]
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip


def quantity_bytes(quantity: str) -> int:
    """Convert a Kubernetes quantity such as ``2Gi`` to bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", quantity)
    assert match, quantity
    return int(float(match[1]) * _UNITS[match[2]])


class GpuRequest(StrictModel):
    """GPUs that a pod requests."""

    count: int = Field(1, ge=1, le=16, description="Number of GPUs.")
    resource: str = Field(
        "nvidia.com/gpu", description="Name of the resource in Kubernetes; GPU slices have their own."
    )
    kind: str | None = Field(
        None, description="GPU model, as in the node label nvidia.com/gpu.product; any when not given."
    )


class Price(StrictModel):
    """What a pod costs, for the console's pages about cost."""

    per_hour: float = Field(gt=0, description="Price of one pod, its GPUs included, for an hour.")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="Currency, as three letters (ISO 4217).")


class SecretKey(StrictModel):
    """One environment variable of the pod, from a Kubernetes secret."""

    env: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="Name of the variable.")
    secret: str = Field(min_length=1, description="Name of the secret.")
    key: str = Field(min_length=1, description="Key within the secret.")


class ComputeProfile(StrictModel):
    """A compute profile, ``include/compute/<name>.yaml``."""

    name: Name = Field(description="Name of the file, without .yaml.")
    kind: Literal["local", "kubernetes", "eks"] = Field(
        description="local: in the Airflow worker. kubernetes: a pod. eks: a pod on Amazon EKS."
    )
    description: str = Field("", max_length=500, description="Purpose.")

    connection: str = Field("kubernetes_default", description="Airflow connection to the cluster.")
    cluster: str | None = Field(None, description="eks: name of the cluster.")
    region: str | None = Field(None, description="eks: region of the cluster.")
    aws_connection: str = Field("aws_default", description="eks: Airflow connection to AWS.")
    namespace: str = Field(
        "perennial", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="Namespace of the pods."
    )
    image: str = Field(
        "perennial/trainer:{version}",
        description="Trainer image; {version} is the library's version. PERENNIAL_TRAINER_IMAGE replaces the default.",
    )
    pull_secrets: list[str] = Field([], description="Secrets for pulling the image.")
    template: str | None = Field(
        None,
        description="File in the same folder with a pod in YAML, which the keys of this profile override.",
    )

    cpu: Cpu = Field("1", description="CPU cores requested; a step uses as many threads.")
    memory: Quantity = Field("2Gi", description="Memory: request and limit.")
    more_memory: list[Quantity] = Field(
        [],
        max_length=6,
        description="Memory limits for the retries after an OOM kill; none: an OOM kill is a failure.",
    )
    scratch: Quantity = Field(
        "4Gi", description="Disk for temporary files; the rest of the pod's disk is read-only."
    )
    gpu: GpuRequest | None = Field(None, description="GPUs; no GPU when not given.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="train: workers that fit a model together, by XGBoost's Dask interface. Each is a pod with these "
        "resources, and one GPU if gpu is given; one more pod without a GPU leads them. local: processes.",
    )

    price: Price | None = Field(
        None,
        description="Price, from which the console computes what runs cost; no money is shown without one.",
    )

    node_selector: dict[str, str] = Field({}, description="Labels that the node must have.")
    tolerations: list[dict[str, Any]] = Field(
        [], description="Tolerations, as in a pod's spec in Kubernetes."
    )
    priority_class: str | None = Field(None, description="Priority class.")
    service_account: str | None = Field(
        None, description="Service account (for IAM roles); its token is not mounted."
    )
    queue: str | None = Field(None, description="Local queue of Kueue that admits the pod.")
    spot: bool = Field(False, description="Prefer spot nodes, by the labels of Karpenter, EKS and GKE.")
    labels: dict[str, str] = Field({}, description="Additional labels, such as team and cost_centre.")
    annotations: dict[str, str] = Field({}, description="Additional annotations.")

    env: dict[str, str] = Field({}, description="Additional environment variables; no secrets here.")
    secrets: list[SecretKey] = Field([], description="Environment variables from Kubernetes secrets.")
    secret_env: list[str] = Field([], description="Secrets of which every key becomes a variable.")

    wait_minutes: float = Field(
        30,
        gt=0,
        le=1440,
        description="Minutes that a pod may wait for a node or for quota.",
    )
    start_minutes: float = Field(
        10, gt=0, le=120, description="Minutes that a pod with a node may take to pull its image and start."
    )
    run_minutes: float | None = Field(
        None, gt=0, le=10080, description="Minutes that a pod may run; unlimited when not given."
    )
    interruptions: int = Field(
        3,
        ge=0,
        le=20,
        description="Retries after evictions and lost nodes, in addition to the task's retries.",
    )
    deferrable: bool = Field(False, description="Wait in the triggerer instead of a worker, for long runs.")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.kind == "eks" and not self.cluster:
            raise ValueError("cluster is missing: kind eks needs the name of the cluster")
        if self.kind != "eks" and (self.cluster or self.region):
            raise ValueError(f"cluster and region are for kind eks; kind is {self.kind!r}")
        if self.kind == "local" and self.gpu:
            raise ValueError("gpu is for pods; for kind local, set training.device in model.yaml")
        if self.workers > 1 and self.gpu and self.gpu.count > 1:
            raise ValueError(
                f"gpu.count is {self.gpu.count} with {self.workers} workers: each uses one GPU; raise workers instead"
            )
        sizes = [quantity_bytes(q) for q in self.memory_limits()]
        if sizes[0] < 256 * 2**20:
            raise ValueError(f"memory is {self.memory!r}: a step needs at least 256Mi")
        if sizes != sorted(set(sizes)):
            raise ValueError(
                f"more_memory is {self.more_memory}: each must be larger than the one before (memory is {self.memory})"
            )
        if connections := [name for name in self.env if name.startswith("PERENNIAL_CONNECTION_")]:
            raise ValueError(
                f"env.{connections[0]} is the URI of a database, which may hold a password: name a Kubernetes secret "
                "in secrets instead"
            )
        if duplicates := sorted(set(self.env) & {s.env for s in self.secrets}):
            raise ValueError(f"env.{duplicates[0]} is also given in secrets: remove one of them")
        return self

    @property
    def runs_in_pods(self) -> bool:
        """Whether steps run in pods."""
        return self.kind != LOCAL

    @property
    def image_name(self) -> str:
        """The image, with the version of the library."""
        image = self.image
        if image == ComputeProfile.model_fields["image"].default:
            image = os.environ.get("PERENNIAL_TRAINER_IMAGE", "").strip() or image
        return image.replace("{version}", __version__)

    def worker_count(self, step: str) -> int:
        """The number of processes that run a step: more than one only for training."""
        return self.workers if step == "train" else 1

    def memory_limits(self) -> list[str]:
        """Memory limits, in the order in which they are tried."""
        return [self.memory, *self.more_memory]


def profile_folders() -> list[Path]:
    """Folders that are searched for profiles; those of ``PERENNIAL_COMPUTE`` come first."""
    extra = os.environ.get("PERENNIAL_COMPUTE", "").split(os.pathsep)
    return [*(Path(p).resolve() for p in extra if p.strip()), ROOT / "include" / "compute"]


def profile_files() -> dict[str, Path]:
    """The file of each profile, by the profile's name."""
    return {
        path.stem: path for folder in reversed(profile_folders()) for path in sorted(folder.glob("*.yaml"))
    }


def load_profile(name: str) -> ComputeProfile:
    """Read the profile called ``name``.

    Raises:
        SpecError: there is none, or its file is invalid.
    """
    if name == LOCAL:
        return ComputeProfile(name=LOCAL, kind="local")
    if name not in (files := profile_files()):
        names = [LOCAL, *files]
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        raise SpecError(
            f"there is no compute profile {name!r}; {hint}",
            f"name one of them, or put {name}.yaml into include/compute or a folder of PERENNIAL_COMPUTE",
        )
    return _read(files[name], files[name].stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _modified_at: int) -> ComputeProfile:
    """Read a profile's file; cached until it changes, because the DAG files of all models read it."""
    profile = yaml_reader.parse_yaml(path, ComputeProfile, model=None)
    if profile.name != path.stem:
        raise SpecError(
            f"{yaml_reader.display_path(path)}: name is {profile.name!r}, the file is {path.name!r}",
            "a profile has the name of its file",
        )
    if profile.template and not (path.parent / profile.template).is_file():
        raise SpecError(
            f"{yaml_reader.key_location(path, 'template')}: template {profile.template!r} is not in the same folder",
            "put the pod's YAML there, or remove the key",
        )
    return profile


def load_template(profile: ComputeProfile) -> dict[str, Any]:
    """Read the pod template of a profile, which the profile overrides; empty if it has none."""
    if not profile.template:
        return {}
    return dict(
        yaml.safe_load((profile_files()[profile.name].parent / profile.template).read_text("utf-8")) or {}
    )


def default_profile() -> str:
    """The profile of heavy steps for which a spec names none."""
    return os.environ.get("PERENNIAL_PROFILE", "").strip() or LOCAL
