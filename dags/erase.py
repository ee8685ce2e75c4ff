"""Airflow DAG `perennial.erase`: erases the rows of keys from all tables of a model, by hand only."""

from __future__ import annotations

from perennial_airflow.execution.erasure import dags

globals().update(dags())
