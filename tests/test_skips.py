"""A skip that is not on the list fails where ``--strict-skips`` is set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import skips

SKIPPING = """
import pytest

@pytest.fixture
def missing():
    pytest.skip("there is no engine")

def test_by_a_fixture(missing): ...

@pytest.mark.skipif(True, reason="no browser")
def test_by_a_mark(): ...

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert False

def test_passes(): ...
"""


WHOLE_FILE = """
import pytest

pytest.importorskip("there_is_no_such_module")
"""


def outcome(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """Exit status and output of pytest, on a file of tests."""
    (folder / "test_skipping.py").write_text(text)
    own = ("-p", "skips", "-p", "no:cacheprovider", "--rootdir", ".", *options)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", *own]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environ)
    return done.returncode, done.stdout


def test_a_skip_fails_unless_it_is_allowed(tmp_path: Path) -> None:
    assert outcome(tmp_path, SKIPPING)[0] == 0
    status, printed = outcome(tmp_path, SKIPPING, "--strict-skips")
    assert status == 1, printed
    for test, reason in (("test_by_a_fixture", "there is no engine"), ("test_by_a_mark", "no browser")):
        assert f"::{test} was skipped, and allowed_skips.txt does not allow it: {reason}" in printed
    assert "1 passed" in printed and "1 xfailed" in printed


def test_a_file_that_skips_as_a_whole_fails_too(tmp_path: Path) -> None:
    status, printed = outcome(tmp_path, WHOLE_FILE, "--strict-skips")
    assert status == 2, printed
    assert "test_skipping.py was skipped, and allowed_skips.txt does not allow it" in printed


@pytest.mark.parametrize(
    ("test", "reason", "expected"),
    [
        ("tests/a.py::test_b", "no root", True),
        ("tests/a.py::test_b[1]", "no root", True),
        ("tests/a.py::test_b", "no engine", False),
        ("tests/a.py::test_c", "no root", False),
    ],
)
def test_the_list_names_test_and_reason(test: str, reason: str, expected: bool) -> None:
    assert skips.allowed(["# why", "", "tests/a.py::test_b: no root"], test, reason) is expected


def test_the_list_is_short_and_names_tests_that_are_there() -> None:
    lines = [line for line in skips.ALLOWED.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert len(lines) <= 8
    root = Path(__file__).parents[1]
    for line in lines:
        file, _, name = line.partition(": ")[0].partition("::")
        text = (root / file).read_text("utf-8")
        assert f"def {name}" in text
        assert line.partition(": ")[2] in text
