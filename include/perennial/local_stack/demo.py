"""`make run`: start the servers, land the sample, run all models in parallel, print a summary."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from rich.console import Console

from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.local_stack import servers
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import Stack, environment, login_hint
from perennial.local_stack.driver import Driver, DriverStopped
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.sample import landing
from perennial.local_stack.sample.plan import PLANS, Plan
from perennial.local_stack.summary import print_summary
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind

STAGES = ("data", "train", "score", "monitor")
WAIT_FOR_DAGS = 120.0


def run(config: Stack, console: Console) -> int:
    """Run the demonstration to its end; returns 0 and leaves the servers running.

    Raises:
        PerennialError: what stopped it, with what to do.
    """
    began = time.monotonic()
    with task_environment(config), ProgressDisplay() as progress:
        servers.start_all(config, progress, meanwhile=lambda: _land(progress))
        ready = time.monotonic() - began
        run_plans(config, PLANS, progress)
    with task_environment(config):
        print_summary(console, PLANS)
    console.print()
    console.print(f"Airflow  {config.airflow_url}")
    console.print(f"MLflow   {config.mlflow_url}")
    console.print(login_hint(config), markup=False, soft_wrap=True)
    console.print(
        f"Servers were ready after {ready:.0f} s, the loop ended after {time.monotonic() - began:.0f} s. "
        "The servers keep running; `make stop` stops them.",
        soft_wrap=True,
    )
    if not any(_has_retrained(plan) for plan in PLANS if plan.stop_after_retraining):
        raise PerennialError(
            "no retraining that monitoring requested brought a new champion",
            "compare the verdicts above with monitoring and retraining in the models' model.yaml",
        )
    return 0


@contextlib.contextmanager
def task_environment(config: Stack) -> Iterator[None]:
    """Use the environment variables of Airflow's tasks, for the lake and for MLflow."""
    before = dict(os.environ)
    os.environ.update(environment(config))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _land(progress: ProgressDisplay) -> None:
    progress.working("Sample", "landing the flights of 2013")
    done = landing.land_sample(settings().landing)
    progress.done("Sample", f"{done.rows:,} rows in {done.files} files" if done.files else "landed before")


def run_plans(config: Stack, plans: tuple[Plan, ...], progress: ProgressDisplay) -> None:
    """Run all plans in parallel.

    Raises:
        PerennialError: the first failure; the other models stop at their next check.
    """
    airflow = servers.client(config)
    await_dags(airflow, plans, progress)
    halt = threading.Event()
    clients = [servers.client(config) for _ in plans]
    pool = ThreadPoolExecutor(len(plans), thread_name_prefix="model")
    try:
        drivers = [Driver(plan, client, progress, halt) for plan, client in zip(plans, clients, strict=True)]
        futures = [pool.submit(driver.run) for driver in drivers]
        wait(futures, return_when=FIRST_EXCEPTION)
        _raise_first(futures, halt)
    finally:
        halt.set()  # also on Ctrl-C, which reaches this thread only
        pool.shutdown(wait=True)
        for client in (airflow, *clients):
            client.close()


def _raise_first(futures: list[Future[None]], halt: threading.Event) -> None:
    failures = [error for future in futures if future.done() and (error := future.exception())]
    halt.set()
    if failures:
        raise next((error for error in failures if not isinstance(error, DriverStopped)), failures[0])


def await_dags(airflow: Airflow, plans: tuple[Plan, ...], progress: ProgressDisplay) -> None:
    """Wait until Airflow has read the models' DAGs.

    Raises:
        PerennialError: one is missing, with Airflow's import errors.
    """
    expected = {f"{plan.model}.{stage}" for plan in plans for stage in STAGES}
    end = time.monotonic() + WAIT_FOR_DAGS
    paused = airflow.paused()
    while missing := expected - set(paused):
        progress.working("Airflow", f"reading the DAGs, {len(missing)} to go")
        if time.monotonic() > end:
            errors = "\n".join(airflow.import_errors()) or "Airflow reports no import error"
            raise PerennialError(f"Airflow does not know {', '.join(sorted(missing))}: {errors}",
                                 "run `perennial check` to see what is wrong with a model")  # fmt: skip
        time.sleep(0.5)
        paused = airflow.paused()
    for dag in sorted(expected):
        if paused[dag]:
            airflow.unpause(dag)
    progress.done("Airflow", f"{len(expected)} DAGs of {len(plans)} models")


def _has_retrained(plan: Plan) -> bool:
    decisions = ledger.records(plan.model, LedgerKind.RETRAINING)
    requested = {r["partition"] for r in decisions if r["decision"] == Decision.REQUESTED}
    return any(r["partition"] in requested for r in ledger.records(plan.model, LedgerKind.PROMOTION))
