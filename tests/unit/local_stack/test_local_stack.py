"""Starting the stack: what stands in the way is told, with what to do, before anything is started."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from perennial.core.errors import LockHeldError, PerennialError, StorageError
from perennial.core.settings import ROOT
from perennial.local_stack import __main__ as command
from perennial.local_stack import components, processes, servers
from perennial.local_stack.config import FOLDERS, Stack, check_disk, environment, password, protect, stack
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.supervisor import Plan, PlannedServer


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    home = tmp_path / "a home"
    monkeypatch.setenv("PERENNIAL_HOME", str(home))
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return Stack(home.resolve(), airflow_port=free_port(), mlflow_port=free_port())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def quiet() -> ProgressDisplay:
    return ProgressDisplay(Console(file=Path(os.devnull).open("w")))


@pytest.mark.parametrize("name", ["airflow", "mlflow"])
def test_a_port_in_use_is_told_with_the_way_out(config: Stack, name: str) -> None:
    port = getattr(config, f"{name}_port")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PerennialError) as error:
        servers.start_all(config, quiet())
    assert f"port {port}" in str(error.value) and f"process {os.getpid()}" in str(error.value)
    assert f"make run {name.upper()}_PORT={port + 10}" in str(error.value)
    assert processes.stack_processes(config.home) == []


def test_taken_ports_that_nobody_types_are_passed_over(config: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = Stack(config.home, config.airflow_port, config.mlflow_port, (port, port), port)
        chosen = servers._choose_ports(wanted)
    ports = [chosen.task_port, *chosen.log_ports]
    assert port not in ports and len(set(ports)) == 3
    # a second `make run` finds the ports of the servers that run
    (config.home / "run").mkdir(parents=True)
    components.plan(chosen, set()).write(config.state)
    again = servers.planned_stack(wanted)
    assert [again.task_port, *again.log_ports] == ports


def test_a_full_disk_is_told_before_anything_starts(config: Stack) -> None:
    with pytest.raises(StorageError, match="HOME_FOLDER="):
        check_disk(config.home, needed_mb=10**12)


@pytest.mark.parametrize("value", ["eighty", "80", "70000", "-1"])
def test_an_unusable_port_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PERENNIAL_AIRFLOW_PORT", value)
    with pytest.raises(PerennialError, match="PERENNIAL_AIRFLOW_PORT"):
        stack()


def test_everything_is_written_below_home(config: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = environment(config)
    folders = [
        "AIRFLOW_HOME",
        "MPLCONFIGDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "PERENNIAL_LAKE",
    ]
    folders += ["PERENNIAL_LANDING", "AIRFLOW__LOGGING__BASE_LOG_FOLDER"]
    assert all(environ[name].startswith(str(config.home)) for name in folders)
    assert environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{config.home}/airflow/airflow.db"
    assert environ["DO_NOT_TRACK"] == "true"


def test_the_settings_of_another_airflow_are_left_behind(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production/airflow")
    monkeypatch.setenv("AIRFLOW__CORE__SQL_ALCHEMY_CONN_CMD", "echo production")
    monkeypatch.setenv("AIRFLOW_CONN_MINE", "aws://")
    environ = environment(config)
    assert "production" not in " ".join(environ.values())
    assert environ["AIRFLOW_CONN_MINE"] == "aws://"


def test_servers_listen_on_this_machine_only(config: Stack) -> None:
    environ = environment(config)
    assert environ["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert "SIMPLE_AUTH_MANAGER_ALL_ADMINS" not in " ".join(environ)


def test_secrets_are_made_once_and_for_this_user_only(config: Stack) -> None:
    environ = environment(config)
    assert environment(config)["AIRFLOW__API_AUTH__JWT_SECRET"] == environ["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert len(environ["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64
    assert password(config) == password(config)
    for name in ("token.key", "session.key", "fernet.key", "password.json"):
        assert stat.S_IMODE((config.home / "airflow" / name).stat().st_mode) == 0o600


def test_a_server_that_dies_at_once_is_told_with_its_log(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: object) -> Plan:
        code = "raise RuntimeError('the database is of a newer version')"
        migration = PlannedServer(components.DATABASE, [sys.executable, "-c", code], once=True)
        return Plan((migration,), (1, 2, 3))

    monkeypatch.setattr(components, "plan", plan)
    try:
        with pytest.raises(PerennialError, match="database migration ended with exit status 1") as error:
            servers.start_all(config, quiet())
    finally:
        processes.stop(config.home, patience=5)
    assert "the database is of a newer version" in str(error.value) and "make stop run" in str(error.value)


def test_what_an_earlier_run_recorded_is_no_failure_of_this_start(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot the records of dead servers are still there."""
    dead = {"pid": 2**22 - 1, "created": 1.0, "restarts": 7, "ended": 1.0, "reason": "was killed by SIGKILL"}
    (config.home / "run").mkdir(parents=True)
    for name in (components.MLFLOW, components.DATABASE):
        processes.write_record(name, config.state, dead)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(components, "plan", lambda *_: Plan((PlannedServer("mlflow", sleep),), (1, 2, 3)))
    monkeypatch.setattr(components, "START_TIMEOUT", 3)
    try:
        with pytest.raises(PerennialError, match="does not work after 3 s"):
            servers.start_all(config, quiet())
        assert processes.read_record(components.MLFLOW, config.state)["restarts"] == 0
    finally:
        processes.stop(config.home, patience=5)


