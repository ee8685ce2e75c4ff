"""An Airflow home for these tests: its variables must be set before Airflow is first imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="perennial-airflow-"))
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(ROOT / "dags")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ.setdefault("AIRFLOW__API_AUTH__JWT_SECRET", "0" * 64)
os.environ["AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACKS"] = "False"


import pytest  # noqa: E402

from perennial.spec.catalog import load_model  # noqa: E402
from perennial.spec.model_spec import ModelSpec  # noqa: E402


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty lake, and no webhook."""
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "PERENNIAL_MODELS", "PERENNIAL_ALERT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def spec() -> ModelSpec:
    """One model of the sample."""
    return load_model(ROOT / "include" / "models" / "flight_late")
