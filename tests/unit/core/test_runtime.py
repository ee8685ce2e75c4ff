"""The library's digest covers what runs in a pod, and nothing else."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core import runtime
from perennial.core.settings import ROOT

LEFT_OUT = sorted(set(runtime.PACKAGE.rglob("*.py")) - set(runtime.pod_files()))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(runtime.PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def run(code: str) -> str:
    """What ``code`` prints in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_left_out_is_a_file_or_a_folder() -> None:
    assert all((runtime.PACKAGE / name).exists() for name in runtime.NOT_IN_PODS)
    assert LEFT_OUT and len(runtime.pod_files()) > len(LEFT_OUT)


def test_no_module_that_runs_in_a_pod_loads_one_left_out() -> None:
    """Every module of the digest together, and what the command line loads before it runs a step."""
    modules = [module_name(path) for path in runtime.pod_files()]
    loaded = run(
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    ).split()
    assert {"perennial.cli.app", "perennial.steps.train", "perennial.training.dask_cluster"} <= set(loaded)
    assert not set(loaded) & {module_name(path) for path in LEFT_OUT}


def test_the_commands_of_a_pod_import_none_left_out() -> None:
    """Imports inside functions, too: those of `worker`, and of every module but the command line; `run` is one."""
    assert "perennial.cli._step_commands" in map(module_name, runtime.pod_files())
    left_out = {module_name(path) for path in LEFT_OUT}
    for path in runtime.pod_files():
        tree: ast.AST = ast.parse(path.read_text())
        if module_name(path) == "perennial.cli._new_command":
            continue  # the command line imports it; pods do not run it
        if module_name(path) == "perennial.cli.app":
            functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
            tree = next(f for f in functions if f.name == "worker")
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            assert not names & left_out, path


def test_only_a_change_of_what_runs_in_a_pod_changes_the_digest(tmp_path: Path) -> None:
    package = tmp_path / "perennial"
    shutil.copytree(runtime.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))

    def digest() -> str:
        runtime.library_digest.cache_clear()
        return runtime.library_digest(package)

    before = digest()
    assert len(before) == 64
    files = ["steps/train.py", "core/dates.py", "cli/app.py", "__init__.py"]
    files += [path.relative_to(runtime.PACKAGE).as_posix() for path in LEFT_OUT]
    for file in files:
        text = (package / file).read_text()
        (package / file).write_text(f"{text}\n# a change\n")
        assert (digest() == before) is (runtime.PACKAGE / file in LEFT_OUT), file
        (package / file).write_text(text)
    assert digest() == before


def test_the_version_names_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.code_version.cache_clear()
    monkeypatch.setenv("PERENNIAL_COMMIT", "0123456789abcdef")
    assert runtime.code_version().endswith("+0123456789ab")
    runtime.code_version.cache_clear()
