"""The trainer image, run as a pod runs it. Needs an engine, and this checkout's image in it (`make images`)."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial import __version__
from perennial.core import runtime
from perennial.core.settings import ROOT

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]
DOCKER = os.environ.get("DOCKER", "docker")
IMAGE = os.environ.get("PERENNIAL_TRAINER_IMAGE") or f"perennial/trainer:{__version__}"
#: As include/perennial/spec/pod_manifest.py makes pods.
LIKE_A_POD = (
    "--read-only", "--tmpfs", "/tmp:mode=1777", "--tmpfs", "/scratch:uid=10001,gid=10001,mode=0770",
    "--user", "10001:10001", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "2g",
)  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def image() -> str:
    """The trainer image's name."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        pytest.skip("there is no container engine (DOCKER_HOST): nothing is tested of the trainer image")
    found = subprocess.run([DOCKER, "image", "inspect", IMAGE], capture_output=True, text=True, timeout=60)
    if found.returncode:
        pytest.skip(f"there is no image {IMAGE}: nothing is tested of it (make images IMAGES=trainer)")
    return IMAGE


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
    done = run("run", "data", "--spec-file", "-", stdin="{}")
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
    ]
    container = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    time.sleep(2)
    began = time.monotonic()
    subprocess.run([DOCKER, "stop", "--time", "60", container], check=True, capture_output=True, timeout=120)
    assert time.monotonic() - began < 15


def test_labels_say_what_it_is(image: str) -> None:
    found = subprocess.run(
        [DOCKER, "image", "inspect", image], capture_output=True, text=True, timeout=60, check=True
    )
    config = json.loads(found.stdout)[0]["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert config["User"] == "10001:10001"
    if (ROOT / ".git").exists():
        revision = labels["org.opencontainers.image.revision"]
        assert len(revision) == 40
        assert f"PERENNIAL_COMMIT={revision}" in config["Env"]


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
