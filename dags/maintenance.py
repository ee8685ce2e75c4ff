"""Airflow DAG `perennial.maintenance`: deletes pods whose task is gone. There where some step runs in pods."""

from __future__ import annotations

from perennial_airflow.maintenance import dags

globals().update(dags())