def test_a_component_that_ends_twice_while_it_starts_is_told_with_its_log(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: object) -> Plan:
        code = "raise RuntimeError('no such option')"
        return Plan((PlannedServer(components.MLFLOW, [sys.executable, "-c", code]),), (1, 2, 3))

    monkeypatch.setattr(components, "plan", plan)
    try:
        with pytest.raises(PerennialError, match="MLflow ended with exit status 1") as error:
            servers.start_all(config, quiet())
    finally:
        processes.stop(config.home, patience=5)
    assert "no such option" in str(error.value)
    assert processes.stack_processes(config.home) == []


def test_other_users_are_kept_out_of_a_new_home(config: Stack) -> None:
    protect(config.home)
    assert stat.S_IMODE(config.home.stat().st_mode) == 0o700


def test_other_users_are_kept_out_of_the_folders_of_a_home_that_exists(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://bucket/lake")
    config.home.mkdir(parents=True, mode=0o755)
    for name in ("landing", "logs", "mine"):
        (config.home / name).mkdir(mode=0o755)
    protect(config.home)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in config.home.iterdir()}
    assert modes == dict.fromkeys(set(FOLDERS) - {"lake"}, 0o700) | {"mine": 0o755}


def test_the_users_mlflow_is_used_and_none_is_started(config: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.example:5000/")
    chosen = stack()
    assert environment(chosen)["MLFLOW_TRACKING_URI"] == "http://me:secret@mlflow.example:5000"
    assert components.MLFLOW not in components.plan(chosen, set()).names
    assert chosen.mlflow_url == "http://mlflow.example:5000"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_address_of_the_stacks_own_mlflow_is_no_other_mlflow(
    config: Stack, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("PERENNIAL_MLFLOW_PORT", "5010")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:5010")
    chosen = stack()
    assert chosen.tracking_uri is None and components.MLFLOW in components.plan(chosen, set()).names


def test_a_users_mlflow_that_does_not_answer_is_told_before_anything_starts(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(config, tracking_uri=f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(servers, "TRACKING_TIMEOUT", 0)
    with pytest.raises(PerennialError, match=r"does not answer[^$]*unset MLFLOW_TRACKING_URI") as error:
        servers.start_all(elsewhere, quiet())
    assert f"MLflow at {elsewhere.mlflow_url}" in str(error.value)
    assert processes.stack_processes(config.home) == []


def test_pods_reach_mlflow_at_the_address_that_is_given(
    config: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PERENNIAL_MLFLOW_HOST", "192.0.2.7")
    chosen = replace(stack(), mlflow_port=5010)
    (mlflow, *_) = components.plan(chosen, set()).servers
    assert mlflow.command[mlflow.command.index("--host") + 1] == "192.0.2.7"
    assert environment(chosen)["MLFLOW_TRACKING_URI"] == "http://192.0.2.7:5010"


def test_only_one_run_at_a_time(config: Stack) -> None:
    with (
        command.hold_stack_lock(config),
        pytest.raises(LockHeldError, match=str(os.getpid())),
        command.hold_stack_lock(config),
    ):
        pass
    with command.hold_stack_lock(config):
        pass


def test_the_lock_of_a_killed_run_is_no_obstacle(config: Stack) -> None:
    config.home.mkdir(parents=True)
    (config.home / ".running").write_text("999999")
    with command.hold_stack_lock(config):
        pass


def test_status_and_stop_without_a_stack(config: Stack) -> None:
    environ = {**os.environ, "PERENNIAL_HOME": str(config.home), "PYTHONPATH": str(ROOT / "include")}
    environ |= {
        "PERENNIAL_AIRFLOW_PORT": str(config.airflow_port),
        "PERENNIAL_MLFLOW_PORT": str(config.mlflow_port),
    }
    module = [sys.executable, "-m", "perennial.local_stack"]
    done = subprocess.run([*module, "stop"], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "Nothing was running.")
    done = subprocess.run([*module, "status"], env=environ, capture_output=True, text=True)
    assert done.returncode == 3
    labels = [components.LABELS[name] for name in components.RUNNING]
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line.partition("  ")[0] for line in lines if "does not run" in line] == labels
    assert password(config) not in done.stdout and str(config.password_file) in done.stdout


def test_forgetting_leaves_what_the_stack_did_not_make(config: Stack) -> None:
    config.home.mkdir(parents=True)
    (config.home / "lake").mkdir()
    (config.home / ".running").write_text("1")
    (config.home / "mine.txt").write_text("keep")
    servers.remove_everything(config)
    assert [path.name for path in config.home.iterdir()] == ["mine.txt"]
