"""Airflow DAG `perennial.maintenance`: deletes pods whose task is gone. It exists where some step runs in pods."""

from __future__ import annotations

from perennial_airflow.execution.maintenance import dags

globals().update(dags())
