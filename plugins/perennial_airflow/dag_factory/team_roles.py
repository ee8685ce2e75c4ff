"""A role of Airflow for each team: who has it sees and runs the DAGs of the models that the team owns, and no others.

``python -m perennial_airflow.dag_factory.team_roles`` creates the role ``team:<owner>`` of each owner of a model or a
feature table, and makes its rights those that it should have; run it again when a model is new or has another owner.
Only the FAB auth manager has such roles. The DAGs themselves name no role (``access_control``): Airflow would write no
DAG of a file if it lacked the role of one of them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Set

from perennial.core.errors import SpecError
from perennial.spec.catalog import TABLE_FILE, find_folders, load_feature_table, load_models
from perennial_airflow.dag_factory.factory import FEATURES, STAGES

#: What the names of the roles begin with; no owner can thereby mean a role of Airflow's own.
PREFIX = "team:"
#: What a team may do with each of its DAGs; nobody needs to delete one that a model's folder makes.
DAG_ACTIONS = ("can_read", "can_edit")


def dags_by_owner() -> tuple[dict[str, set[str]], list[SpecError]]:
    """Ids of the DAGs of each owner; and an error for each folder that cannot be read, which has no DAGs."""
    models, broken = load_models()
    owned: dict[str, set[str]] = defaultdict(set)
    for spec in models.values():
        owned[spec.owner] |= {f"{spec.name}.{stage}" for stage in STAGES}
    for table in find_folders(TABLE_FILE):
        try:
            owned[load_feature_table(table).owner].add(f"{FEATURES}.{table}")
        except SpecError as error:
            broken.append(error)
    return dict(owned), broken


def sync_roles(owned: Mapping[str, Set[str]]) -> list[str]:
    """Create roles and rights that are missing, and take rights to DAGs that a team does not own any more.

    Beside its DAGs a team may do what Airflow's role User may, and open the console.

    Args:
        owned: ids of the DAGs of each owner.

    Returns:
        The names of the roles.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    wanted = {
        f"{PREFIX}{owner}": {(action, f"DAG:{dag}") for dag in dags for action in DAG_ACTIONS}
        for owner, dags in sorted(owned.items())
    }
    with get_application_builder() as builder:
        manager = builder.sm
        general = {*manager.VIEWER_PERMISSIONS, *manager.USER_PERMISSIONS, ("can_read", "Plugins")}
        general -= {(action, "DAGs") for action in ("can_read", "can_edit", "can_delete")}
        for role in manager.get_all_roles():
            if role.name.startswith(PREFIX):
                for right in list(role.permissions):
                    pair = (right.action.name, right.resource.name)
                    if pair not in general | wanted.get(role.name, set()):
                        manager.remove_permission_from_role(role, right)
        manager.bulk_sync_roles([{"role": role, "perms": general | dags} for role, dags in wanted.items()])
    return list(wanted)


def main() -> None:
    """Sync the roles of all owners, and print their names."""
    owned, broken = dags_by_owner()
    for error in broken:
        sys.stderr.write(f"{error}\n")
    for name in sync_roles(owned):
        sys.stdout.write(f"role {name}\n")


if __name__ == "__main__":
    main()
