"""Start MLflow and Airflow, wait until they work, and stop them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from perennial.core import signing_keys
from perennial.core.errors import PerennialError
from perennial.local_stack import components, processes
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import FOLDERS, LOOPBACK, Stack, check_disk, environment, password, protect
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.supervisor import RETRY_NOW, Plan
from perennial.storage import ledger

#: Seconds that an MLflow of the user's may take to answer.
TRACKING_TIMEOUT = 10.0
#: A component that ended so many times while the stack starts will not start: once for the migration of the database.
DATABASE_FAILURES, FAILURES = 1, 2


def client(config: Stack) -> Airflow:
    """A client of the stack's Airflow, as its admin."""
    return Airflow(config.airflow_url.replace("localhost", LOOPBACK), "admin", password(config))


def mlflow_works(config: Stack) -> bool:
    """Whether MLflow answers, its registry included."""
    return components.mlflow_problem(config) is None


def start_all(config: Stack, progress: ProgressDisplay, meanwhile: Callable[[], None] | None = None) -> None:
    """Start what does not run yet, and wait until everything works; `meanwhile` runs while it starts.

    Raises:
        PerennialError: a port is in use, the disk is full, the user's MLflow does not answer, or a component does not
            start, with the end of its log.
    """
    protect(config.home)
    if not any(os.environ.get(name) for name in (signing_keys.SIGNING_KEY, signing_keys.TRUSTED_KEYS)):
        # what the ledger has needs no signature
        signing_keys.make_local_keys(config.home, ledger.last_records)
    _check_tracking(config)
    if supervisor := processes.find_server(components.SUPERVISOR, config.state):
        config, restarts = _planned(config), _restarts(config)
        supervisor.send_signal(RETRY_NOW)
    else:
        running = _clear_up(config, progress)
        check_disk(config.home)
        config = _planned(config) if running else _choose_ports(config)
        _check_ports(config, running)
        restarts = _restarts(config)
        _start_supervisor(config, running)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(meanwhile) if meanwhile else None
        _await_components(config, progress, restarts)
        if work:
            work.result()


def _clear_up(config: Stack, progress: ProgressDisplay) -> set[str]:
    """End what dead components left behind, which may hold their ports; returns the components that run."""
    names = {components.MLFLOW, *components.AIRFLOW}
    running = {name for name in names if processes.find_server(name, config.state)}
    if not running:
        if left := processes.stack_processes(config.home):
            progress.note(f"{len(left)} processes of a run that was killed are still there; ending them.")
        processes.stop(config.home)
    for name in names - running:
        processes.kill_recorded_session(name, config.state)
    return running


def _start_supervisor(config: Stack, running: set[str]) -> None:
    """Start the supervisor, which starts the components that do not run."""
    password(config)
    components.plan(config, running).write(config.state)
    command = [sys.executable, "-m", "perennial.local_stack.supervisor", str(config.home)]
    log = config.logs / f"{components.SUPERVISOR}.log"
    processes.start(components.SUPERVISOR, command, environment(config), config.state, log)


def _check_tracking(config: Stack) -> None:
    """Raise PerennialError when an MLflow of the user's does not answer."""
    deadline = time.monotonic() + TRACKING_TIMEOUT
    while config.tracking_uri and (problem := components.mlflow_problem(config)):
        if time.monotonic() > deadline:
            raise PerennialError(
                f"MLflow at {config.mlflow_url} (MLFLOW_TRACKING_URI) {problem}",
                "start it, or correct or unset MLFLOW_TRACKING_URI: then the stack starts its own",
            )
        time.sleep(0.3)


def planned_stack(config: Stack) -> Stack:
    """The stack with the ports that its components were given when they started."""
    recorded = Plan.read(config.state)
    if recorded is None:
        return config
    task_port, *log_ports = recorded.ports
    return replace(config, task_port=task_port, log_ports=(log_ports[0], log_ports[1]))


def _planned(config: Stack) -> Stack:
    """The stack as it runs.

    Raises:
        PerennialError: it runs with another MLflow than the environment asks for.
    """
    recorded = Plan.read(config.state)
    if recorded and (components.MLFLOW in recorded.names) == bool(config.tracking_uri):
        runs = "another MLflow" if config.tracking_uri else "the MLflow of MLFLOW_TRACKING_URI"
        raise PerennialError(
            f"the stack in {config.home} runs with {runs}, not with {config.mlflow_url}",
            "`make stop start` starts it with this one",
        )
    return planned_stack(config)


