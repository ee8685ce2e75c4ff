"""Runs of killed trainings.

Each training holds a lock while it runs, and its MLflow run has a tag with the name of the lock. A killed training
cannot close its run, whose status stays RUNNING; but its lock is free (on S3 once its lease has expired), so that the
next training of the model can close the run.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

from perennial.core.errors import LockHeldError
from perennial.storage import locks

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: The tag of a run that names its lock.
LOCK_TAG = "lock"


def hold_liveness_lock(model: str, stack: contextlib.ExitStack) -> str:
    """Hold the first free lock of a model's trainings.

    Args:
        model: name of the model.
        stack: releases the lock when it closes.

    Returns:
        The lock's name.
    """
    for number in itertools.count(1):
        name = f"training-{model}-{number}"
        with contextlib.suppress(LockHeldError):
            stack.enter_context(locks.hold(name, timeout=0))
            return name
    raise AssertionError("unreachable")


def close_stale_runs(client: MlflowClient, experiment: str, held_lock: str) -> None:
    """Mark the RUNNING runs of killed trainings, and their unfinished search trials, as KILLED.

    Args:
        client: MLflow's client.
        experiment: id of the model's experiment.
        held_lock: name of the lock that the caller holds. The caller has no run yet, so that a run with it is stale.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    dead = set()
    for run in running:
        name = run.data.tags.get(LOCK_TAG)
        if name is None:
            continue
        lock = contextlib.nullcontext() if name == held_lock else locks.hold(name, timeout=0)
        with contextlib.suppress(LockHeldError), lock:
            # The run may have ended since the runs were listed.
            if client.get_run(run.info.run_id).info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
                dead.add(run.info.run_id)
    for run in running:
        if run.data.tags.get(MLFLOW_PARENT_RUN_ID) in dead:
            client.set_terminated(run.info.run_id, "KILLED")
