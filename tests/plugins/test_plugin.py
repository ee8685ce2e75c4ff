"""What Airflow sees of the plugins folder, and what is loaded ahead of the tasks."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow._shared.module_loading import find_path_from_directory
from airflow.sdk.execution_time.supervisor import WatchedSubprocess

import airflow_local_settings
import perennial_airflow
from perennial.core.settings import ROOT
from perennial.steps import dispatch
from perennial_airflow import plugin
from perennial_airflow.timetables import DailyPartitions, EndedPartitions, PublishedPartitions
from perennial_plugin import PerennialPlugin

LOOK = """
import airflow.settings, gc, sys
airflow.settings.initialize()
assert gc.get_threshold() == sys.modules["airflow_local_settings"].GC_THRESHOLDS
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
print(*sys.modules)
"""


def test_the_log_of_a_task_does_not_begin_with_a_warning_of_airflow_itself() -> None:
    def scan() -> list[str]:
        caught.clear()
        list(find_path_from_directory(ROOT / "plugins", ".airflowignore", "glob"))
        return [str(warning.message) for warning in caught]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert scan(), "Airflow no longer warns: delete hide_deprecations"
        airflow_local_settings.hide_deprecations()
        assert scan() == []


def test_only_the_entry_file_is_scanned() -> None:
    paths = find_path_from_directory(ROOT / "plugins", ".airflowignore", "glob")
    assert {Path(p).name for p in paths if p.endswith(".py")} == {"perennial_plugin.py"}


def test_registration() -> None:
    assert PerennialPlugin is plugin.PerennialPlugin
    registered = PerennialPlugin()
    assert registered.timetables == [DailyPartitions, EndedPartitions, PublishedPartitions]
    (app,) = registered.fastapi_apps
    assert app["url_prefix"] == "/perennial"
    assert [(v["destination"], v["url_route"]) for v in registered.external_views] == [
        ("nav", "models"),
        ("dag", "model"),
        ("dag_run", "report"),
        ("task_instance", "run_report"),
    ]


def test_the_entry_point_names_the_same_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["airflow.plugins"].values()
    assert pkgutil.resolve_name(target) is PerennialPlugin


def test_what_airflow_stores_stays_importable() -> None:
    """Paths in its database: timetables, callbacks of deadlines, triggers, methods of deferred tasks."""
    for path in (
        "perennial_airflow.timetables:DailyPartitions",
        "perennial_airflow.timetables:EndedPartitions",
        "perennial_airflow.timetables:PublishedPartitions",
        "perennial_airflow.deadlines:missed",
        "perennial_airflow.arrival:LandedTrigger",
        "perennial_airflow.arrival_s3:LandedOnS3",
        "perennial_airflow.sensors.partition_arrival:AwaitPartition.landed",
        "perennial_airflow.sensors.quiet_hours:AwaitQuietHours.go_on",
        "perennial_airflow.execution.operators:StageTask.resume",
    ):
        module, _, name = path.partition(":")
        stored = pkgutil.resolve_name(path)
        assert (stored.__module__, stored.__qualname__) == (module, name)


def test_packages_name_their_modules() -> None:
    for package in pkgutil.walk_packages(perennial_airflow.__path__, "perennial_airflow."):
        if package.ispkg:
            room = importlib.import_module(package.name)
            assert room.__doc__
            names = sorted(m.name for m in pkgutil.iter_modules(room.__path__))
            assert room.__all__ == [name for name in names if not name.startswith("_")]


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
    assert not modules & {
        "perennial_airflow.web.console",
        "perennial.console.app",
        *airflow_local_settings.PRELOADED,
    }


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


def test_the_pod_operator_is_loaded_ahead_where_a_step_runs_in_pods(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERENNIAL_PROFILE", raising=False)
    assert airflow_local_settings.pod_modules() == []
    monkeypatch.setenv("PERENNIAL_PROFILE", "kubernetes")
    assert airflow_local_settings.pod_modules() == ["perennial_airflow.execution.pods"]
    monkeypatch.setenv("PERENNIAL_PROFILE", "no_such_profile")
    assert airflow_local_settings.pod_modules() == []


def test_mlflow_lists_the_packages_before_there_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils import requirements_utils

    monkeypatch.setattr(requirements_utils, "_MODULES_TO_PACKAGES", None)
    monkeypatch.setattr(requirements_utils, "_PACKAGES_TO_MODULES", None)
    airflow_local_settings.list_packages()
    assert requirements_utils._MODULES_TO_PACKAGES is not None


PRELOAD = """
import importlib, sys
import airflow_local_settings as settings
for name in (*settings.PRELOADED, *settings.library_modules()):
    importlib.import_module(name)
settings.draw_pages()
before = set(sys.modules)

from perennial.steps import dispatch
for step in dispatch.STEPS:
    dispatch.load_step(step)
print(sorted(set(sys.modules) - before))

import pandas as pd, pyarrow as pa
from perennial.ingestion import data_profile
from perennial.monitoring import report
from perennial.monitoring.drift_verdict import ColumnDrift
rows = {"n": [1.0, None, 3.0, 4.5], "t": ["x", "y", None, "y"], "b": [True, False, True, None], "k": list("1234")}
kinds = {"n": "number", "t": "string", "b": "boolean", "k": "string", "d": "timestamp"}
data_profile.summarise(pd.DataFrame(rows | {"d": pd.date_range("2013-01-01", periods=4)}), kinds, ("k",))
sample = {c: pa.chunked_array([rows[c]]) for c in "nt"}
columns = [ColumnDrift(c, "feature", "drifted", "", 0.3, 0.1, 0.1, 0.2, 4, 0.5) for c in "nt"]
assert report.evidently_drift_report(columns, sample, sample, ["t"], 0.5).page
print(sorted(set(sys.modules) - before))
"""


def test_everything_preloaded_imports_and_no_task_imports_more_for_its_step_or_its_page() -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'include'}{os.pathsep}{ROOT / 'plugins'}"}
    done = subprocess.run(
        [sys.executable, "-c", PRELOAD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]


def test_every_module_that_a_step_may_import_is_preloaded() -> None:
    modules = airflow_local_settings.library_modules()
    assert {f"perennial.steps.{step}" for step in dispatch.STEPS} <= set(modules)
    assert "perennial.training.search" in modules and "perennial.validation.suite" in modules
    assert not [
        m for m in modules if m.startswith(("perennial.cli", "perennial.console", "perennial.local_stack"))
    ]


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


def test_log_servers_listen_on_the_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host shows that Airflow still needs it; a live test looks at the sockets."""
    from airflow.utils.serve_logs import core

    hosts: list[str] = []
    monkeypatch.setattr("setproctitle.setproctitle", lambda title: None)
    monkeypatch.setattr(
        core, "uvicorn", SimpleNamespace(run=lambda app, **options: hosts.append(options["host"]))
    )
    core.serve_logs(port=1)
    airflow_local_settings.serve_logs_on_loopback()
    core.serve_logs(port=1)
    assert hosts == ["", "127.0.0.1"]
