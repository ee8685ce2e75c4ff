"""The weekly verification: its findings open an incident, which closes when nothing is wrong any more."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from perennial.alerting import incidents
from perennial.spec import catalog
from perennial.storage import delta_tables
from perennial_airflow.execution import verification
from support import toys


def test_a_finding_opens_an_incident_until_it_is_repaired(
    empty_home: Path,
    tmp_path: Path,
    mlflow_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    spec = toys.model(tmp_path / "models", "toy")
    uri = delta_tables.table_uri("published", spec.name)
    rows = pa.table({"id": [1, 2], "partition_date": [toys.FIRST] * 2})
    delta_tables.replace(uri, rows, toys.FIRST)
    monkeypatch.setattr(catalog, "load_models", lambda: ({spec.name: spec}, []))
    (file,) = Path(uri).rglob("*.parquet")
    task = verification.dags()["perennial.verify"].get_task("verify")

    def verify() -> list[str]:
        type(task).execute.__wrapped__(task, {})  # type: ignore[attr-defined]
        return [f"{i.signal}: {i.reason}" for i in incidents.read_log(spec.name).open]

    (reason,) = verify()
    assert "MLflow at http://127.0.0.1:9 does not answer" in reason
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    assert verify() == []
    content = file.read_bytes()
    file.write_bytes(content[:-20] + b"?" + content[-19:])
    (reason,) = verify()
    assert reason.startswith(f"integrity: {file} has digest ")
    file.write_bytes(content)
    caplog.clear()
    with caplog.at_level("INFO"):
        assert verify() == []
    (line,) = [r.getMessage() for r in caplog.records if r.name == "airflow.task"]
    assert line == "Verified toy: 3 ledger records, 0 manifests, 1 data files: all as they were written."
    assert all(r.levelname == "INFO" for r in caplog.records)
