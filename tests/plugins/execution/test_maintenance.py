"""Which pods the maintenance deletes, and where there is one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import V1Pod

from perennial.spec import pod_manifest
from perennial_airflow.execution import maintenance
from support import toys
from support.pods import as_pod


def test_only_pods_whose_task_is_gone_are_orphans() -> None:
    now = datetime(2024, 1, 1, 12, tzinfo=UTC)

    def pod(name: str, minutes: float = 10, **more: Any) -> V1Pod:
        task = {"dag_id": "d", "run_id": "r", "task_id": name, "map_index": more.pop("map_index", -1)}
        born = (now - timedelta(minutes=minutes)).isoformat()
        content = {
            "name": name,
            "creationTimestamp": born,
            "annotations": {pod_manifest.TASK_ANNOTATION: json.dumps(task)},
        }
        return as_pod({"metadata": content | more})

    def states(*, dag_id: str, run_ids: list[str], task_ids: list[str], map_index: int) -> dict[str, Any]:
        known = {
            "runs": "running",
            "waits": "deferred",
            "again": "up_for_retry",
            "failed": "failed",
            "mapped_3": "running",
        }
        name = task_ids[0] if map_index < 0 else f"{task_ids[0]}_{map_index}"
        return {"r": {name: known[name]}} if name in known else {}

    items = [
        pod("runs"), pod("waits"), pod("again"), pod("failed"), pod("removed"), pod("young", 1),
        pod("mapped", map_index=3), pod("mapped", map_index=4), pod("going", deletionTimestamp=now.isoformat()),
        as_pod({"metadata": {"name": "a stranger's", "creationTimestamp": "2023-01-01T00:00:00Z"}}),
    ]  # fmt: skip
    assert [
        p.metadata.name for p in maintenance.orphaned_pods(items, states, now - timedelta(minutes=2))
    ] == [
        "failed",
        "removed",
        "mapped",
    ]


def test_maintenance_is_there_where_pods_are(
    remote_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERENNIAL_PROFILE", raising=False)
    assert maintenance.dags() == {}
    toys.model(tmp_path / "models", "toy", compute={"train": "gpu"})
    dag = maintenance.dags()["perennial.maintenance"]
    assert [p.name for p in dag.get_task("delete_orphaned_pods").profiles] == ["gpu"]
    monkeypatch.setenv("PERENNIAL_PROFILE", "kubernetes")  # the same cluster and namespace
    assert len(maintenance.pod_profiles()) == 1
