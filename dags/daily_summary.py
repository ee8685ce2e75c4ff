"""Airflow DAG `perennial.daily_summary`: each morning one message on all models."""

from __future__ import annotations

from perennial_airflow.alerting.daily_summary import dags

globals().update(dags())
