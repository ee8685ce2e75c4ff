"""A role of Airflow for the team that owns a model: who has it sees and runs that team's DAGs, and no others.

``PERENNIAL_TEAM_ROLES=true`` gives each DAG to the role ``team:<owner>`` of its model or feature table (Airflow's
``access_control``). Airflow refuses a DAG whose role it does not have, so ``python -m perennial_airflow.team_roles``
creates the roles, before that and again when an owner is new. Only the FAB auth manager has such roles.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

#: What the names of the roles begin with; no owner can thereby mean a role of Airflow's own.
PREFIX = "team:"
#: What a team may do with its DAGs: look, trigger, pause, clear; nobody deletes a DAG that a model folder makes.
DAG_RIGHTS = {"DAGs": {"can_read", "can_edit"}, "DAG Runs": {"can_read", "can_create", "menu_access"}}
_VARIABLE = "PERENNIAL_TEAM_ROLES"


def access_control(owner: str) -> dict[str, dict[str, set[str]]] | None:
    """Argument ``access_control`` of the DAGs of an owner; None unless teams have roles.

    Args:
        owner: of the model or the feature table.

    Raises:
        ValueError: ``PERENNIAL_TEAM_ROLES`` is neither true nor false.
    """
    text = os.environ.get(_VARIABLE, "").strip().lower()
    if text not in ("", "true", "false"):
        raise ValueError(f"{_VARIABLE} is {text!r}; set it to true or false")
    return {f"{PREFIX}{owner}": DAG_RIGHTS} if text == "true" else None


def ensure_roles(owners: Iterable[str]) -> list[str]:
    """Create the roles that are missing, with what Airflow's role User may do beside DAGs; returns the names of all.

    Rights for single DAGs come from the DAGs themselves, when Airflow processes them.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    names = sorted({f"{PREFIX}{owner}" for owner in owners})
    with get_application_builder() as builder:
        manager = builder.sm
        rights = {*manager.VIEWER_PERMISSIONS, *manager.USER_PERMISSIONS, ("can_read", "Plugins")}
        general = {
            (action, resource) for action, resource in rights if resource != "DAGs" or action == "menu_access"
        }
        manager.bulk_sync_roles([{"role": name, "perms": general} for name in names])
    return names


def main() -> None:
    """Create the roles of all owners, and print their names; what cannot be read has no DAGs and no owner."""
    from perennial.core.errors import SpecError
    from perennial.spec.catalog import TABLE_FILE, find_folders, load_feature_table, load_models

    models, broken = load_models()
    owners = {spec.owner for spec in models.values()}
    for table in find_folders(TABLE_FILE):
        try:
            owners.add(load_feature_table(table).owner)
        except SpecError as error:
            broken.append(error)
    for error in broken:
        sys.stderr.write(f"{error}\n")
    for name in ensure_roles(owners):
        sys.stdout.write(f"role {name}\n")


if __name__ == "__main__":
    main()
