"""The components of the local stack: how each is started, and whether it works."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from perennial.local_stack import processes
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import LOOPBACK, Stack, sqlite
from perennial.local_stack.supervisor import Plan, PlannedServer

MLFLOW, DATABASE, API_SERVER, TASK_API = "mlflow", "database", "api-server", "task-api"
SUPERVISOR = "supervisor"
#: What messages call each; records and logs are named by the keys.
LABELS = {
    MLFLOW: "MLflow",
    API_SERVER: "API server",
    TASK_API: "task API",
    "scheduler": "scheduler",
    "dag-processor": "DAG processor",
    "triggerer": "triggerer",
    SUPERVISOR: "supervisor",
    DATABASE: "database migration",
}
#: Airflow's components. With SQLite, one server for users and tasks sometimes stalls for five seconds: an audited call
#: (a trigger) waits on the event loop for the lock of a task's call, which needs the event loop to commit. Hence a
#: separate server for tasks; another database would not need it.
AIRFLOW = (API_SERVER, TASK_API, "scheduler", "dag-processor", "triggerer")
#: What runs for as long as the stack does.
RUNNING = (MLFLOW, *AIRFLOW, SUPERVISOR)
#: Options for calls of the stack's own servers: no proxy, and no certificates, which take longer to load than the call.
OWN_SERVER: dict[str, Any] = {"trust_env": False, "verify": False}
#: A component that runs for so many seconds without working hangs.
START_TIMEOUT = 300.0
#: The state of a component whose heartbeat cannot be read.
UNKNOWN = "runs; more is known once the API server answers"
#: After so many restarts the log is worth reading.
MANY_RESTARTS = 3


@dataclass(frozen=True)
class ComponentState:
    """The state of one component.

    Attributes:
        name: of its record and its log.
        works: whether it does its work.
        text: the state in words.
        remedy: what to do; empty if nothing is to be done.
    """

    name: str
    works: bool
    text: str
    remedy: str = ""

    @property
    def label(self) -> str:
        """What messages call the component."""
        return LABELS[self.name]


def plan(config: Stack, running: set[str]) -> Plan:
    """What the supervisor of this stack has to keep running; `running` are the components that run already."""
    python = [sys.executable, "-m"]
    servers = [] if config.tracking_uri else [PlannedServer(MLFLOW, _mlflow_command(config))]
    # the database is in use, and migrated, while any of Airflow's components runs
    migrated = bool(running.intersection(AIRFLOW))
    if not migrated:
        servers.append(PlannedServer(DATABASE, [*python, "airflow", "db", "migrate"], once=True))
    options = {
        API_SERVER: ["api-server"],
        TASK_API: ["api-server", "--apps", "execution", "--port", str(config.task_port)],
    }
    servers += [
        PlannedServer(
            name, [*python, "airflow", *options.get(name, [name])], after=None if migrated else DATABASE
        )
        for name in AIRFLOW
    ]
    return Plan(tuple(servers), (config.task_port, *config.log_ports))


def _mlflow_command(config: Stack) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", sqlite(config.home / "mlflow" / "mlflow.db")]
    command += ["--artifacts-destination", str(config.home / "mlflow" / "artifacts")]
    command += ["--host", config.mlflow_host, "--port", str(config.mlflow_port)]
    # without its port, a host name is refused (403), although /health answers 200
    names = dict.fromkeys(("localhost", LOOPBACK, config.mlflow_host))
    return [*command, "--allowed-hosts", ",".join(f"{name}:{config.mlflow_port}" for name in names)]


def mlflow_problem(config: Stack) -> str | None:
    """What is wrong with MLflow, its registry included; None if it works."""
    url, options = f"http://{config.mlflow_host}:{config.mlflow_port}", OWN_SERVER
    if config.tracking_uri:
        if urlsplit(config.tracking_uri).scheme not in ("http", "https"):
            return None  # MLflow's client alone knows how to reach it
        url, options = config.tracking_uri, _credentials()
    try:
        # /health answers 200 before the database exists, and also for host names that the server refuses
        path = "/api/2.0/mlflow/registered-models/search"
        answer = httpx.get(url + path, timeout=5, **options)
    except httpx.HTTPError as error:
        return f"does not answer ({type(error).__name__})"
    return None if answer.status_code == 200 else f"answers with status {answer.status_code}"


def _credentials() -> dict[str, Any]:
    """Options for a call of the user's MLflow, from the variables that MLflow's client reads."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"headers": {"Authorization": f"Bearer {token}"}}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return {"auth": (user, password)} if user and password else {}


