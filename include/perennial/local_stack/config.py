"""Ports, folders and environment variables of the local stack's servers."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from perennial.core.errors import PerennialError, StorageError
from perennial.core.settings import ROOT, settings

#: Free space that one run of the sample needs, with Airflow's and MLflow's databases and logs.
NEEDED_MB = 1_500
LOOPBACK = "127.0.0.1"
#: Folders that the stack and its tasks make below their home.
FOLDERS = ("lake", "landing", "mlflow", "airflow", "logs", "run", "cache", "tmp", "signing")


@dataclass(frozen=True)
class Stack:
    """One local stack: everything it writes is below `home`.

    Attributes:
        home: the working folder; two stacks never share one.
        airflow_port: port of Airflow's UI and REST API.
        mlflow_port: port of MLflow's UI and API.
        log_ports: where Airflow's scheduler and triggerer serve the logs of running tasks.
        task_port: of the server that Airflow's tasks talk to.
        mlflow_host: address that MLflow listens at; not the loopback address if pods must reach it.
        tracking_uri: URL of an MLflow that the user runs; None if the stack starts its own.
    """

    home: Path
    airflow_port: int = 8080
    mlflow_port: int = 5000
    log_ports: tuple[int, int] = (8793, 8794)
    task_port: int = 8792
    mlflow_host: str = LOOPBACK
    tracking_uri: str | None = None

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's UI."""
        return f"http://localhost:{self.airflow_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow's UI, without a password that it may hold."""
        if self.tracking_uri:
            return re.sub(r"//[^/@]*@", "//", self.tracking_uri)
        return f"http://{self.mlflow_host.replace(LOOPBACK, 'localhost')}:{self.mlflow_port}"

    @property
    def logs(self) -> Path:
        """Folder of the servers' logs."""
        return self.home / "logs"

    @property
    def state(self) -> Path:
        """Folder with the records of the running servers."""
        return self.home / "run"

    @property
    def password_file(self) -> Path:
        """File that holds the password of the UI's admin user."""
        return self.home / "airflow" / "password.json"


