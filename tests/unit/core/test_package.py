"""The names that the package offers, and when it imports them."""

from __future__ import annotations

import os
import subprocess
import sys

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