def states(config: Stack, airflow: Airflow) -> list[ComponentState]:
    """The state of each component, and of the supervisor that restarts them."""
    supervised = processes.find_server(SUPERVISOR, config.state) is not None
    with ThreadPoolExecutor(2) as pool:
        mlflow = pool.submit(mlflow_problem, config)
        tasks = pool.submit(_task_api_problem, config)
        health = airflow.monitor()
        problems = {MLFLOW: mlflow.result(), TASK_API: tasks.result()}
    components = [_foreign_mlflow(problems[MLFLOW])] if config.tracking_uri else []
    components += _migration(config, supervised)
    for name in AIRFLOW if config.tracking_uri else (MLFLOW, *AIRFLOW):
        process = processes.find_server(name, config.state)
        record = processes.read_record(name, config.state)
        if process:
            problem = problems[name] if name in problems else _airflow_problem(name, health, process)
            components.append(_running(config, name, record, process, problem))
        else:
            components.append(_ended(config, name, record, supervised))
    return [*components, _supervisor(supervised)]


def _migration(config: Stack, supervised: bool) -> list[ComponentState]:
    """The state of the migration of Airflow's database, for which its components wait, unless it is done."""
    record = processes.read_record(DATABASE, config.state)
    if processes.find_server(DATABASE, config.state):
        return [ComponentState(DATABASE, False, "runs")]
    return [_ended(config, DATABASE, record, supervised)] if record else []


def _foreign_mlflow(problem: str | None) -> ComponentState:
    remedy = "start it, or correct or unset MLFLOW_TRACKING_URI" if problem else ""
    return ComponentState(MLFLOW, not problem, f"{problem or 'works'} (MLFLOW_TRACKING_URI)", remedy)


def _supervisor(supervised: bool) -> ComponentState:
    if supervised:
        return ComponentState(SUPERVISOR, True, "works")
    return ComponentState(
        SUPERVISOR, False, "does not run: what ends is not started again", "make start starts it"
    )


def _task_api_problem(config: Stack) -> str | None:
    with contextlib.suppress(httpx.HTTPError):
        url = f"http://{LOOPBACK}:{config.task_port}/execution/health"
        if httpx.get(url, timeout=5, **OWN_SERVER).status_code == 200:
            return None
    return "does not answer"


def _airflow_problem(name: str, health: dict[str, dict[str, Any]], process: psutil.Process) -> str | None:
    """What is wrong with one of Airflow's components that runs; None if it works."""
    if name == API_SERVER:
        if not health:
            return "does not answer"
        database = health.get("metadatabase", {}).get("status")
        return None if database == "healthy" else "cannot read its database"
    if not health:
        return UNKNOWN
    key = name.replace("-", "_")
    status = health.get(key, {})
    heartbeat = status.get(f"latest_{key}_heartbeat")
    if not heartbeat or datetime.fromisoformat(heartbeat).timestamp() < process.create_time():
        return "has no heartbeat yet"  # for half a minute, the one of a killed predecessor counts as healthy
    return None if status.get("status") == "healthy" else f"has had no heartbeat since {heartbeat[:19]} UTC"


def _running(
    config: Stack, name: str, record: dict[str, Any], process: psutil.Process, problem: str | None
) -> ComponentState:
    count = record.get("restarts", 0)
    times = "once" if count == 1 else f"{count} times"
    history = f"; restarted {times}, last because it {_end(record)}" if count else ""
    advice = _advice(config, name, record)
    if problem in (None, UNKNOWN):
        return ComponentState(name, True, f"{problem or 'works'}{history}", advice)
    age = time.time() - process.create_time()
    if age < START_TIMEOUT:
        return ComponentState(name, False, f"starting for {age:.0f} s, {problem}{history}", advice)
    remedy = f"read {config.logs / name}.log; to have it started anew: kill -9 {process.pid}"
    return ComponentState(name, False, f"{problem}{history}", remedy)


def _ended(config: Stack, name: str, record: dict[str, Any], supervised: bool) -> ComponentState:
    if not supervised:
        return ComponentState(name, False, "does not run", "make start starts it")
    if "retry_at" not in record:
        return ComponentState(name, False, "does not run; the supervisor is about to start it")
    wait = max(0.0, float(record["retry_at"]) - time.time())
    text = f"does not run; it {_end(record)}; restart {record['restarts']} in {wait:.0f} s"
    return ComponentState(name, False, text, _advice(config, name, record))


def _end(record: dict[str, Any]) -> str:
    return f"{record['reason']} at {datetime.fromtimestamp(record['ended']):%Y-%m-%d %H:%M:%S}"


def _advice(config: Stack, name: str, record: dict[str, Any]) -> str:
    advice = []
    if record.get("restarts", 0) >= MANY_RESTARTS:
        advice.append(f"read {config.logs / name}.log")
    if "SIGKILL" in str(record.get("reason")):
        advice.append("if nobody killed it, the machine ran out of memory: free some")
    return "; ".join(advice)
