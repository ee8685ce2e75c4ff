"""Airflow DAG `perennial.verify`: compares the lake and MLflow with the recorded digests, once a week."""

from __future__ import annotations

from perennial_airflow.execution.verification import dags

globals().update(dags())
