"""What Airflow sees of the plugins folder, and what is loaded ahead of the tasks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow._shared.module_loading import find_path_from_directory
from airflow.sdk.execution_time.supervisor import WatchedSubprocess

import airflow_local_settings
from perennial_airflow.timetables import DailyPartitions, PublishedPartitions
from perennial_plugin import PerennialPlugin

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import airflow.settings, gc, sys
airflow.settings.initialize()
assert gc.get_threshold() == sys.modules["airflow_local_settings"].COLLECT
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
print(*sys.modules)
"""


def test_only_the_entry_file_is_scanned() -> None:
    found = find_path_from_directory(ROOT / "plugins", ".airflowignore", "glob")
    assert {Path(f).name for f in found if f.endswith(".py")} == {"perennial_plugin.py"}


def test_registration() -> None:
    plugin = PerennialPlugin()
    assert plugin.timetables == [DailyPartitions, PublishedPartitions]
    (app,) = plugin.fastapi_apps
    assert app["url_prefix"] == "/perennial"


def test_loading_the_plugin_loads_nothing_heavy_and_no_web_server() -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "include"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    }
    out = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    modules = set(out.splitlines()[-1].split())
    assert {
        "airflow_local_settings",
        "perennial_airflow.timetables",
    } <= modules  # Airflow found both by itself
    assert not modules & {"perennial_airflow.web.reports", *airflow_local_settings.HEAVY}


@pytest.mark.parametrize(
    ("command", "executor", "expected"),
    [
        (["airflow", "scheduler"], "LocalExecutor", True),
        (["airflow", "scheduler"], "CeleryExecutor,LocalExecutor", True),
        (["airflow", "scheduler"], "KubernetesExecutor", False),
        (["airflow", "celery", "worker"], "CeleryExecutor", True),
        (["airflow", "triggerer"], "LocalExecutor", False),
        (["airflow", "dag-processor"], "LocalExecutor", False),
        (["airflow"], "LocalExecutor", False),
    ],
)
def test_only_what_forks_tasks_loads_libraries(
    command: list[str], executor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    assert airflow_local_settings.forks_tasks(command) is expected


@pytest.mark.parametrize("name", airflow_local_settings.HEAVY)
def test_what_is_loaded_ahead_exists(name: str) -> None:
    assert importlib.util.find_spec(name.partition(".")[0])


def test_the_pod_operator_is_loaded_ahead_where_a_step_runs_in_pods(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERENNIAL_PROFILE", raising=False)
    assert airflow_local_settings.in_pods() == ()
    monkeypatch.setenv("PERENNIAL_PROFILE", "kubernetes")
    assert airflow_local_settings.in_pods() == ("perennial_airflow.execution.pods",)
    monkeypatch.setenv("PERENNIAL_PROFILE", "no_such_profile")
    assert airflow_local_settings.in_pods() == ()


def test_mlflow_lists_the_packages_before_there_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils import requirements_utils

    monkeypatch.setattr(requirements_utils, "_MODULES_TO_PACKAGES", None)
    monkeypatch.setattr(requirements_utils, "_PACKAGES_TO_MODULES", None)
    airflow_local_settings.list_packages()
    assert requirements_utils._MODULES_TO_PACKAGES is not None


DRAW = """
import sys
import pandas as pd, pyarrow as pa
import airflow_local_settings
for name in airflow_local_settings.HEAVY:
    __import__(name)
airflow_local_settings.draw_pages()
before = set(sys.modules)
from perennial import profile, report
from perennial.monitoring.drift_verdict import Finding
rows = {"n": [1.0, None, 3.0, 4.5], "t": ["x", "y", None, "y"], "b": [True, False, True, None], "k": list("1234")}
kinds = {"n": "number", "t": "string", "b": "boolean", "k": "string", "d": "timestamp"}
profile.draw(pd.DataFrame(rows | {"d": pd.date_range("2013-01-01", periods=4)}), kinds, ("k",))
sample = {c: pa.chunked_array([rows[c]]) for c in "nt"}
findings = [Finding(c, "feature", "drifted", "", 0.3, 0.1, 0.1, 0.2, 4, 0.5) for c in "nt"]
assert report.picture(findings, sample, sample, ["t"], 0.5)[0]
print(sorted(set(sys.modules) - before))
"""


def test_no_task_imports_anything_to_draw_its_page() -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'include'}{os.pathsep}{ROOT / 'plugins'}"}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_pages_that_cannot_be_drawn_ahead_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("another Evidently")

    monkeypatch.setattr("perennial.ingestion.data_profile.summarise", fail)
    airflow_local_settings.draw_pages()
    assert "another Evidently" in caplog.text


def test_a_worker_waits_long_only_while_its_task_can_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        WatchedSubprocess, "_service_subprocess", lambda self, max_wait_time: waits.append(max_wait_time)
    )
    airflow_local_settings.notice_exits()
    for sockets in ({"one": "stdout"}, {}):
        WatchedSubprocess._service_subprocess(SimpleNamespace(_open_sockets=sockets), max_wait_time=1)
    assert waits == [1, 0.02]
