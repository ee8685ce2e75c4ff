"""The names that the package offers, and when it imports them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core.settings import ROOT


def test_the_package_loads_its_names_on_first_use() -> None:
    code = """
import sys
import perennial
assert "pydantic" not in sys.modules and "perennial.spec" not in sys.modules
from perennial import ModelSpec, PerennialError, load_model, run_step
assert set(perennial.__all__) == {"ModelSpec", "PerennialError", "__version__", "load_model", "run_step"}
assert load_model("digits").name == "digits" and isinstance(load_model("digits"), ModelSpec)
try:
    run_step("bake", load_model("digits"))
except PerennialError as error:
    print(error.cause)
print(hasattr(perennial, "nothing"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["there is no step 'bake'", "False"]


@pytest.mark.parametrize(
    ("library", "variable"),
    [("_duckdb", "DUCKDB_JE_MALLOC_CONF"), ("deltalake._internal", "_RJEM_MALLOC_CONF")],
)
def test_allocators_return_freed_memory_soon(library: str, variable: str) -> None:
    """The package sets the variables before the libraries are loaded; a value from outside stays as it is."""
    code = f"""
import os, sys
import perennial
assert {library!r} not in sys.modules
print(os.environ[{variable!r}])
import {library}
print(sys.modules[{library!r}].__file__)
"""
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "include")}
    inherited = {name: value for name, value in paths.items() if name != variable}
    results = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
        ).stdout.splitlines()
        for env in (inherited, {**inherited, variable: "narenas:1"})
    ]
    assert [result[0] for result in results] == ["dirty_decay_ms:200,muzzy_decay_ms:0", "narenas:1"]
    # the name is the one that this version of the library reads
    assert variable.encode() in Path(results[0][1]).read_bytes()
