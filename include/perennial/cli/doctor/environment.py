"""`perennial doctor`: whether everything outside is there that the nights will need, asked before they need it.

Each check really does what a step will do (writes an object, stores an artifact, has a pod admitted), leaves nothing
behind, and is bounded in time.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.cli.doctor.finding import ANSWER, Finding, State, bounded, brief
from perennial.core.errors import PerennialError
from perennial.core.settings import endpoint_url, settings
from perennial.spec import compute_profile
from perennial.storage import object_store

if TYPE_CHECKING:
    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec


def examine(profiles: Sequence[str] = ()) -> list[Finding]:
    """Check everything, in the order in which it is set up.

    Args:
        profiles: compute profiles that are checked beside those that the models use.
    """
    found: list[Finding] = []
    used: dict[str, ComputeProfile] = {}
    found += bounded("models", lambda: _models(profiles, used))
    pods = [p for p in used.values() if p.runs_in_pods]
    found = bounded("settings", lambda: _settings(pods)) + found
    try:
        here = settings()
    except PerennialError:
        return found  # told above; nothing else can be asked
    found += bounded("lake", lambda: _lake(here.lake))
    found += bounded("landing area", lambda: _landing(here.landing))
    found += bounded("MLflow", lambda: _mlflow(here.mlflow_uri))
    if pods:
        from perennial.cli.doctor import cluster

        found += cluster.examine(pods)
    return found


# --- settings, models, profiles


def _settings(pods: list[ComputeProfile]) -> Iterator[Finding]:
    try:
        here = settings()
    except PerennialError as error:
        yield Finding("settings", "missing", error.cause, error.remedy)
        return
    for name, place in (("PERENNIAL_LAKE", here.lake), ("PERENNIAL_LANDING", here.landing)):
        said = bool(os.environ.get(name, "").strip())
        shown = place if said else f"{place} (not set: the default)"
        blind = [p.name for p in pods if not object_store.is_remote(place)]
        if blind:
            # a template may mount the folder; without one the step refuses to start
            hard = any(not p.template for p in pods)
            yield Finding(
                name,
                "missing" if hard else "warning",
                f"{shown}: a folder, which pods of profile {', '.join(blind)} cannot see",
                f"set {name} to an s3:// URI, for Airflow and for the shell that this ran in",
            )
        else:
            yield Finding(name, "ok", shown)
    if object_store.is_remote(here.lake) or object_store.is_remote(here.landing):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        where = f" at {endpoint_url()}" if endpoint_url() else ""
        if region:
            yield Finding("AWS_REGION", "ok", f"{region}{where}")
        else:
            yield Finding("AWS_REGION", "warning", f"not set: us-east-1 is taken{where}",
                          "set AWS_REGION to the region of the buckets")  # fmt: skip
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield Finding("MLFLOW_TRACKING_URI", "warning", f"not set: {here.mlflow_uri} is taken",
                      "set MLFLOW_TRACKING_URI to the server's address")  # fmt: skip


def _models(asked: Sequence[str], used: dict[str, ComputeProfile]) -> Iterator[Finding]:
    """Load models, and into ``used`` the profiles that they name."""
    from perennial.spec import catalog

    models, errors = catalog.load_models()
    for error in errors:
        yield Finding(
            f"model {error.model or '?'}", "missing", error.cause.splitlines()[0], "perennial check"
        )
    if models:
        yield Finding("models", "ok", f"{len(models)}: {', '.join(sorted(models))}"[:200])
    else:
        yield Finding(
            "models", "warning", "there are none", "perennial new makes one; PERENNIAL_MODELS names folders"
        )
    for name, users in _users(models.values(), asked).items():
        try:
            profile = compute_profile.load_profile(name)
        except PerennialError as error:
            yield Finding(f"profile {name}", "missing", error.cause.splitlines()[0], error.remedy)
            continue
        used[name] = profile
        yield Finding(f"profile {name}", "ok", f"{profile.kind}, {users}")


def _users(models: Any, asked: Sequence[str]) -> dict[str, str]:
    """Profiles in use, and by whom."""
    users: dict[str, list[str]] = {name: ["named here"] for name in asked}
    found: list[ModelSpec] = list(models)
    for spec in found:
        for step in ("data", "train", "score", "monitor"):
            name = spec.compute.get(step) or compute_profile.default_profile()
            users.setdefault(name, []).append(f"{spec.name}.{step}")
    return {
        name: "used by " + ", ".join(by[:4]) + (f" and {len(by) - 4} more" if len(by) > 4 else "")
        for name, by in users.items()
    }


# --- the lake and the landing area


def _lake(place: str) -> Iterator[Finding]:
    if not object_store.is_remote(place):
        yield _folder("lake", place)
        return
    s3, bucket, prefix, gone = _bucket("lake", place)
    if gone:
        yield gone
        return
    key = f"{prefix}.doctor/{uuid.uuid4().hex}"
    remedy = f"allow s3:GetObject, s3:PutObject and s3:DeleteObject on {bucket}/{prefix}*"
    thing = {"Bucket": bucket, "Key": key}
    try:
        s3.put_object(**thing, Body=b"doctor", IfNoneMatch="*")
    except Exception as error:
        yield Finding("lake: write", "missing", f"{place}: {brief(error)}", remedy)
        return
    yield Finding("lake: write", "ok", f"s3://{bucket}/{key}")
    try:
        read = s3.get_object(**thing)["Body"].read()
        same = read == b"doctor"
        state: State = "ok" if same else "missing"
        yield Finding("lake: read", state, "what was written" if same else "other bytes came back")
    except Exception as error:
        yield Finding("lake: read", "missing", f"{place}: {brief(error)}", remedy)
    yield _conditions(s3, thing)
    try:
        s3.delete_object(**thing)
        yield Finding("lake: remove", "ok", "what was written is gone again")
    except Exception as error:
        yield Finding("lake: remove", "missing", f"{key} is left behind: {brief(error)}", remedy)


def _conditions(s3: Any, thing: dict[str, str]) -> Finding:
    """Whether the store refuses writes whose condition does not hold: commits and locks depend on it."""
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123456789abcdef0123456789abcdef"'}):
        (name,) = condition
        try:
            s3.put_object(**thing, Body=b"second", **condition)
        except Exception as error:
            code = _code(error)
            if code not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return Finding("lake: conditional writes", "missing", f"{name}: {brief(error)}",
                               "allow s3:PutObject with conditions; use a store that has them")  # fmt: skip
        else:
            return Finding(
                "lake: conditional writes",
                "missing",
                f"the store ignores {name}: two runs could overwrite each other's commits",
                "use AWS S3, or a store that honours If-None-Match and If-Match on PUT",
            )
    return Finding("lake: conditional writes", "ok", "a second write is refused")


def _landing(place: str) -> Iterator[Finding]:
    if not object_store.is_remote(place):
        there = Path(place).is_dir()
        yield Finding("landing area", "ok" if there else "warning", place if there else f"{place} is not there yet",
                      "" if there else "it is made by the feed, or set PERENNIAL_LANDING")  # fmt: skip
        return
    s3, bucket, prefix, gone = _bucket("landing area", place)
    if gone:
        yield gone
        return
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
    if not listed:
        yield Finding("landing area: read", "warning", f"nothing is below {place} yet",
                      "let the feed deliver, then ask again: reading was not tried")  # fmt: skip
        return
    key = listed[0]["Key"]
    try:
        s3.get_object(Bucket=bucket, Key=key)["Body"].read(1)
        yield Finding("landing area: read", "ok", f"s3://{bucket}/{key}")
    except Exception as error:
        yield Finding(
            "landing area: read",
            "missing",
            f"s3://{bucket}/{key}: {brief(error)}",
            f"allow s3:GetObject on {bucket}/{prefix}*, and kms:Decrypt if it is encrypted by a key",
        )


def _bucket(what: str, place: str) -> tuple[Any, str, str, Finding | None]:
    """Client, bucket, prefix (ending in a slash, or empty), and what is wrong with it."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    s3 = object_store.client("s3", timeout=ANSWER, max_attempts=2)
    try:
        s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return s3, bucket, prefix, None
    except Exception as error:
        remedies = {
            "NoSuchBucket": f"make it: aws s3 mb s3://{bucket}; or correct the URI",
            "AccessDenied": f"allow s3:ListBucket on {bucket} to the role that this runs as",
            "InvalidAccessKeyId": "check the AWS credentials of this environment",
            "PermanentRedirect": "set AWS_REGION to the bucket's region",
        }
        remedy = remedies.get(
            _code(error), "check AWS_REGION, AWS_ENDPOINT_URL, the credentials and the network"
        )
        return s3, bucket, prefix, Finding(f"{what}: bucket {bucket}", "missing", brief(error), remedy)


