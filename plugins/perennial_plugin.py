"""The only file of this folder that Airflow loads as a plugin; the code is in the package `perennial_airflow`."""

from __future__ import annotations

from perennial_airflow.plugin import PerennialPlugin

__all__ = ["PerennialPlugin"]