def _choose_ports(config: Stack) -> Stack:
    """Pass over internal ports that are in use: nobody types them."""
    free: list[int] = []
    for port in (config.task_port, *config.log_ports):
        while port in (*free, config.airflow_port, config.mlflow_port) or processes.port_user(port):
            port += 3
        free.append(port)
    return replace(config, task_port=free[0], log_ports=(free[1], free[2]))


def _check_ports(config: Stack, running: set[str]) -> None:
    ports = {
        components.API_SERVER: ("Airflow", config.airflow_port, "AIRFLOW_PORT", "PERENNIAL_AIRFLOW_PORT")
    }
    if not config.tracking_uri:
        ports[components.MLFLOW] = ("MLflow", config.mlflow_port, "MLFLOW_PORT", "PERENNIAL_MLFLOW_PORT")
    for name, (label, port, make_variable, variable) in ports.items():
        user = None if name in running else processes.port_user(port)
        if user:
            raise PerennialError(
                f"port {port}, which {label} is to listen on, is in use by {user}",
                f"choose another: make run {make_variable}={port + 10}   (or set {variable}); or end that process",
            )


def _restarts(config: Stack) -> dict[str, int]:
    names = (components.DATABASE, components.MLFLOW, *components.AIRFLOW)
    return {name: processes.read_record(name, config.state).get("restarts", 0) for name in names}


def _await_components(config: Stack, progress: ProgressDisplay, restarts: dict[str, int]) -> None:
    """Wait until all components work; `restarts` counts those before this start."""
    airflow = client(config)
    began = time.monotonic()
    try:
        while True:
            states = components.states(config, airflow)
            missing = [state for state in states if not state.works]
            _show_progress(config, progress, states)
            if not missing:
                return
            _check_start(config, missing, restarts, time.monotonic() - began)
            time.sleep(0.3)
    finally:
        airflow.close()


def _show_progress(config: Stack, progress: ProgressDisplay, states: list[components.ComponentState]) -> None:
    for subject, url in (("MLflow", config.mlflow_url), ("Airflow", config.airflow_url)):
        shown = [state for state in states if (state.name == components.MLFLOW) == (subject == "MLflow")]
        missing = next((state for state in shown if not state.works), None)
        if missing is None:
            progress.done(subject, url)
        elif subject == missing.label:
            progress.working(subject, "starting", milestone=True)
        else:
            progress.working(subject, f"starting, waiting for the {missing.label}", milestone=True)


def _check_start(
    config: Stack, missing: list[components.ComponentState], restarts: dict[str, int], seconds: float
) -> None:
    """Raise the error of a component that cannot start."""
    if missing[-1].name == components.SUPERVISOR:
        raise _start_error(config, components.SUPERVISOR, "has ended")
    for name, count in _restarts(config).items():
        allowed = DATABASE_FAILURES if name == components.DATABASE else FAILURES
        if count - restarts.get(name, 0) >= allowed:
            reason = processes.read_record(name, config.state).get("reason", "ended")
            raise _start_error(config, name, f"{reason} while it was starting")
    if seconds > components.START_TIMEOUT:
        raise _start_error(
            config, missing[0].name, f"does not work after {seconds:.0f} s: it {missing[0].text}"
        )


def _start_error(config: Stack, name: str, what: str) -> PerennialError:
    log = config.logs / f"{name}.log"
    try:
        lines = log.read_text(errors="replace").splitlines()[-400:]
    except OSError:
        lines = []
    errors = [line for line in lines if re.search(r"(Error|Exception)\b.*:", line)][-3:] or lines[-10:]
    shown = "".join(f"\n    {line.strip()[:300]}" for line in errors)
    full = "no space" in shown.lower() or "disk is full" in shown.lower()
    remedy = "free some space" if full else f"read {log} and correct what it names"
    label = components.LABELS[name]
    return PerennialError(f"{label} {what}; its log says:{shown}", f"{remedy}, then run `make stop run`")


def stop_all(config: Stack) -> int:
    """Stop the servers and every process they started; returns how many there were."""
    return processes.stop(config.home)


def remove_everything(config: Stack) -> None:
    """Stop everything and remove what the stack has written below its home."""
    stop_all(config)
    for name in FOLDERS:
        shutil.rmtree(config.home / name, ignore_errors=True)
    (config.home / ".running").unlink(missing_ok=True)
    if config.home.is_dir() and not any(config.home.iterdir()):
        config.home.rmdir()
