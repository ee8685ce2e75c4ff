"""Whose the DAGs are; what the roles of Airflow then allow, `tests/plugins/web/test_fab.py` asks a running Airflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial_airflow.dag_factory import team_roles
from perennial_airflow.dag_factory.factory import STAGES


def test_the_owner_of_a_folder_that_cannot_be_read_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its team must not lose it, and no other team get it."""
    for folder, file in (("faulty", "model.yaml"), ("odd", "feature_table.yaml")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("owner: [")
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path))
    owned = team_roles.dags_by_owner()
    assert owned.unknown == {*(f"faulty.{stage}" for stage in STAGES), "features.odd"}
    assert len(owned.errors) == 2 and "flight_late.train" in owned.by_owner["flights"]
    assert not owned.unknown & set().union(*owned.by_owner.values())


def test_a_role_has_a_name_that_airflows_database_takes() -> None:
    from airflow.providers.fab.auth_manager.models import Role

    assert Role.__table__.c.name.type.length == team_roles.MAX_NAME
    assert team_roles.role_name("flights") == "team:flights"
    assert team_roles.role_name("f" * 59) == f"team:{'f' * 59}"
    names = {team_roles.role_name("f" * 59 + end) for end in "abc"}
    assert len(names) == 3 and {len(name) for name in names} == {64}
