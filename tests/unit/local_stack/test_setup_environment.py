"""Making the environment: what can go wrong is told with what to do."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

from perennial.core.settings import ROOT

SCRIPT = ROOT / "tools" / "setup_environment.py"


@pytest.fixture
def environment() -> ModuleType:
    """The script as a module; it is not imported from its package in real life either."""
    spec = importlib.util.spec_from_file_location("environment_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 14)])
def test_an_unsuitable_python_is_told_with_the_knob(
    environment: ModuleType, version: tuple[int, int]
) -> None:
    with pytest.raises(environment.SetupError, match=r"3\.11 to 3\.13") as error:
        environment.check_python(version)
    assert "make run PYTHON=" in str(error.value)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_suitable_pythons(environment: ModuleType, version: tuple[int, int]) -> None:
    environment.check_python(version)


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_make_tells_of_a_python_that_does_not_run(python: str) -> None:
    done = subprocess.run(["make", "setup", f"PYTHON={python}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "make run PYTHON=/path/to/python3.12" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_told_before_anything_is_downloaded(environment: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(environment.SetupError, match="VENV="):
        environment.check_disk(tmp_path, needed_mb=10**12)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("error: No space left on device (os error 28)", "disk is full"),
        (
            "Failed to fetch: `https://index/simple/duckdb/`\n dns error: failed to lookup",
            "index cannot be reached",
        ),
        (
            "ERROR: Could not find a version that satisfies uv==0.13.8 (from versions: none)",
            "index cannot be reached",
        ),
        ("tcp connect error: Connection refused", "index cannot be reached"),
        ("error: Hash mismatch for duckdb==2.0.0", "make lock"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "make lock"),
        ("something else", "last lines are above"),
    ],
)
def test_what_an_installer_says_is_explained(environment: ModuleType, output: str, told: str) -> None:
    assert told in environment.cause_of(output)


def test_the_users_pip_settings_reach_uv(environment: ModuleType) -> None:
    listed = (
        ":env:.extra-index-url='https://b/simple'\nglobal.cert='/etc/ca.pem'\nglobal.extra-index-url='https://a/simple'\n"
        "global.find-links='/one /two'\nglobal.index-url='https://own/simple'\nglobal.timeout='60'\nnonsense\n"
    )
    assert environment.uv_settings(listed, {}) == {
        "UV_DEFAULT_INDEX": "https://own/simple",
        "UV_INDEX": "https://b/simple",
        "UV_FIND_LINKS": "/one,/two",
        "SSL_CERT_FILE": "/etc/ca.pem",
    }
    assert "UV_DEFAULT_INDEX" not in environment.uv_settings(listed, {"UV_DEFAULT_INDEX": "https://mine"})


def test_uv_itself_is_pinned_with_hashes(environment: ModuleType) -> None:
    lines = environment.pinned_lines(ROOT / "requirements.txt", "uv").splitlines()
    assert lines[0].startswith("uv==") and len(lines) > 1
    assert all("--hash=sha256:" in line for line in lines[1:])
    with pytest.raises(environment.SetupError, match="make lock"):
        environment.pinned_lines(ROOT / "requirements.txt", "no-such-package")


def test_an_environment_is_current_only_for_its_lock_and_interpreter(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    lock = tmp_path / "requirements.txt"
    lock.write_text("a==1\n")
    place = tmp_path / "an environment"
    assert not environment.is_current(place, lock)
    venv.create(place, symlinks=True)
    noted = environment.stamp_file(place, lock)
    noted.write_text(json.dumps({"digest": environment.stamp(lock)}))
    assert environment.is_current(place, lock)
    lock.write_text("a==2\n")
    assert not environment.is_current(place, lock)
    noted.write_text("damaged")
    assert not environment.is_current(place, lock)


def test_a_folder_that_is_no_environment_is_not_emptied(environment: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(environment.SetupError, match="no virtual environment"):
        environment.make_venv(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_second_call_is_instant() -> None:
    command = [sys.executable, "-I", str(SCRIPT), "--venv", str(Path(sys.prefix))]
    if not (Path(sys.prefix) / "installed-requirements.json").exists():
        pytest.skip("these tests do not run in an environment that make made")
    done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    assert (done.returncode, done.stderr) == (0, "")


def test_locks_name_no_index_and_no_folder() -> None:
    for lock in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"):
        text = lock.read_text()
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert not any(
            word in line for line in lines for word in ("http://", "https://", "file:", "--index", "--find")
        )
        pins = [line for line in lines if "==" in line and not line.startswith(" ")]
        assert len(pins) > 50
        assert text.count("--hash=sha256:") >= len(pins)


def test_no_lock_has_what_makes_each_import_of_airflow_slow() -> None:
    """`tests/overrides.txt` leaves it out."""
    for lock in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"):
        assert not re.search("^(rfc3987-syntax|lark)==", lock.read_text(), re.MULTILINE), lock
