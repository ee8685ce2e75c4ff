"""Which trainings are alive: each holds a lock while it works, and its run in MLflow says which one.

A training that was killed cannot say so. Its lock is free then (on S3 once its lease has run out), which nothing else
tells of a run that MLflow calls RUNNING.
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
TAG = "lock"


def hold_liveness_lock(model: str, held: contextlib.ExitStack) -> str:
    """Hold the first lock that is free among those of a model's trainings until ``held`` closes; returns its name."""
    for number in itertools.count(1):
        name = f"training-{model}-{number}"
        with contextlib.suppress(LockHeldError):
            held.enter_context(locks.hold(name, timeout=0))
            return name
    raise AssertionError("unreachable")


def close_stale_runs(client: MlflowClient, experiment: str, own: str) -> None:
    """Mark as KILLED the runs that say RUNNING and whose training is gone, and the trials they had under way.

    Args:
        own: the lock that the caller holds, who has no run yet: whichever run names it is dead.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    dead = set()
    for run in running:
        name = run.data.tags.get(TAG)
        if name is None:
            continue
        free = contextlib.nullcontext() if name == own else locks.hold(name, timeout=0)
        with contextlib.suppress(LockHeldError), free:
            # It may have ended since the runs were listed.
            if client.get_run(run.info.run_id).info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
                dead.add(run.info.run_id)
    for run in running:
        if run.data.tags.get(MLFLOW_PARENT_RUN_ID) in dead:
            client.set_terminated(run.info.run_id, "KILLED")
