"""Whatever of the stack is killed comes back, is named while it is away, and the runs go on."""

from __future__ import annotations

import io
import re
import stat
import time

import httpx
import psutil
import pytest
from rich.console import Console

from perennial.core import dates
from perennial.local_stack import __main__ as command
from perennial.local_stack import components, demo, processes, servers
from perennial.local_stack.airflow_client import DONE
from perennial.local_stack.config import FOLDERS, password
from perennial.storage import manifests
from support import toys
from support.live import PLAN, Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
SUPERVISED = (components.MLFLOW, *components.AIRFLOW)


def states(live: Live) -> dict[str, components.ComponentState]:
    return {state.name: state for state in components.states(live.config, live.airflow)}


def missing(live: Live) -> set[str]:
    return {name for name, state in states(live).items() if not state.works}


def kill(live: Live, name: str) -> psutil.Process:
    process = processes.find_server(name, live.config.state)
    assert process
    process.kill()
    await_(lambda: not processes.is_alive(process), 10, lambda: process)
    return process


def pids(live: Live) -> dict[str, int]:
    servers_by_name = {name: processes.find_server(name, live.config.state) for name in components.RUNNING}
    return {name: process.pid for name, process in servers_by_name.items() if process}


def status(live: Live) -> tuple[int, str]:
    """The exit status of `make status`, and what it prints."""
    console = Console(record=True, width=250, file=io.StringIO())
    return command.status(live.config, console), console.export_text()


@pytest.fixture
def night(live: Live) -> str:
    """A night that has landed, after all that has been done: its data run has something to do."""
    with live.board() as board:
        demo.run_plans(live.config, (PLAN,), board)
    day = dates.add_days(PLAN.latest, 1)
    while manifests.read(PLAN.model, "data", day):
        day = dates.add_days(day, 1)
    toys.land(live.spec, day, 1)
    return day


def test_each_killed_component_is_named_and_comes_back_and_a_run_goes_on(live: Live, night: str) -> None:
    before = pids(live)
    dag = f"{PLAN.model}.data"
    run = live.airflow.trigger(dag, key=night)
    await_(
        lambda: [t for t in live.airflow.tasks(dag, run) if t["state"] in ("queued", "running")],
        60,
        run.__str__,
    )
    for name in ("scheduler", "dag-processor", "triggerer", components.MLFLOW, components.TASK_API):
        kill(live, name)
        killed = states(live)[name]
        assert not killed.works and killed.text.startswith(("does not run", "starting"))
    kill(live, components.API_SERVER)
    assert components.API_SERVER in missing(live)
    await_(lambda: not missing(live), 180, lambda: states(live))
    after = pids(live)
    assert {name for name in before if before[name] == after[name]} == {components.SUPERVISOR}
    log = (live.config.logs / "supervisor.log").read_text()
    # A supervisor that found them running is not told how they ended.
    ended = r"^.{23} %s (was killed by SIGKILL|ended); starting it again"
    assert [n for n in SUPERVISED if not re.search(ended % n, log, re.MULTILINE)] == [], log
    assert [n for n, state in states(live).items() if n in SUPERVISED and "restarted" not in state.text] == []

    def state() -> str:
        return str(next(r["state"] for r in live.airflow.runs(dag) if r["dag_run_id"] == run))

    await_(lambda: state() in DONE, 180, lambda: live.airflow.tasks(dag, run))
    assert state() == "success"
    assert manifests.read(PLAN.model, "data", night)


def test_a_start_after_a_kill_starts_what_is_missing_only(live: Live) -> None:
    before = pids(live)
    kill(live, components.SUPERVISOR)
    kill(live, "triggerer")
    time.sleep(2)  # nobody starts it again
    assert missing(live) == {components.SUPERVISOR, "triggerer"}
    assert all(states(live)[name].remedy == "make start starts it" for name in missing(live))
    code, text = status(live)
    assert (
        code == 3
        and "triggerer           does not run" in text
        and "supervisor          does not run" in text
    )
    with live.board() as board:
        servers.start_all(live.config, board)
    after = pids(live)
    assert {name for name in before if before[name] != after[name]} == {components.SUPERVISOR, "triggerer"}
    code, text = status(live)
    assert code == 0 and "does not" not in text and password(live.config) not in text


def test_nothing_listens_for_other_machines(live: Live) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes.stack_processes(live.config.home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = {port for _, port in listening}
    config = live.config
    expected = {config.airflow_port, config.mlflow_port, *config.log_ports, config.task_port}
    assert ports >= expected and {address for address, _ in listening} == {"127.0.0.1"}
    # the API server asks the log servers under the name that tasks record
    dag = f"{PLAN.model}.data"
    hosts = {t["hostname"] for r in live.airflow.runs(dag) for t in live.airflow.tasks(dag, r["dag_run_id"])}
    assert hosts - {"", None} == {"127.0.0.1"}  # a task that was skipped has none
    for port in config.log_ports:
        answer = httpx.get(f"http://127.0.0.1:{port}/log/none", trust_env=False)
        assert answer.status_code == 403  # without a token


def test_what_the_stack_writes_is_readable_by_its_owner_only(live: Live) -> None:
    home = live.config.home
    folders = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.is_dir()}
    assert folders == dict.fromkeys(FOLDERS, 0o700)
    written = [p for name in ("airflow", "mlflow", "logs", "run") for p in (home / name).rglob("*")]
    assert {"airflow.db", "mlflow.db", "scheduler.log", "attempt=1.log"} <= {path.name for path in written}
    opened = [p for p in written if not p.is_symlink() and stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert opened == []
