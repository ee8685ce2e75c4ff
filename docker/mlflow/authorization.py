"""What MLflow's users may do, beyond its own permissions: the ``authorization_function`` of its app ``basic-auth``.

MLflow's permissions are for a whole registered model: whoever may register versions may also move its aliases. Here
only users with the role ``promotion`` may move the alias ``champion``; only administrators delete, rename or hand on
rights; and users who were given no right to write, read only, whereas MLflow lets each user create models.

MLflow calls `authenticate` in the context of each request, those that FastAPI answers included, and afterwards checks
its own permissions. Rules go by the name of the handler: each has several paths (``/api``, ``/ajax-api``).
"""

from __future__ import annotations

from flask import Response, g, jsonify, request
from mlflow.protos.model_registry_pb2 import DeleteRegisteredModelAlias, SetRegisteredModelAlias  # noqa: TID253
from mlflow.server import auth  # noqa: TID253
from mlflow.server.handlers import _get_request_message, catch_mlflow_exception  # noqa: TID253
from werkzeug.datastructures import Authorization

#: Name of the role whose users may move the champion.
PROMOTION = "promotion"
#: Aliases that decide which version predicts.
PROTECTED_ALIASES = frozenset({"champion"})
#: Handlers that set or remove an alias, and the message that each reads.
ALIAS_MESSAGES = {
    "_set_registered_model_alias": SetRegisteredModelAlias,
    "_delete_registered_model_alias": DeleteRegisteredModelAlias,
}
#: Handlers that only administrators reach: what they remove or rename is evidence, and what predictions refer to.
ADMINISTRATION = frozenset({
    "_delete_artifact_mlflow_artifacts", "_delete_experiment", "_delete_logged_model", "_delete_model_version",
    "_delete_model_version_tag", "_delete_registered_model", "_delete_registered_model_tag", "_delete_run",
    "_rename_registered_model", "_transition_stage", "grant_user_permission", "revoke_user_permission",
})  # fmt: skip
#: Handlers that change nothing although their method is not GET; the last one changes one's own password.
READING = frozenset({
    "_batch_get_trace_infos", "_calculate_trace_filter_correlation", "_create_presigned_download_url",
    "_get_latest_versions", "_graphql", "_query_trace_metrics", "_search_evaluation_datasets_handler",
    "_search_experiments", "_search_issues", "_search_logged_models", "_search_prompt_optimization_jobs",
    "_search_runs", "_search_traces", "_search_traces_v3", "serve_post_ui_telemetry", "serve_search_datasets",
    "update_user_password",
})  # fmt: skip
#: Permissions that let a user write something.
WRITING = frozenset({"USE", "EDIT", "MANAGE"})

#: Handlers that name a registered model, which may not exist: MLflow would refuse whoever is no administrator.
NAMING_A_MODEL = frozenset({
    "_delete_registered_model_alias", "_get_model_version", "_get_model_version_by_alias", "_get_registered_model",
    "_set_registered_model_alias", "_set_registered_model_tag",
})  # fmt: skip


@catch_mlflow_exception
def authenticate() -> Authorization | Response:
    """Who sends the request, or the answer that refuses it.

    MLflow asks several times for one request; user and password are checked once.
    """
    known = g.get("perennial_authentication")
    if known is None:
        known = auth.authenticate_request_basic_auth()
        if isinstance(known, Authorization):
            if reason := refusal(str(known.username)):
                known = jsonify(error_code="PERMISSION_DENIED", message=reason)
                known.status_code = 403
            else:
                require_existence()
        g.perennial_authentication = known
    return known


def refusal(username: str) -> str:
    """Why a user may not send the current request; empty if MLflow's own permissions decide."""
    handler = request.endpoint or ""
    if request.method in ("GET", "HEAD", "OPTIONS") or handler in READING:
        return ""
    user = auth.store.get_user(username)
    if user.is_admin:
        return ""
    if handler in ADMINISTRATION:
        return f"user {username} may not do this: only an administrator of MLflow deletes, renames or grants"
    roles = auth.store.list_user_roles(user.id)
    if message := ALIAS_MESSAGES.get(handler):
        alias = _get_request_message(message()).alias
        if alias.casefold() in PROTECTED_ALIASES and PROMOTION not in {role.name for role in roles}:
            return f"user {username} may not move the alias {alias}: only users with the role {PROMOTION} may"
    if not any(permission.permission in WRITING for role in roles for permission in role.permissions):
        return f"user {username} may only read: an administrator of MLflow gives roles"
    return ""


def require_existence() -> None:
    """Say of what does not exist that it does not: all users may read, and steps ask for what is not there yet.

    Raises:
        MlflowException: there is no such model, run or logged model.
    """
    handler = request.endpoint or ""
    if handler in NAMING_A_MODEL:
        auth._get_model_registry_store().get_registered_model(auth._get_request_param("name"))
    elif handler == "serve_artifacts":
        auth._get_tracking_store().get_run(auth._run_id_or_uuid_param())
    elif handler == "serve_get_logged_model_artifact":
        auth._get_tracking_store().get_logged_model((request.view_args or {})["model_id"])
