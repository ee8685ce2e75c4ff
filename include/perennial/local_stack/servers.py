"""Start MLflow and Airflow, wait until they work, and stop them."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from perennial.core.errors import PerennialError
from perennial.local_stack import processes
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import Stack, check_disk, environment, password, sqlite
from perennial.local_stack.progress import ProgressDisplay

#: Airflow's standalone, the server that its tasks talk to, and MLflow.
NAMES = ("airflow", "tasks", "mlflow")
COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")
START_TIMEOUT = 300.0
LOG_BYTES = 20_000_000


def client(config: Stack) -> Airflow:
    """A client of the stack's Airflow, as its admin."""
    return Airflow(config.airflow_url.replace("localhost", "127.0.0.1"), "admin", password(config))


def mlflow_works(config: Stack) -> bool:
    """Whether MLflow answers, its registry included."""
    try:
        url = f"http://{config.mlflow_host}:{config.mlflow_port}"
        # /health answers 200 before the database exists, and also for host names that the server refuses
        answer = httpx.get(f"{url}/api/2.0/mlflow/registered-models/search", timeout=5, trust_env=False)
        return answer.status_code == 200
    except httpx.HTTPError:
        return False


def unhealthy_component(config: Stack, airflow: Airflow) -> str | None:
    """The first component that is not healthy; None if all are."""
    health = airflow.health()
    if not health:
        return "API server"
    return next((name.replace("_", " ") for name in COMPONENTS if health.get(name) != "healthy"), None)


def start_all(config: Stack, progress: ProgressDisplay, meanwhile: Callable[[], None] | None = None) -> None:
    """Start the servers that do not run yet, and wait until they work; `meanwhile` runs while they start.

    Raises:
        PerennialError: a port is in use, the disk is full, or a server does not start, with the end of its log.
    """
    running = {name: processes.find_server(name, config.state) for name in NAMES}
    killed = [name for name in NAMES if not running[name] and (config.state / f"{name}.json").exists()]
    if (killed or not any(running.values())) and (left := processes.stack_processes(config.home)):
        progress.note(f"{len(left)} processes of a run that was killed are still there; ending them.")
        processes.stop(config.home, NAMES)
        running = dict.fromkeys(NAMES)
    check_disk(config.home)
    config = _check_ports(config, running)
    environ = environment(config)
    password(config)
    python = [sys.executable, "-m"]
    if not running["mlflow"]:
        (config.home / "mlflow").mkdir(parents=True, exist_ok=True)
        store = ["--backend-store-uri", sqlite(config.home / "mlflow" / "mlflow.db")]
        store += ["--artifacts-destination", str(config.home / "mlflow" / "artifacts"), "--workers", "1"]
        address = ["--host", config.mlflow_host, "--port", str(config.mlflow_port)]
        # without its port, a host name is refused (403), although /health answers 200
        names = dict.fromkeys(("localhost", "127.0.0.1", config.mlflow_host))
        address += ["--allowed-hosts", ",".join(f"{name}:{config.mlflow_port}" for name in names)]
        command = [*python, "mlflow", "server", *store, *address]
        processes.start("mlflow", command, environ, config.state, _log(config, "mlflow"))
    log = _log(config, "airflow")
    log_size = log.stat().st_size if log.exists() and not running["airflow"] else 0
    if not running["airflow"]:
        processes.start("airflow", [*python, "airflow", "standalone"], environ, config.state, log)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(meanwhile) if meanwhile else None
        _start_task_api_and_wait(config, progress, environ, log_size, not running["tasks"])
        if work:
            work.result()


def _start_task_api_and_wait(
    config: Stack, progress: ProgressDisplay, environ: dict[str, str], log_size: int, tasks: bool
) -> None:
    """Start the server for tasks if it does not run yet, and wait until everything works."""
    if tasks:
        _await_database(config, progress, log_size)
        # With SQLite, one server for users and tasks sometimes stalls for five seconds: an audited call (a trigger)
        # waits on the event loop for the lock of a task's call, which needs the event loop to commit. Hence a separate
        # server for tasks; another database would not need it.
        command = [sys.executable, "-m", "airflow", "api-server", "--apps", "execution"]
        command += ["--port", str(config.task_port)]
        processes.start("tasks", command, environ, config.state, _log(config, "tasks"))
    _await_servers(config, progress)


