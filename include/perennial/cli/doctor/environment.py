"""`perennial doctor`: checks settings, storage, MLflow and cluster for everything that DAGs need.

Each check performs the operations of a step (write an object, store an artifact, submit a pod as a dry run), removes
what it wrote, and has a time limit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from perennial.cli.doctor import _databases, cluster, finding
from perennial.cli.doctor.finding import Finding, State, brief, run_with_time_limit
from perennial.core import signing_keys
from perennial.core.errors import PerennialError
from perennial.core.settings import endpoint_url, settings
from perennial.modeling import mlflow_api
from perennial.spec import catalog, compute_profile, pod_manifest
from perennial.spec.compute_profile import ComputeProfile
from perennial.spec.model_spec import ModelSpec
from perennial.storage import object_store


def examine(profiles: Sequence[str] = ()) -> list[Finding]:
    """Run all checks, in the order in which an environment is set up.

    Args:
        profiles: names of compute profiles to check in addition to those that the models use.
    """
    used: dict[str, ComputeProfile] = {}
    findings = run_with_time_limit("models", lambda: _models(profiles, used))
    pods = [p for p in used.values() if p.runs_in_pods]
    findings = run_with_time_limit("settings", lambda: _settings(pods)) + findings
    try:
        current = settings()
    except PerennialError:
        return findings  # reported above; the other checks need the settings
    findings += run_with_time_limit("lake", lambda: _lake(current.lake))
    findings += run_with_time_limit("landing area", lambda: _landing(current.landing))
    findings += run_with_time_limit("connections", _connections)
    findings += run_with_time_limit("MLflow", lambda: _mlflow(current.mlflow_uri))
    if pods:
        findings += cluster.examine(pods)
    return findings


# --- settings, models, profiles


def _settings(pods: list[ComputeProfile]) -> Iterator[Finding]:
    try:
        current = settings()
    except PerennialError as error:
        yield Finding("settings", "missing", error.cause, error.remedy)
        return
    unreachable = {item.what: item for item in _unreachable(pods)}
    for name, uri in (("PERENNIAL_LAKE", current.lake), ("PERENNIAL_LANDING", current.landing)):
        ok = Finding(name, "ok", _shown(name, uri))
        yield unreachable.pop(name, ok)
    if object_store.is_remote(current.lake) or object_store.is_remote(current.landing):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        where = f" at {endpoint_url()}" if endpoint_url() else ""
        if region:
            yield Finding("AWS_REGION", "ok", f"{region}{where}")
        else:
            yield Finding("AWS_REGION", "warning", f"not set: us-east-1 is used{where}",
                          "set AWS_REGION to the region of the buckets")  # fmt: skip
    yield from unreachable.values()
    if not os.environ.get("MLFLOW_TRACKING_URI") and "MLFLOW_TRACKING_URI" not in unreachable:
        yield Finding("MLFLOW_TRACKING_URI", "warning", f"not set: {current.mlflow_uri} is used",
                      "set MLFLOW_TRACKING_URI to the server's address")  # fmt: skip


def _shown(name: str, value: str) -> str:
    """A setting's value, and whether it is the default."""
    return value if os.environ.get(name, "").strip() else f"{value} (not set: the default)"


def _unreachable(pods: list[ComputeProfile]) -> Iterator[Finding]:
    """What the steps' pods are told to reach, and cannot; one finding a variable, the worst."""
    by_variable: dict[str, list[tuple[str, pod_manifest.UnreachableValue]]] = {}
    for profile in pods:
        for item in pod_manifest.unreachable_values(profile, cluster.dry_run_pod(profile)):
            by_variable.setdefault(item.variable, []).append((profile.name, item))
    for name, items in by_variable.items():
        certain = [(profile, item) for profile, item in items if item.certain]
        affected = certain or items
        item = affected[0][1]
        profiles = ", ".join(profile for profile, _ in affected)
        detail = f"{_shown(name, item.value)}: {item.reason}, which pods of profile {profiles} cannot reach"
        remedy = f"{item.remedy}, for Airflow and for this shell"
        if not certain:
            remedy = f"make sure that the profile's template provides it; otherwise {remedy}"
        yield Finding(name, "missing" if certain else "warning", detail, remedy)


