"""The connections to databases that models use: whether they are defined, and whether the database answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from perennial.cli.doctor.finding import Finding
from perennial.core.errors import DatabaseError
from perennial.databases import access, connections
from perennial.spec.compute_profile import ComputeProfile
from perennial.spec.model_spec import ModelSpec
from perennial.spec.pod_manifest import missing_connections, pod

#: Steps that use connections.
STEPS = ("data", "publish_predictions")


def users(models: Mapping[str, ModelSpec]) -> dict[str, list[str]]:
    """The steps that use each connection, as ``model.step``, by the connection's name."""
    used: dict[str, list[str]] = {}
    for spec in models.values():
        for step in STEPS:
            for name in spec.connections(step):
                used.setdefault(name, []).append(f"{spec.name}.{step}")
    return used


def examine(
    models: Mapping[str, ModelSpec], profiles: Mapping[tuple[str, str], ComputeProfile]
) -> Iterator[Finding]:
    """Connect to each database that a model uses.

    Args:
        models: the models, by name.
        profiles: the compute profiles that run in pods, by the model and step that they run.
    """
    for name, by in users(models).items():
        listed = ", ".join(by[:4]) + (f" and {len(by) - 4} more" if len(by) > 4 else "")
        yield _connection(name, listed)
    for (model, step), profile in profiles.items():
        manifest = pod(profile, [], model=model, step=step, team="", memory=profile.memory)
        for name in missing_connections(manifest, models[model].connections(step)):
            variable = f"{connections.PREFIX}{name.upper()}"
            yield Finding(
                f"connection {name}: profile {profile.name}", "missing", f"the pods of {model}.{step} do not get it",
                f"name a Kubernetes secret with the URI of the database in secrets of the profile, for {variable}",
            )  # fmt: skip


def _connection(name: str, listed: str) -> Finding:
    what = f"connection {name}"
    if not connections.is_defined(name):
        return Finding(
            what, "warning", f"used by {listed}; not defined in this shell",
            f"if Airflow has no connection {name}, set {connections.PREFIX}{name.upper()} to the URI of the database",
        )  # fmt: skip
    try:
        with access.open_database(name, hide=True) as database:
            database.columns("SELECT 1 AS __one")
    except DatabaseError as error:
        return Finding(what, "missing", error.cause, error.remedy)
    return Finding(what, "ok", f"{connections.find(name).address} answers; used by {listed}")
