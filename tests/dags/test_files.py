"""The DAG files: what they import, which DAGs they build, and what a broken model folder does to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag

from perennial.core.settings import ROOT
from perennial.spec.catalog import TABLE_FILE, find_folders, load_models
from perennial_airflow.dag_factory.factory import STAGES

FILES = sorted((ROOT / "dags").glob("*.py"))
HEAVY = {
    "dask", "deltalake", "duckdb", "evidently", "fairlearn", "great_expectations", "matplotlib", "mlflow", "numpy",
    "optuna", "pandas", "pyarrow", "scipy", "sklearn", "shap", "xgboost",
}  # fmt: skip
#: Runs DAG files, each in a fork of a process that has imported Airflow, with its own variables of the environment.
LOOK = """
import importlib.util, json, os, sys
from airflow.sdk import DAG
for file, environment in json.loads(sys.argv[1]):
    if os.fork():
        assert os.wait()[1] == 0, file
        continue
    os.environ.update(environment)
    spec = importlib.util.spec_from_file_location("dag_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ids = [name for name, value in vars(module).items() if isinstance(value, DAG)]
    print(json.dumps([ids, sorted({name.partition(".")[0] for name in sys.modules})]), flush=True)
    os._exit(0)
"""
IN_PODS = {"PERENNIAL_PROFILE": "kubernetes"}
RUNNING = "_AIRFLOW_PARSING_CONTEXT_DAG_ID"


def parse(*runs: tuple[str, dict[str, str]]) -> list[tuple[set[str], set[str]]]:
    """DAG ids and top-level modules after running each DAG file in a process of its own."""
    paths = os.pathsep.join((str(ROOT / "include"), str(ROOT / "plugins")))
    files = [(str(ROOT / "dags" / f"{name}.py"), environment) for name, environment in runs]
    out = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(files)],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True, timeout=120,
    ).stdout.splitlines()  # fmt: skip
    return [(set(ids), set(modules)) for ids, modules in map(json.loads, out[-len(runs) :])]


def test_a_dag_file_imports_nothing_heavy() -> None:
    built = {
        "models": {f"{m}.{stage}" for m in load_models()[0] for stage in STAGES}
        | {f"features.{table}" for table in find_folders(TABLE_FILE)},
        "daily_summary": {"perennial.daily_summary"},
        "specs": set(),
        "drills": {"perennial.reproduce", "perennial.rollback_drill"},
        "maintenance": set(),
        "verify": {"perennial.verify"},
        "erase": {"perennial.erase"},
        "retention": {"perennial.retention"},
    }
    names = [file.stem for file in FILES]
    for name, (ids, modules) in zip(names, parse(*((name, {}) for name in names)), strict=True):
        assert "airflow" in modules
        assert not HEAVY & modules, name
        assert ids == built[name], name


def test_steps_in_pods_import_nothing_heavy_either() -> None:
    models, maintenance = parse(("models", IN_PODS), ("maintenance", IN_PODS))
    assert "digits.score" in models[0] and "perennial.maintenance" in maintenance[0]
    assert not (HEAVY | {"kubernetes"}) & (models[1] | maintenance[1])


def test_a_task_builds_only_its_own_dag() -> None:
    score, summary, table = parse(
        ("models", {RUNNING: "digits.score"}),
        ("models", {RUNNING: "perennial.daily_summary"}),
        ("models", {RUNNING: "features.flight_history"}),
    )
    assert score[0] == {"digits.score"} and summary[0] == set()
    assert table[0] == {"features.flight_history"}


def test_a_task_of_a_folder_that_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNING, "digit.score")
    (message,) = DagBag(str(ROOT / "dags" / "models.py")).import_errors.values()
    assert "model digit: the folder of this model was removed or renamed while the task waited" in message
    assert "restore the folder and clear the task" in message


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_dag_file_is_short_and_airflow_recognises_it(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 20
    assert "dag" in text.lower() and "airflow" in text.lower()  # Airflow skips a file without these words


def test_a_broken_folder_hurts_no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, line in (("worse", "task: guessing"), ("odd", "shedule: {}")):
        folder = tmp_path / name
        shutil.copytree(ROOT / "include" / "models" / "digits", folder)
        text = (folder / "model.yaml").read_text().replace("name: digits", f"name: {name}")
        (folder / "model.yaml").write_text(f"{text.replace('task: multiclass', '')}\n{line}\n")
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path))
    bag = DagBag(str(ROOT / "dags"))
    good = load_models()[0]
    assert {"digits", "flight_late"} <= set(good)
    assert set(bag.dags) == {
        "perennial.daily_summary",
        "perennial.reproduce",
        "perennial.rollback_drill",
        "perennial.verify",
        "perennial.erase",
        "perennial.retention",
        *(f"{m}.{s}" for m in good for s in STAGES),
        *(f"features.{table}" for table in find_folders(TABLE_FILE)),
    }
    (file, message), *others = bag.import_errors.items()
    assert not others
    assert Path(file).name == "specs.py"
    assert message.startswith("2 model folders cannot be used; all other models run as usual.")
    assert "worse/model.yaml:" in message and "guessing" in message
    assert "odd/model.yaml:" in message and "did you mean 'schedule'?" in message
    assert "Traceback" not in message


def test_a_broken_feature_table_hurts_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "airport_history"
    shutil.copytree(ROOT / "include" / "features" / "flight_history", folder)
    text = (folder / TABLE_FILE).read_text()
    (folder / TABLE_FILE).write_text(text.replace("flight_history", folder.name).replace("lookback", "look"))
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path))
    bag = DagBag(str(ROOT / "dags"))
    assert f"features.{folder.name}" not in bag.dags and "features.flight_history" in bag.dags
    (message,) = bag.import_errors.values()
    assert message.startswith("1 feature table folder cannot be used; all other models run as usual.")
    assert f"{folder.name}/{TABLE_FILE}" in message


def test_no_import_error_where_all_models_are_sound() -> None:
    assert not DagBag(str(ROOT / "dags")).import_errors