def _await_database(config: Stack, progress: ProgressDisplay, log_size: int) -> None:
    """Wait until standalone has created or migrated Airflow's database; `log_size` is where its log began."""
    progress.working("Airflow", "preparing its database", milestone=True)
    began = time.monotonic()
    while b"Database ready" not in (config.logs / "airflow.log").read_bytes()[log_size:]:
        if processes.find_server("airflow", config.state) is None:
            raise _start_error(config, "airflow", "ended while creating its database")
        if time.monotonic() - began > START_TIMEOUT:
            raise _start_error(config, "airflow", f"has no database after {START_TIMEOUT:.0f} seconds")
        time.sleep(0.1)


def _log(config: Stack, name: str) -> Path:
    """The server's log; a large one is rotated once."""
    log = config.logs / f"{name}.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log


def _check_ports(config: Stack, running: dict[str, psutil.Process | None]) -> Stack:
    ports_by_server = {
        "mlflow": ("MLflow", config.mlflow_port, "MLFLOW_PORT", "PERENNIAL_MLFLOW_PORT"),
        "airflow": ("Airflow", config.airflow_port, "AIRFLOW_PORT", "PERENNIAL_AIRFLOW_PORT"),
    }
    for name, (label, port, make_variable, variable) in ports_by_server.items():
        user = None if running[name] else processes.port_user(port)
        if user:
            raise PerennialError(
                f"port {port}, which {label} is to listen on, is in use by {user}",
                f"choose another: make run {make_variable}={port + 10}   (or set {variable}); or end that process",
            )
    if running["airflow"] or running["tasks"]:
        noted = config.state / "ports.txt"
        ports = [int(text) for text in noted.read_text().split()] if noted.exists() else []
        return (
            replace(config, task_port=ports[0], log_ports=(ports[1], ports[2])) if len(ports) == 3 else config
        )
    # these addresses are internal, so a port in use is skipped
    free: list[int] = []
    for port in (config.task_port, *config.log_ports):
        while port in (*free, config.airflow_port, config.mlflow_port) or processes.port_user(port):
            port += 3
        free.append(port)
    config.state.mkdir(parents=True, exist_ok=True)
    (config.state / "ports.txt").write_text(" ".join(map(str, free)))
    return replace(config, task_port=free[0], log_ports=(free[1], free[2]))


def _await_servers(config: Stack, progress: ProgressDisplay) -> None:
    airflow = client(config)
    began = time.monotonic()
    waiting = dict.fromkeys(NAMES)
    built = threading.Event()
    threading.Thread(target=_warm_up_task_api, args=(config, built), daemon=True).start()
    try:
        while waiting:
            if "mlflow" in waiting:
                if mlflow_works(config):
                    progress.done("MLflow", config.mlflow_url)
                    del waiting["mlflow"]
                else:
                    progress.working("MLflow", "starting", milestone=True)
            if built.is_set():
                waiting.pop("tasks", None)
            if "airflow" in waiting:
                missing = unhealthy_component(config, airflow) or (
                    "API of the tasks" if "tasks" in waiting else None
                )
                if missing is None:
                    progress.done("Airflow", config.airflow_url)
                    del waiting["airflow"]
                else:
                    progress.working("Airflow", f"starting, waiting for the {missing}", milestone=True)
            for name in waiting:
                server = processes.find_server(name, config.state)
                if server is None:
                    raise _start_error(config, name, "ended while it was starting")
                # standalone keeps running without a component that could not start
                if name == "airflow" and processes.lost_child(server):
                    raise _start_error(config, name, "lost a component while it was starting")
                if time.monotonic() - began > START_TIMEOUT:
                    raise _start_error(config, name, f"does not work after {START_TIMEOUT:.0f} seconds")
            time.sleep(0.3)
    finally:
        airflow.close()


def _warm_up_task_api(config: Stack, built: threading.Event) -> None:
    """Make the first call of the task API, which takes 5 to 40 s, so that the first task need not wait."""
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            url = f"http://127.0.0.1:{config.task_port}/execution/health"
            if httpx.get(url, timeout=START_TIMEOUT, trust_env=False).status_code == 200:
                built.set()
                return
        time.sleep(0.3)


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
    return PerennialError(f"{name} {what}; its log says:{shown}", f"{remedy}, then run `make stop run`")


def stop_all(config: Stack) -> int:
    """Stop the servers and every process they started; returns how many there were."""
    return processes.stop(config.home, NAMES)


def remove_everything(config: Stack) -> None:
    """Stop everything and remove what the stack has written below its home."""
    stop_all(config)
    for name in ("lake", "landing", "mlflow", "airflow", "logs", "run", "cache", "tmp"):
        shutil.rmtree(config.home / name, ignore_errors=True)
    (config.home / ".running").unlink(missing_ok=True)
    if config.home.is_dir() and not any(config.home.iterdir()):
        config.home.rmdir()
