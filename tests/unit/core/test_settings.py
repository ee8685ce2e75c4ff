"""Where folders lie by default, in a checkout and for a library that pip installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core import runtime
from perennial.core.errors import PerennialError
from perennial.core.settings import CHECKOUT, ROOT, settings

PRINT = """
from perennial.core.runtime import code_version
from perennial.core.settings import CHECKOUT, settings
from perennial.spec import compute_profile
print(CHECKOUT, settings().home, *settings().models, compute_profile.profile_folders()[-1], code_version(), sep='|')
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of installed packages, with the library in it and no checkout above."""
    folder = tmp_path / "lib" / "python3" / "site-packages"
    shutil.copytree(runtime.PACKAGE, folder / "perennial", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_defaults_lie_in_the_checkout() -> None:
    assert CHECKOUT == ROOT == Path(__file__).resolve().parents[3]
    assert settings().models[0] == ROOT / "include" / "models"


def test_an_installed_library_uses_the_current_folder(installed: Path, tmp_path: Path) -> None:
    here = tmp_path / "work"
    (here / ".git").mkdir(parents=True)
    (here / ".git" / "HEAD").write_text("0123456789abcdef")  # of another project: not the library's commit
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERENNIAL_")}
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        cwd=here,
        env={**environment, "PYTHONPATH": str(installed), "PERENNIAL_MODELS": str(tmp_path / "models")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    checkout, home, first, second, compute, version = done.stdout.strip().split("|")
    assert checkout == "None"
    assert Path(home) == here / ".perennial"
    assert (Path(first), Path(second)) == (here / "include" / "models", tmp_path / "models")
    assert Path(compute) == here / "include" / "compute"
    assert "+" not in version


@pytest.mark.parametrize("value", ["much", "-1", "1.5", "255"])
def test_a_number_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PERENNIAL_MEMORY_MB", value)
    with pytest.raises(PerennialError, match=f"PERENNIAL_MEMORY_MB is '{value}'"):
        settings()
