"""Airflow DAG `perennial.digest`: each morning one message on all models."""

from __future__ import annotations

from perennial_airflow.digest import dags

globals().update(dags())
