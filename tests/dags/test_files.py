"""The DAG files: what they import, which DAGs they build, and what a broken model folder does to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag

from perennial.core.settings import ROOT
from perennial.spec.catalog import load_models
from perennial_airflow.dag_factory.factory import STAGES

FILES = sorted((ROOT / "dags").glob("*.py"))
HEAVY = {
    "dask", "deltalake", "duckdb", "evidently", "great_expectations", "matplotlib", "mlflow", "numpy", "optuna",
    "pandas", "pyarrow", "scipy", "sklearn", "shap", "xgboost",
}  # fmt: skip
LOOK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("dag_file", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from airflow.sdk import DAG
print(*sorted(name for name, value in vars(module).items() if isinstance(value, DAG)))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def parse(file: Path, **environment: str) -> tuple[set[str], set[str]]:
    """DAG ids and top-level modules after running one DAG file in a fresh process."""
    paths = os.pathsep.join((str(ROOT / "include"), str(ROOT / "plugins")))
    out = subprocess.run(
        [sys.executable, "-c", LOOK, str(file)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout.splitlines()  # fmt: skip
    return set(out[-2].split()), set(out[-1].split())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_dag_file_imports_nothing_heavy(file: Path) -> None:
    ids, modules = parse(file)
    assert "airflow" in modules
    assert not HEAVY & modules
    built = {
        "models": {f"{m}.{stage}" for m in load_models()[0] for stage in STAGES},
        "daily_summary": {"perennial.daily_summary"},
        "specs": set(),
        "maintenance": set(),
    }
    assert ids == built[file.stem]


def test_steps_in_pods_import_nothing_heavy_either() -> None:
    for name, dag in (("models", "digits.score"), ("maintenance", "perennial.maintenance")):
        ids, modules = parse(ROOT / "dags" / f"{name}.py", PERENNIAL_PROFILE="kubernetes")
        assert dag in ids
        assert not (HEAVY | {"kubernetes"}) & modules


def test_a_task_builds_only_its_own_dag() -> None:
    for running, built in (("digits.score", {"digits.score"}), ("perennial.daily_summary", set())):
        ids, _ = parse(ROOT / "dags" / "models.py", _AIRFLOW_PARSING_CONTEXT_DAG_ID=running)
        assert ids == built


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
    assert set(bag.dags) == {"perennial.daily_summary", *(f"{m}.{s}" for m in good for s in STAGES)}
    (file, message), *others = bag.import_errors.items()
    assert not others
    assert Path(file).name == "specs.py"
    assert message.startswith("2 model folders cannot be used; all other models run as usual.")
    assert "worse/model.yaml:" in message and "guessing" in message
    assert "odd/model.yaml:" in message and "did you mean 'schedule'?" in message
    assert "Traceback" not in message


def test_no_import_error_where_all_models_are_sound() -> None:
    assert not DagBag(str(ROOT / "dags")).import_errors
