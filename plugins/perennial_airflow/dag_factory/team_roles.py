"""A role of Airflow for each team: who has it sees and runs the DAGs of the models that the team owns, and no others.

``python -m perennial_airflow.dag_factory.team_roles`` creates the role ``team:<owner>`` of each owner of a model or a
feature table, and makes its rights those that it should have; run it again when a model is new or has another owner.
Only the FAB auth manager has such roles. The DAGs themselves name no role (``access_control``): Airflow would write no
DAG of a file if it lacked the role of one of them.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from perennial.core.errors import SpecError
from perennial.spec.catalog import TABLE_FILE, find_folders, load_feature_table, load_models
from perennial_airflow.dag_factory.factory import FEATURES, STAGES

#: What the names of the roles begin with; no owner can thereby mean a role of Airflow's own.
PREFIX = "team:"
#: Length of a role's name that Airflow's database takes.
MAX_NAME = 64
#: What a team may do with each of its DAGs; nobody needs to delete one that a model's folder makes.
DAG_ACTIONS = ("can_read", "can_edit")
#: The right to start a DAG; that for all DAGs, which role User has, would also count where a request names none.
#: Airflow looks for the rights to edit and delete runs only among those for all DAGs when tasks are cleared.
START = ("can_create", "DAG Runs")


@dataclass(frozen=True)
class OwnedDags:
    """Which team owns which DAGs.

    Attributes:
        by_owner: ids of the DAGs of each owner.
        unknown: ids of the DAGs of folders that cannot be read: whose they are is not known.
        errors: an error for each such folder.
    """

    by_owner: Mapping[str, Set[str]]
    unknown: Set[str]
    errors: Sequence[SpecError]


def dags_by_owner() -> OwnedDags:
    """Ids of the DAGs of each owner."""
    models, errors = load_models()
    owned: dict[str, set[str]] = defaultdict(set)
    for spec in models.values():
        owned[spec.owner] |= {f"{spec.name}.{stage}" for stage in STAGES}
    unknown = {f"{model}.{stage}" for model in find_folders().keys() - models.keys() for stage in STAGES}
    for table in find_folders(TABLE_FILE):
        dag = f"{FEATURES}.{table}"
        try:
            owned[load_feature_table(table).owner].add(dag)
        except SpecError as error:
            unknown.add(dag)
            errors.append(error)
    return OwnedDags(dict(owned), unknown, errors)


def role_name(owner: str) -> str:
    """Name of the role of an owner; the end of a name that is too long is replaced by a digest of the whole."""
    name = f"{PREFIX}{owner}"
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}~{hashlib.sha256(owner.encode()).hexdigest()[:8]}"


def sync_roles(owned: OwnedDags) -> list[str]:
    """Create roles and rights that are missing, and take rights to DAGs that a team does not own any more.

    Beside its DAGs a team may do what Airflow's role User may, and open the console; but not make events of assets,
    which would start DAGs of other teams. The rights to DAGs of a folder that cannot be read stay as they are.

    Args:
        owned: whose the DAGs are.

    Returns:
        The names of the roles.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    wanted = {role_name(owner): _rights(dags) for owner, dags in sorted(owned.by_owner.items())}
    unknown = _rights(owned.unknown)
    with get_application_builder() as builder:
        manager = builder.sm
        general = {*manager.VIEWER_PERMISSIONS, *manager.USER_PERMISSIONS, ("can_read", "Plugins")}
        general -= {(action, "DAGs") for action in ("can_read", "can_edit", "can_delete")}
        general -= {START, ("can_create", "Assets")}
        for role in manager.get_all_roles():
            if role.name.startswith(PREFIX):
                for right in list(role.permissions):
                    pair = (right.action.name, right.resource.name)
                    if pair not in general | unknown | wanted.get(role.name, set()):
                        manager.remove_permission_from_role(role, right)
        manager.bulk_sync_roles([{"role": role, "perms": general | dags} for role, dags in wanted.items()])
    return list(wanted)


def _rights(dags: Set[str]) -> set[tuple[str, str]]:
    """Actions and resources, as FAB names them, that a team has for its DAGs."""
    starts = {(START[0], f"DAG Run:{dag}") for dag in dags}
    return starts | {(action, f"DAG:{dag}") for dag in dags for action in DAG_ACTIONS}


def main() -> None:
    """Sync the roles of all owners, and print their names."""
    owned = dags_by_owner()
    for error in owned.errors:
        sys.stderr.write(f"{error}\n")
    for name in sync_roles(owned):
        sys.stdout.write(f"role {name}\n")


if __name__ == "__main__":
    main()