def _code(error: Exception) -> str:
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def _folder(what: str, place: str) -> Finding:
    there = Path(place)
    while not there.exists():  # what is not there yet is made by the first step; nothing is left behind here
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return Finding(what, "ok", f"{place} can be written")
    except OSError as error:
        return Finding(
            what, "missing", f"{place}: {error}", "let this user write there, or set PERENNIAL_LAKE"
        )


# --- MLflow


def _mlflow(uri: str) -> Iterator[Finding]:
    import requests

    from perennial.modeling import registry

    def call(method: str, path: str, data: bytes | None = None) -> requests.Response:
        return requests.request(
            method, f"{uri}{path}", data=data, timeout=ANSWER, **registry.request_credentials()
        )

    try:
        answer = call("GET", "/api/2.0/mlflow/registered-models/search?max_results=1")
    except requests.RequestException as error:
        yield Finding("MLflow", "missing", f"{uri} does not answer ({type(error).__name__})",
                      "start it, or set MLFLOW_TRACKING_URI; check the network between")  # fmt: skip
        return
    if not answer.ok or "json" not in answer.headers.get("Content-Type", ""):
        hints = {
            401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            403: "name this host in MLFLOW_SERVER_ALLOWED_HOSTS of the server",
        }
        yield Finding("MLflow", "missing", f"{uri} answered {answer.status_code}: {answer.text[:120]!r}",
                      hints.get(answer.status_code, "look at the server's log; is this MLflow?"))  # fmt: skip
        return
    yield Finding("MLflow", "ok", f"{uri} answers")
    path = f"/api/2.0/mlflow-artifacts/artifacts/.doctor/{uuid.uuid4().hex}"
    remedy = "start the server with --serve-artifacts and --artifacts-destination; let its role read and write there"
    content = uuid.uuid4().bytes
    for what, method, data in (("write", "PUT", content), ("read", "GET", None), ("remove", "DELETE", None)):
        try:
            answer = call(method, path, data)
            problem = "" if answer.ok else f"{answer.status_code}: {answer.text[:160]!r}"
            if what == "read" and answer.ok and answer.content != content:
                problem = "other bytes came back"
        except requests.RequestException as error:
            problem = type(error).__name__
        if problem:
            yield Finding(f"MLflow: {what} artifacts", "missing", problem, remedy)
            return
    yield Finding("MLflow: artifacts", "ok", "written, read and removed through the server")
