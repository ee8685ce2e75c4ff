"""The images: their size and labels; and the trainer, run as a pod runs it.

Needs an engine, and this checkout's images in it (`make images`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial import __version__
from perennial.core import runtime
from perennial.core.settings import ROOT
from support import containers, toys

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]
DOCKER = os.environ.get("DOCKER", "docker")
IMAGE = os.environ.get("PERENNIAL_TRAINER_IMAGE") or f"perennial/trainer:{__version__}"
README = ROOT / "docker" / "README.md"
#: As include/perennial/spec/pod_manifest.py makes pods.
LIKE_A_POD = (
    "--read-only", "--tmpfs", "/tmp:mode=1777", "--tmpfs", "/scratch:uid=10001,gid=10001,mode=0770",
    "--user", "10001:10001", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "2g",
)  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def image() -> str:
    """The trainer image's name."""
    if IMAGE not in containers.present():
        pytest.skip(f"there is no image {IMAGE}: nothing is tested of it (make images IMAGES=trainer)")
    return IMAGE


def inspect(name: str) -> dict[str, Any]:
    """What the engine knows of an image."""
    return dict(json.loads(containers.docker("image", "inspect", name))[0])


@pytest.fixture(scope="module")
def run(image: str) -> Run:
    """Runs the image as a pod would."""

    def start(
        *arguments: str, options: tuple[str, ...] = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [DOCKER, "run", "--rm", "--interactive", *LIKE_A_POD, *options, image, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin)

    return start


def python(run: Run, code: str, options: tuple[str, ...] = ()) -> str:
    """What the code prints, run in the image."""
    done = run("-c", code, options=("--entrypoint", "python", *options))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_image_holds_the_library_of_this_checkout(run: Run) -> None:
    done = run("library-digest")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == runtime.library_digest(), f"{IMAGE} is older: make images IMAGES=trainer"


def test_it_imports_no_airflow(run: Run) -> None:
    code = (
        "import importlib.util, runpy, sys\n"
        "assert importlib.util.find_spec('airflow') is None\n"
        "from perennial.steps import dispatch\n"
        "[dispatch.load_step(step) for step in dispatch.STEPS]\n"
        "import evidently, great_expectations, mlflow.xgboost, optuna\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'airflow'])"
    )
    assert python(run, code) == "[]"
    assert (
        "No module named 'airflow'" in run("-c", "import airflow", options=("--entrypoint", "python")).stderr
    )


def test_it_runs_as_nobody_on_a_read_only_disk(run: Run) -> None:
    code = """
import os, pathlib
wrote = []
own = '/opt/perennial/include/perennial'
for folder in ('/', '/opt', '/opt/venv', own, '/etc', '/scratch', '/tmp', os.path.expanduser('~')):
    try:
        pathlib.Path(folder, 'probe').write_text('x')
        wrote.append(folder)
    except OSError:
        pass
print(os.getuid(), os.getgid(), *wrote)
"""
    assert python(run, code) == "10001 10001 /scratch /tmp /scratch"


def test_nothing_is_written_but_to_scratch_when_the_heavy_libraries_are_used(run: Run) -> None:
    code = """
import numpy as np, pandas as pd, xgboost as xgb, great_expectations
from evidently import Dataset, Report
from evidently.presets import DataDriftPreset
frame = pd.DataFrame({'a': np.arange(300.0), 'b': ['x', 'y', 'z'] * 100})
report = Report([DataDriftPreset()]).run(Dataset.from_pandas(frame), Dataset.from_pandas(frame))
xgb.train({'max_depth': 2}, xgb.DMatrix(frame[['a']], frame['a']), 2)
print(len(report.get_html_str(as_iframe=False)) > 100_000)
"""
    assert python(run, code) == "True"


def test_an_error_is_told_and_ends_with_one(run: Run) -> None:
    done = run("run", "data", "--spec-file", "-", "--start", "2024-01-01", stdin="{}")
    assert done.returncode == 1
    assert "is not a model's bundle" in done.stderr


def test_a_deleted_pod_is_gone_at_once(image: str) -> None:
    """As process 1, Python alone would not hear SIGTERM and keep its memory until the grace period is over."""
    command = [
        DOCKER,
        "run",
        "--detach",
        "--rm",
        "--interactive",
        *LIKE_A_POD,
        image,
        "run",
        "data",
        "--spec-file",
        "-",
        "--start",
        "2024-01-01",
    ]
    container = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    time.sleep(2)
    began = time.monotonic()
    subprocess.run([DOCKER, "stop", "--time", "60", container], check=True, capture_output=True, timeout=120)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("name", ["trainer", "trainer-gpu", "airflow", "mlflow", "s3"])
def test_labels_say_what_an_image_is(name: str) -> None:
    containers.require(name)
    config = inspect(containers.image(name))["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == f"perennial/{name.partition('-')[0]}" and labels["version"] == __version__
    assert labels["base.name"] in containers.present(), "the base that it was built on"
    assert config["User"] == ("50000:0" if name == "airflow" else "10001:10001")
    assert all(labels.values()), "an empty label says nothing"
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", labels["revision"])
        if name in ("trainer", "trainer-gpu", "airflow"):
            assert f"PERENNIAL_COMMIT={labels['revision']}" in config["Env"]


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("git@git.example.com:team/perennial.git", "https://git.example.com/team/perennial"),
        ("https://user:token@git.example.com/team/perennial.git", "https://git.example.com/team/perennial"),
        ("/srv/repositories/perennial", None),
        (None, None),
    ],
)
def test_an_image_names_its_repository_and_its_tag(
    tmp_path: Path, remote: str | None, source: str | None
) -> None:
    """The smallest image, built from a clone: all but its labels is in the engine's cache."""
    containers.require("s3")
    base = inspect(containers.image("s3"))["Config"]["Labels"]["org.opencontainers.image.base.name"]
    subprocess.run(["git", "clone", "--quiet", "--no-local", "--depth", "1", f"file://{ROOT}", str(tmp_path / "clone")],
                   check=True, timeout=120)  # fmt: skip
    git = ["git", "-C", str(tmp_path / "clone"), "remote"]
    subprocess.run([*git, "set-url", "origin", remote] if remote else [*git, "remove", "origin"], check=True)
    own = {"REGISTRY": toys.unique("test").replace("_", "-"), "TAG": "2.0", "PYTHON_IMAGE": base}
    built = f"{own['REGISTRY']}/s3:2.0"
    command = [str(tmp_path / "clone" / "docker" / "build"), "s3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    try:
        labels = inspect(built)["Config"]["Labels"]
        assert labels.get("org.opencontainers.image.source") == source
        assert labels["org.opencontainers.image.version"] == __version__
    finally:
        containers.docker("image", "rm", built)


def sizes() -> dict[str, float]:
    """Gigabytes of each image, as `docker/README.md` says; that of airflow is without its base."""
    rows = re.findall(
        r"^\| `perennial/(\w+):<version>(-gpu)?` \|.*\| ([0-9.]+) GB", README.read_text("utf-8"), re.M
    )
    return {name + variant: float(size) for name, variant, size in rows}


@pytest.mark.parametrize("name", ["trainer", "trainer-gpu", "airflow", "mlflow", "s3"])
def test_an_image_is_no_larger_than_its_page_says(name: str) -> None:
    """A tenth more would be a package, or the tests of one, that nobody meant to add."""
    containers.require(name)
    made = inspect(containers.image(name))
    size = made["Size"]
    if name == "airflow":
        base = made["Config"]["Labels"]["org.opencontainers.image.base.name"]
        size -= inspect(base)["Size"]
    assert 0.7 * sizes()[name] < size / 1e9 < 1.1 * sizes()[name], f"{size / 1e9:.2f} GB"


def test_no_secret_of_the_build_is_left_in_it(image: str, run: Run) -> None:
    assert (
        python(
            run, "import os; print(os.path.exists('/etc/pip.conf'), os.path.exists('/run/secrets/ca.crt'))"
        )
        == "False False"
    )
    history = subprocess.run(
        [DOCKER, "history", "--no-trunc", "--format", "{{.CreatedBy}}", image],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "index-url" not in history.stdout and "password" not in history.stdout.lower()
