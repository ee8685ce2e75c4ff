"""Perennial keeps tabular machine-learning models fresh.

This library is what its Airflow DAGs and its command line run.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perennial.core.errors import PerennialError
    from perennial.spec.catalog import load_model_by_name as load_model
    from perennial.spec.model_spec import ModelSpec
    from perennial.steps.dispatch import run as run_step

__all__ = ["ModelSpec", "PerennialError", "__version__", "load_model", "run_step"]

__version__ = "0.1.0"

# The allocators of DuckDB and of deltalake keep freed memory for ten seconds, each for itself: hundreds of MiB after
# a query of a wide table. They read these variables when the libraries are loaded; without any delay, writing a table
# takes a third longer.
for _name in ("DUCKDB_JE_MALLOC_CONF", "_RJEM_MALLOC_CONF"):
    os.environ.setdefault(_name, "dirty_decay_ms:200,muzzy_decay_ms:0")

# Imported on first use: the modules below import this one for the version.
_EXPORTS = {
    "ModelSpec": ("perennial.spec.model_spec", "ModelSpec"),
    "PerennialError": ("perennial.core.errors", "PerennialError"),
    "load_model": ("perennial.spec.catalog", "load_model_by_name"),
    "run_step": ("perennial.steps.dispatch", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)
