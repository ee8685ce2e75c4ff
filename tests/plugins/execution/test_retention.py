"""The daily DAG that deletes what is older than the specs keep."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException

from perennial.core.errors import SpecError
from perennial.spec import catalog
from perennial.storage import delta_tables
from perennial_airflow.execution import retention
from support import toys


def test_each_model_is_cleared_whatever_fails_of_another(
    empty_home: Path, tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    spec = toys.model(
        tmp_path / "models", toys.unique(), retention={"rows": "30 days"}, training={"window": "20 days"}
    )
    toys.publish(spec, toys.FIRST, 2)
    uri = delta_tables.table_uri("published", spec.name)
    task: Any = retention.dags()["perennial.retention"].get_task("delete_old")

    def run(moment: datetime, *errors: SpecError) -> Any:
        monkeypatch.setattr(catalog, "load_models", lambda: ({spec.name: spec}, list(errors)))
        context = {"dag_run": SimpleNamespace(run_after=moment)}
        with caplog.at_level("INFO"):
            return type(task).execute.__wrapped__(task, context)

    day = datetime.fromisoformat(toys.FIRST).replace(tzinfo=UTC)
    result = run(day.replace(day=30))
    assert result[spec.name]["partitions"] == {} and result[spec.name]["disk"]["published"] > 0
    assert "Stored: published 0.0 MB" in caplog.text
    with pytest.raises(AirflowException, match=r"retention not applied: .*broken"):
        run(day.replace(day=31), SpecError("broken", "mend it"))
    assert delta_tables.partitions(uri) == ["2024-01-02"]
