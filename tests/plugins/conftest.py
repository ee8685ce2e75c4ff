"""An Airflow home for these tests: its variables must be set before Airflow is first imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty lake, and no webhook."""
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "PERENNIAL_MODELS", "PERENNIAL_ALERT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    yield tmp_path
    for name in ("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "_AIRFLOW_PARSING_CONTEXT_TASK_ID"):
        os.environ.pop(name, None)  # a DAG's `test` leaves them behind


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps over a range lower the priority of their process, here that of all later tests."""
    monkeypatch.setattr(os, "setpriority", lambda *given: None)


@pytest.fixture
def spec() -> ModelSpec:
    """One model of the sample."""
    return load_model(ROOT / "include" / "models" / "flight_late")


@dataclass(frozen=True)
class Tried:
    """A run of the data DAG of a model ``toy`` for one day, by ``airflow dags test`` in an Airflow of its own.

    Attributes:
        day: the partition.
        lake: folder of the lake.
        landing: folder of the landing area.
        database: file of Airflow's metadata.
        events: OpenLineage's events of the run, as text: a JSON object a line.
        output: what the command printed.
    """

    day: str
    lake: Path
    landing: Path
    database: Path
    events: str
    output: str


#: The command, in the process that creates the database. It leaves out two pages, which take as long as the rest.
TRY = """
from airflow.__main__ import main
from airflow.utils.db import initdb
from perennial.ingestion import data_profile
from perennial.validation import data_docs
data_profile.write_profile = lambda *_: ""
data_docs.render_data_doc = lambda _: ""
initdb()
main()
"""


@pytest.fixture(scope="session")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    """One run for the whole session."""
    from support import toys

    root = tmp_path_factory.mktemp("tried")
    events, airflow = root / "events.jsonl", root / "airflow"
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    with toys.working_folder(root, "http://127.0.0.1:9"):
        toys.land(toys.model(root / "models", "toy"), toys.FIRST, 1)
        environment = os.environ | {
            "AIRFLOW_HOME": str(airflow),
            "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
            "AIRFLOW__OPENLINEAGE__NAMESPACE": "test",
        }
        conf = json.dumps({"start": toys.FIRST})
        done = subprocess.run(
            [sys.executable, "-c", TRY, "dags", "test", "toy.data", "--conf", conf],
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    home = root / "home"
    return Tried(
        toys.FIRST, home / "lake", home / "landing", airflow / "airflow.db", events.read_text(), output
    )
