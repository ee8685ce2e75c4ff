"""The users of the bundle in MLflow's database of users, and their roles.

Each has its password in ``MLFLOW_<NAME>_PASSWORD``; a changed one is set again. People are added by the administrator,
in MLflow's own pages or by its API: without a role they read only.
"""

from __future__ import annotations

import os

#: Users, and the role of each: none for who only reads.
USERS = {"admin": "", "steps": "steps", "promotion": "promotion", "console": ""}
#: What roles may do: permissions by kind of resource, on each of it. Removing an alias takes MANAGE.
ROLES = {
    "steps": ({"experiment": "EDIT", "registered_model": "MANAGE"}, "train, and register versions"),
    "promotion": ({"registered_model": "MANAGE"}, "move the alias champion"),
}


def ensure(database: str) -> None:
    """Create tables, users and roles that are missing, and set passwords that changed.

    Args:
        database: URL of the database of users; empty tables are made, and those of an older MLflow migrated.

    Raises:
        SystemExit: a password is missing or too short.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(database)
    for name, role in USERS.items():
        variable = f"MLFLOW_{name.upper()}_PASSWORD"
        password = os.environ.get(variable, "")
        try:
            state = _ensure_user(store, name, password)
        except MlflowException as error:
            raise SystemExit(
                f"error: MLflow's user {name} cannot have the password of {variable}: {error.message}\n"
                f"  What to do: set {variable} to a password of at least 12 characters"
            ) from None
        if role:
            _ensure_role(store, name, role)
        print(f"MLflow's user {name}: {state}")  # noqa: T201


def _ensure_user(store, name: str, password: str) -> str:
    if not store.has_user(name):
        store.create_user(name, password, is_admin=name == "admin")
        return "created"
    if store.authenticate_user(name, password):
        return "as before"
    store.update_user(name, password=password)
    return "has a new password"


def _ensure_role(store, name: str, role: str) -> None:
    from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

    permissions, description = ROLES[role]
    existing = {item.name: item for item in store.list_roles([DEFAULT_WORKSPACE_NAME])}.get(role)
    if existing is None:
        existing = store.create_role(role, DEFAULT_WORKSPACE_NAME, description)
    granted = {item.resource_type: item for item in existing.permissions if item.resource_pattern == "*"}
    for kind, permission in permissions.items():
        if kind not in granted:
            store.add_role_permission(existing.id, kind, "*", permission)
        elif granted[kind].permission != permission:
            store.update_role_permission(granted[kind].id, permission)
    user = store.get_user(name)
    if role not in {item.name for item in store.list_user_roles(user.id)}:
        store.assign_role_to_user(user.id, existing.id)
