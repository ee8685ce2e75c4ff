"""The container engine: images of this checkout, and the stack of the compose file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perennial import __version__
from perennial.core.settings import ROOT
from support import servers, toys

DOCKER = os.environ.get("DOCKER", "docker")
COMPOSE = ROOT / "docker" / "compose.yaml"


def docker(*arguments: str, timeout: float = 600, **environ: str) -> str:
    """What the client prints; fails with what it complains of."""
    command = [DOCKER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | environ)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}"
    return done.stdout


def image(name: str) -> str:
    """Full name of an image of this checkout: trainer, trainer-gpu, airflow, mlflow or s3."""
    folder, _, variant = name.partition("-")
    return f"perennial/{folder}:{__version__}{'-' + variant if variant else ''}"


def present() -> set[str]:
    """The engine's images; skips the test where there is no engine."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        pytest.skip("there is no container engine (DOCKER_HOST)")
    return set(docker("images", "--format", "{{.Repository}}:{{.Tag}}").split())


def require(*names: str) -> None:
    """Skip the test where an image of this checkout is missing."""
    missing = {image(name) for name in names} - present()
    if missing:
        pytest.skip(f"no image {', '.join(sorted(missing))} (make images)")


def postgres() -> str:
    """An image of Postgres: the one that ``POSTGRES_IMAGE`` names, or any; skips the test where there is none."""
    images, chosen = present(), os.environ.get("POSTGRES_IMAGE")
    if chosen in images:
        return chosen
    any_image = next(iter(sorted(name for name in images if name.startswith("postgres:"))), None)
    if any_image is None:
        pytest.skip("no image of Postgres (POSTGRES_IMAGE)")
    return any_image


class Stack:
    """The containers of the compose file, under a name of their own and on free ports.

    Attributes:
        name: of the compose project.
        ports: the published ports, by variable.
        env_file: the passwords.
        passwords: its content.
    """

    def __init__(self, folder: Path, *files: Path, **environ: str) -> None:
        self.name = toys.unique("perennial-test").replace("_", "-")
        self.ports = {f"{name}_PORT": str(servers.free_port()) for name in ("AIRFLOW", "MLFLOW", "S3")}
        self.environ = {"TAG": __version__, "POSTGRES_IMAGE": postgres(), **self.ports, **environ}
        subprocess.run(
            [sys.executable, "-I", shutil.copy(ROOT / "docker" / "passwords.py", folder)], check=True
        )
        self.env_file = folder / ".env"
        self.passwords = dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())
        self._files = [f"--file={path}" for path in (COMPOSE, *files)]

    def call(self, *arguments: str) -> str:
        """What ``docker compose`` prints."""
        start = ("compose", "--project-name", self.name, *self._files, "--env-file", str(self.env_file))
        return docker(*start, *arguments, **self.environ)

    def up(self, *services: str) -> None:
        """Start services, or all, and wait until they are healthy."""
        self.call("up", "--detach", "--wait", "--wait-timeout", "500", *services)

    def down(self) -> None:
        """Remove every container, volume and network."""
        self.call("down", "--volumes", "--remove-orphans", "--timeout", "5")
