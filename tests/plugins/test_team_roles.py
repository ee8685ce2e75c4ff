"""Which role of Airflow a DAG is given to."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial_airflow import team_roles
from perennial_airflow.dag_factory.stages.rollback import rollback_dag
from support import toys


def test_a_dag_belongs_to_the_team_of_its_models_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "owned")
    assert rollback_dag(spec).access_control is None
    monkeypatch.setenv("PERENNIAL_TEAM_ROLES", "false")
    assert rollback_dag(spec).access_control is None
    monkeypatch.setenv("PERENNIAL_TEAM_ROLES", "True")
    assert rollback_dag(spec).access_control == {
        "team:tests": {
            "DAGs": {"can_read", "can_edit"},
            "DAG Runs": {"can_read", "can_create", "menu_access"},
        }
    }


def test_no_owner_means_a_role_of_airflows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_TEAM_ROLES", "true")
    for owner in ("Admin", "Public", "Viewer"):
        assert list(team_roles.access_control(owner) or {}) == [f"team:{owner}"]


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_TEAM_ROLES", "flights")
    with pytest.raises(ValueError, match="PERENNIAL_TEAM_ROLES is 'flights'; set it to true or false"):
        team_roles.access_control("flights")