def _models(profiles: Sequence[str], used: dict[str, ComputeProfile]) -> Iterator[Finding]:
    """Check models and profiles, and add the profiles that are used or given to ``used``."""
    models, errors = catalog.load_models()
    for error in errors:
        yield Finding(
            f"model {error.model or '?'}", "missing", error.cause.splitlines()[0], "perennial check"
        )
    if models:
        yield Finding("models", "ok", f"{len(models)}: {', '.join(sorted(models))}"[:200])
    else:
        yield Finding(
            "models", "warning", "there are none", "create one with `perennial new`, or set PERENNIAL_MODELS"
        )
    for name, users in _users(models.values(), profiles).items():
        try:
            profile = compute_profile.load_profile(name)
        except PerennialError as error:
            yield Finding(f"profile {name}", "missing", error.cause.splitlines()[0], error.remedy)
            continue
        used[name] = profile
        yield Finding(f"profile {name}", "ok", f"{profile.kind}, {users}")
    trainers = {spec.compute.get("train") or compute_profile.default_profile() for spec in models.values()}
    yield from (
        _signing(used[name]) for name in sorted({*trainers, *profiles} & {*used}) if _must_sign(used[name])
    )


def _must_sign(profile: ComputeProfile) -> bool:
    """Whether a profile has pods whose versions are accepted with a signature only."""
    return profile.runs_in_pods and signing_keys.trusted_keys() is not None


def _signing(profile: ComputeProfile) -> Finding:
    """Whether pods that train get the key that versions are signed with; Airflow never hands it over."""
    what, given = f"signing key of profile {profile.name}", signing_keys.SIGNING_KEY
    pod = cluster.dry_run_pod(profile, "train")
    if any(entry["name"] == given for entry in pod["spec"]["containers"][0].get("env", [])):
        return Finding(what, "ok", f"pods that train get {given}")
    namespace = f"--namespace {profile.namespace}"
    return Finding(
        what,
        "missing",
        f"versions are accepted with a signature only, and pods that train have no {given}",
        f"kubectl {namespace} create secret generic perennial-signing --from-file private.pem=FILE "
        f"(of the local stack: {settings().home / 'signing' / 'private.pem'}), and in the profile "
        f"secrets: [{{env: {given}, secret: perennial-signing, key: private.pem}}]",
    )


def _users(models: Iterable[ModelSpec], profiles: Sequence[str]) -> dict[str, str]:
    """The profiles in use, and the steps that use each."""
    users: dict[str, list[str]] = {name: ["--profile"] for name in profiles}
    for spec in models:
        for step in ("data", "train", "score", "monitor"):
            name = spec.compute.get(step) or compute_profile.default_profile()
            users.setdefault(name, []).append(f"{spec.name}.{step}")
    return {
        name: "used by " + ", ".join(by[:4]) + (f" and {len(by) - 4} more" if len(by) > 4 else "")
        for name, by in users.items()
    }


def _connections() -> Iterator[Finding]:
    """Check the connections to databases of all models, and that the pods of their steps get them."""
    models, _ = catalog.load_models()
    profiles: dict[tuple[str, str], ComputeProfile] = {}
    for spec in models.values():
        if spec.connections("data"):  # predictions are written by the worker
            with contextlib.suppress(PerennialError):  # reported above
                name = spec.compute.get("data") or compute_profile.default_profile()
                profile = compute_profile.load_profile(name)
                if profile.runs_in_pods:
                    profiles[spec.name, "data"] = profile
    yield from _databases.examine(models, profiles)


# --- the lake and the landing area


def _lake(uri: str) -> Iterator[Finding]:
    if not object_store.is_remote(uri):
        yield _folder("lake", uri)
        return
    s3, bucket, prefix, problem = _bucket("lake", uri)
    if problem:
        yield problem
        return
    key = f"{prefix}.doctor/{uuid.uuid4().hex}"
    remedy = f"allow s3:GetObject, s3:PutObject and s3:DeleteObject on {bucket}/{prefix}*"
    target = {"Bucket": bucket, "Key": key}
    try:
        s3.put_object(**target, Body=b"doctor", IfNoneMatch="*")
    except Exception as error:
        yield Finding("lake: write", "missing", f"{uri}: {brief(error)}", remedy)
        return
    yield Finding("lake: write", "ok", f"s3://{bucket}/{key}")
    try:
        read = s3.get_object(**target)["Body"].read()
        same = read == b"doctor"
        state: State = "ok" if same else "missing"
        yield Finding("lake: read", state, "returns what was written" if same else "returned other bytes")
    except Exception as error:
        yield Finding("lake: read", "missing", f"{uri}: {brief(error)}", remedy)
    yield _conditions(s3, target)
    try:
        s3.delete_object(**target)
        yield Finding("lake: remove", "ok", "the object was removed")
    except Exception as error:
        yield Finding("lake: remove", "missing", f"{key} could not be removed: {brief(error)}", remedy)


def _conditions(s3: Any, target: dict[str, str]) -> Finding:
    """Check that conditional writes with a false condition are refused, as commits and locks need."""
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123456789abcdef0123456789abcdef"'}):
        (name,) = condition
        try:
            s3.put_object(**target, Body=b"second", **condition)
        except Exception as error:
            code = _code(error)
            if code not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return Finding("lake: conditional writes", "missing", f"{name}: {brief(error)}",
                               "allow s3:PutObject with conditions, or use a store that supports them")  # fmt: skip
        else:
            return Finding(
                "lake: conditional writes",
                "missing",
                f"the store ignores {name}: two runs could overwrite each other's commits",
                "use AWS S3, or a store that supports If-None-Match and If-Match on PUT",
            )
    return Finding("lake: conditional writes", "ok", "a second write is refused")


