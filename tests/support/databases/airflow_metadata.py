"""The metadata database of this process's Airflow."""

from __future__ import annotations

import functools


@functools.cache
def create() -> None:
    """Create the tables, once: `initdb` takes more than a second even if they exist."""
    from airflow.utils.db import initdb

    initdb()
