"""Starting the stack: what stands in the way is told, with what to do, before anything is started."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from perennial.core.errors import LockHeldError, PerennialError, StorageError
from perennial.core.settings import ROOT
from perennial.local_stack import __main__ as command
from perennial.local_stack import processes, servers
from perennial.local_stack.config import Stack, check_disk, environment, password, stack
from perennial.local_stack.progress import ProgressDisplay


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    home = tmp_path / "a home"
    monkeypatch.setenv("PERENNIAL_HOME", str(home))
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING"):
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
        found = servers._check_ports(wanted, dict.fromkeys(servers.NAMES))
    ports = [found.task_port, *found.log_ports]
    assert port not in ports and len(set(ports)) == 3
    # a second `make run` finds the ports of the servers that run
    again = servers._check_ports(
        wanted, {"airflow": psutil.Process(), "tasks": None, "mlflow": psutil.Process()}
    )
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
    def start(name: str, *_: object) -> object:
        code = "raise RuntimeError('the database is of a newer version')"
        log = config.logs / f"{name}.log"
        return processes.start(name, [sys.executable, "-c", code], os.environ, config.state, log)

    monkeypatch.setattr(servers, "processes", _Instead(processes, start=start))
    with pytest.raises(PerennialError, match="ended while creating its database") as error:
        servers.start_all(config, quiet())
    assert "the database is of a newer version" in str(error.value) and "make stop run" in str(error.value)
    processes.stop(config.home, servers.NAMES, patience=5)


class _Instead:
    """A module with some of its functions replaced."""

    def __init__(self, module: object, **replaced: object) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


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
    assert done.returncode == 3 and "does not work" in done.stdout


def test_forgetting_leaves_what_the_stack_did_not_make(config: Stack) -> None:
    config.home.mkdir(parents=True)
    (config.home / "lake").mkdir()
    (config.home / ".running").write_text("1")
    (config.home / "mine.txt").write_text("keep")
    servers.remove_everything(config)
    assert [path.name for path in config.home.iterdir()] == ["mine.txt"]