def _landing(uri: str) -> Iterator[Finding]:
    if not object_store.is_remote(uri):
        exists = Path(uri).is_dir()
        yield Finding("landing area", "ok" if exists else "warning", uri if exists else f"{uri} does not exist yet",
                      "" if exists else "the feed creates it; or set PERENNIAL_LANDING")  # fmt: skip
        return
    s3, bucket, prefix, problem = _bucket("landing area", uri)
    if problem:
        yield problem
        return
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
    if not listed:
        yield Finding("landing area: read", "warning", f"there is nothing below {uri} yet",
                      "run this again after the first delivery: reading was not tried")  # fmt: skip
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
            f"allow s3:GetObject on {bucket}/{prefix}*, and kms:Decrypt if it is encrypted with a key",
        )


def _bucket(what: str, uri: str) -> tuple[Any, str, str, Finding | None]:
    """Client, bucket, prefix (empty, or with a final slash), and the problem with the bucket, if any."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    s3 = object_store.client("s3", timeout=finding.REQUEST_SECONDS, max_attempts=2)
    try:
        s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return s3, bucket, prefix, None
    except Exception as error:
        remedies = {
            "NoSuchBucket": f"create it: aws s3 mb s3://{bucket}; or correct the URI",
            "AccessDenied": f"allow s3:ListBucket on {bucket} for the role that this runs as",
            "InvalidAccessKeyId": "check the AWS credentials of this environment",
            "PermanentRedirect": "set AWS_REGION to the bucket's region",
        }
        remedy = remedies.get(
            _code(error), "check AWS_REGION, AWS_ENDPOINT_URL, the credentials and the network"
        )
        return s3, bucket, prefix, Finding(f"{what}: bucket {bucket}", "missing", brief(error), remedy)


def _code(error: Exception) -> str:
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def _folder(what: str, path: str) -> Finding:
    folder = Path(path)
    while not folder.exists():  # the first step creates it; the check writes to the closest existing parent
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding(what, "ok", f"{path} is writable")
    except OSError as error:
        return Finding(
            what, "missing", f"{path}: {error}", "give this user write permission, or set PERENNIAL_LAKE"
        )


# --- MLflow


def _mlflow(uri: str) -> Iterator[Finding]:
    def call(method: str, path: str, data: bytes | None = None) -> requests.Response:
        return requests.request(
            method,
            f"{uri}{path}",
            data=data,
            timeout=finding.REQUEST_SECONDS,
            **mlflow_api.request_credentials(),
        )

    try:
        answer = call("GET", "/api/2.0/mlflow/registered-models/search?max_results=1")
    except requests.RequestException as error:
        yield Finding("MLflow", "missing", f"{uri} does not answer ({type(error).__name__})",
                      "start it, or set MLFLOW_TRACKING_URI; check the network")  # fmt: skip
        return
    if not answer.ok or "json" not in answer.headers.get("Content-Type", ""):
        hints = {
            401: mlflow_api.login_remedy(),
            403: "add this host to MLFLOW_SERVER_ALLOWED_HOSTS of the server",
        }
        yield Finding("MLflow", "missing", f"{uri} answered {answer.status_code}: {answer.text[:120]!r}",
                      hints.get(answer.status_code, "check the server's log, and that this is MLflow"))  # fmt: skip
        return
    yield Finding("MLflow", "ok", f"{uri} answers")
    path = f"/api/2.0/mlflow-artifacts/artifacts/.doctor/{uuid.uuid4().hex}"
    remedy = (
        "start the server with --serve-artifacts and --artifacts-destination; allow its role to write there"
    )
    content = uuid.uuid4().bytes
    for what, method, data in (("write", "PUT", content), ("read", "GET", None), ("remove", "DELETE", None)):
        try:
            answer = call(method, path, data)
            problem = "" if answer.ok else f"{answer.status_code}: {answer.text[:160]!r}"
            if what == "read" and answer.ok and answer.content != content:
                problem = "returned other bytes"
            if answer.status_code == 403 and mlflow_api.has_credentials():
                yield Finding("MLflow: artifacts", "warning", f"not checked: this user may not {what} there",
                              "run this as an administrator of MLflow to check it")  # fmt: skip
                return
        except requests.RequestException as error:
            problem = type(error).__name__
        if problem:
            yield Finding(f"MLflow: {what} artifacts", "missing", problem, remedy)
            return
    yield Finding("MLflow: artifacts", "ok", "written, read and removed through the server")
