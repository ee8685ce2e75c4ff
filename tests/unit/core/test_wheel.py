"""What `pip install .` installs: the library, its command, and the plugin that Airflow finds by its entry point."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from perennial.core.runtime import library_digest
from perennial.core.settings import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel in a folder of its own, as pip would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_the_command_and_the_plugin(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info")
    entries = configparser.ConfigParser()
    entries.read(metadata / "entry_points.txt")
    assert dict(entries["console_scripts"]) == {"perennial": "perennial.__main__:run"}
    assert dict(entries["airflow.plugins"]) == {"perennial": "perennial_airflow.plugin:PerennialPlugin"}
    assert (metadata / "licenses" / "LICENSE").is_file()
    assert "class PerennialPlugin" in (installed / "perennial_airflow" / "plugin.py").read_text()


def test_the_installed_library_is_that_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import perennial; from perennial.__main__ import run; print(perennial.__file__); run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "library-digest"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    file, digest = done.stdout.split("\n")[:2]
    assert Path(file).is_relative_to(installed)
    assert digest == library_digest()
