"""Airflow DAG `perennial.retention`: deletes each day what is older than the models' specs keep."""

from __future__ import annotations

from perennial_airflow.execution.retention import dags

globals().update(dags())
