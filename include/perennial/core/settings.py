"""Folders, URIs and limits, read from the environment at each call."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from perennial.core.errors import PerennialError

__all__ = ["CHECKOUT", "ROOT", "Settings", "endpoint_url", "settings"]


def _checkout(package: Path) -> Path | None:
    return package.parents[1] if package.parent.name == "include" else None


#: The checkout, or the image's copy of one, that holds this library; None if pip installed it.
CHECKOUT = _checkout(Path(__file__).resolve().parents[1])
#: Where ``include/models``, ``include/compute`` and ``.perennial`` lie by default.
ROOT = CHECKOUT or Path.cwd()


@dataclass(frozen=True)
class Settings:
    """The environment of one process.

    Attributes:
        home: working folder of the local stack.
        lake: folder or ``s3://`` URI of the lake.
        landing: folder or ``s3://`` URI of the landing area.
        memory_mb: memory one step may use, in MiB.
        threads: threads one step may use.
        query_seconds: time that a query of a database, or one writing of predictions to it, may take, in seconds.
        mlflow_uri: URL of the MLflow server.
        mlflow_ui: URL of its pages, as a browser reaches them.
        ledger_anchors: folder or ``s3://`` URI of anchors of the ledger; empty if there is none.
        drills: whether DAGs try reproduction and rollback by themselves.
        erasure_secret: under which the keys of erased rows are hashed; empty for the one in the lake.
        models: folders that are searched for models and feature sets, in order.
    """

    home: Path
    lake: str
    landing: str
    memory_mb: int
    threads: int
    query_seconds: int
    mlflow_uri: str
    mlflow_ui: str
    ledger_anchors: str
    drills: bool
    erasure_secret: str = field(repr=False)
    models: tuple[Path, ...]

    def mlflow_run_page(self, run_id: str) -> str:
        """Address of a run's page in MLflow."""
        return f"{self.mlflow_ui}/#/runs/{run_id}"

    @property
    def storage_options(self) -> dict[str, str]:
        """Options for ``deltalake`` if the lake is on S3 (credentials come from the usual AWS variables)."""
        if not self.lake.startswith("s3://"):
            return {}
        options = {"aws_conditional_put": "etag"}
        if endpoint := endpoint_url():
            options |= {
                "aws_endpoint": endpoint,
                "aws_allow_http": str(endpoint.startswith("http://")).lower(),
            }
        return options


def endpoint_url() -> str | None:
    """The S3 endpoint; None for the default one of AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _number(name: str, default: int, low: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit() or int(text) < low:
        raise PerennialError(
            f"{name} is {text!r}; a whole number of at least {low} is needed", f"correct or unset {name}"
        )
    return int(text)


def _is_on(name: str) -> bool:
    text = os.environ.get(name, "").strip().lower() or "on"
    if text not in ("on", "off"):
        raise PerennialError(f"{name} is {text!r}; it must be on or off", f"correct or unset {name}")
    return text == "on"


def _folder_or_uri(name: str, default: Path | None) -> str:
    text = os.environ.get(name, "").strip() or str(default or "")
    if not text:
        return ""
    return text.rstrip("/") if text.startswith("s3://") else str(_resolved(text))


def _resolved(path: str) -> Path:
    return _resolved_from(path, Path.cwd())


@cache
def _resolved_from(path: str, working_folder: Path) -> Path:
    """The absolute path; steps ask for it hundreds of times, and finding it asks the file system."""
    return (working_folder / path).resolve()


def settings() -> Settings:
    """Read the environment.

    Raises:
        PerennialError: a variable has an unusable value.
    """
    home = _resolved(os.environ.get("PERENNIAL_HOME", "").strip() or str(ROOT / ".perennial"))
    extra = [_resolved(p) for p in os.environ.get("PERENNIAL_MODELS", "").split(os.pathsep) if p.strip()]
    mlflow_uri = os.environ.get("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000").rstrip("/")
    return Settings(
        home=home,
        lake=_folder_or_uri("PERENNIAL_LAKE", home / "lake"),
        landing=_folder_or_uri("PERENNIAL_LANDING", home / "landing"),
        memory_mb=_number("PERENNIAL_MEMORY_MB", 1024, 256),
        threads=_number("PERENNIAL_THREADS", min(4, os.cpu_count() or 1), 1),
        query_seconds=_number("PERENNIAL_QUERY_SECONDS", 1800, 1),
        mlflow_uri=mlflow_uri,
        mlflow_ui=os.environ.get("PERENNIAL_MLFLOW_UI", "").strip().rstrip("/") or mlflow_uri,
        ledger_anchors=_folder_or_uri("PERENNIAL_LEDGER_ANCHORS", None),
        drills=_is_on("PERENNIAL_DRILLS"),
        erasure_secret=os.environ.get("PERENNIAL_ERASURE_SECRET", "").strip(),
        models=(ROOT / "include" / "models", *extra),
    )