def _port(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip() or str(default)
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise PerennialError(
            f"{name} is {text!r}; a port from 1024 to 65535 is needed", f"set or unset {name}"
        )
    return int(text)


def stack() -> Stack:
    """The stack that the environment describes.

    Raises:
        PerennialError: a variable holds something unusable.
    """
    described = Stack(
        home=settings().home,
        airflow_port=_port("PERENNIAL_AIRFLOW_PORT", 8080),
        mlflow_port=_port("PERENNIAL_MLFLOW_PORT", 5000),
        task_port=_port("PERENNIAL_TASK_PORT", 8792),
        log_ports=(_port("PERENNIAL_WORKER_LOG_PORT", 8793), _port("PERENNIAL_TRIGGER_LOG_PORT", 8794)),
        mlflow_host=os.environ.get("PERENNIAL_MLFLOW_HOST", "").strip() or LOOPBACK,
    )
    return replace(described, tracking_uri=_foreign_tracking_uri(described))


def _foreign_tracking_uri(described: Stack) -> str | None:
    """`MLFLOW_TRACKING_URI`, unless it is unset or the address of the stack's own MLflow."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip().rstrip("/")
    own_urls = {
        f"http://{host}:{described.mlflow_port}" for host in ("localhost", LOOPBACK, described.mlflow_host)
    }
    return None if not uri or uri in own_urls else uri


def protect(home: Path) -> None:
    """Create the home and the stack's folders in it, readable by their owner only.

    A home that exists keeps its permissions: it may hold what is none of the stack's business. Its folders do not.

    Raises:
        StorageError: a folder belongs to another user.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    current = settings()
    elsewhere = {"lake", "landing"} - {
        Path(folder).name for folder in (current.lake, current.landing) if Path(folder).parent == home
    }
    for name in FOLDERS:
        folder = home / name
        if name in elsewhere and not folder.exists():
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        except PermissionError as error:
            raise StorageError(
                f"{folder} cannot be made readable by its owner only: {error.strerror}",
                "choose a working folder of your own: make run HOME_FOLDER=/other/folder",
            ) from error


def check_disk(home: Path, needed_mb: int = NEEDED_MB) -> None:
    """Raise StorageError when the disk under `home` has less than `needed_mb` free."""
    home.mkdir(parents=True, exist_ok=True)
    free_mb = shutil.disk_usage(home).free // 1_000_000
    if free_mb < needed_mb:
        raise StorageError(
            f"the disk under {home} has {free_mb} MB free; a run needs {needed_mb} MB",
            "free some space, or put the data elsewhere: make run HOME_FOLDER=/other/disk/perennial",
        )


def _secret(path: Path, make: Callable[[], str] = lambda: secrets.token_hex(64)) -> str:
    """A random secret, created on first use, readable by this user only."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(make())
    return path.read_text().strip()


def _fernet_key() -> str:
    return urlsafe_b64encode(os.urandom(32)).decode()


def environment(config: Stack) -> dict[str, str]:
    """The environment of the servers and of every task: the caller's, with the stack's settings."""
    caches = config.home / "cache"
    local_hosts = dict.fromkeys(("localhost", LOOPBACK, config.mlflow_host))
    stack_variables = {
        # Airflow starts its components as plain "airflow"
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "include"), str(ROOT / "plugins")]),
        "PERENNIAL_HOME": str(config.home),
        "PERENNIAL_LAKE": settings().lake,
        "PERENNIAL_LANDING": settings().landing,
        "PERENNIAL_STACK": str(config.home),
        "MLFLOW_TRACKING_URI": config.tracking_uri or config.mlflow_url.replace("localhost", LOOPBACK),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # spares eight processes
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", ""), *local_hosts])),
        "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy", ""), *local_hosts])),
        # no telemetry, and nothing is written to the user's home folder
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "MPLCONFIGDIR": str(caches / "matplotlib"),
        "XDG_CACHE_HOME": str(caches),
        "XDG_CONFIG_HOME": str(caches / "config"),
        "XDG_DATA_HOME": str(caches / "data"),
        # Threads that spin while they wait take cores from other tasks. Without any spinning, two threads are not
        # faster than one, because XGBoost's threads wait for each other every few microseconds.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
    }
    # AIRFLOW__ settings of the caller's shell are dropped: they could point at another Airflow's database. Connections
    # and variables (AIRFLOW_CONN_, AIRFLOW_VAR_) are passed on.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}
    return inherited | stack_variables | _airflow_variables(config)


def _airflow_variables(config: Stack) -> dict[str, str]:
    """The settings of Airflow."""
    airflow = config.home / "airflow"
    return {
        "AIRFLOW_HOME": str(airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": "16",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        # a broken model.yaml shows as its message, without a traceback
        "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACKS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(config.password_file),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{config.task_port}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": sqlite(airflow / "airflow.db"),
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(config.airflow_port),
        "AIRFLOW__API__BASE_URL": config.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": _secret(airflow / "session.key"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(airflow / "token.key"),
        "AIRFLOW__CORE__FERNET_KEY": _secret(airflow / "fernet.key", _fernet_key),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(config.logs / "airflow"),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(config.log_ports[0]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(config.log_ports[1]),
        # at the log servers, which listen on the loopback address only, logs are fetched by this name
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "perennial.local_stack.config.loopback",
        # Airflow's defaults let the group read and write; they apply whatever the umask
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "0o700",
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "0o600",
        # After a scheduler died, its tasks start again within a minute; by default it may take five more. A task that
        # cannot reach its server, because that is being restarted, goes on for some minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "20",
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "8",
        # tasks start and end without the default polling delays of seconds
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # DAG files are parsed once a minute, which saves most of a core
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        "AIRFLOW__DAG_PROCESSOR__PRINT_STATS_INTERVAL": "300",
    }


def loopback() -> str:
    """The name by which Airflow's components know this machine."""
    return LOOPBACK


def sqlite(file: Path) -> str:
    """SQLAlchemy's URL of a SQLite file; the path is taken literally, spaces included."""
    return f"sqlite:///{file}"


def password(config: Stack) -> str:
    """The password of Airflow's user ``admin``, created on first use, readable by this user only."""
    path = config.password_file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump({"admin": secrets.token_urlsafe(9)}, file)
    return str(json.loads(path.read_text())["admin"])


def login_hint(config: Stack) -> str:
    """How to log in to Airflow, without the password itself: terminals and CI keep what is printed."""
    return f"Log in to Airflow as admin; to read the password: cat {shlex.quote(str(config.password_file))}"
