"""Airflow DAGs `perennial.reproduce` and `perennial.rollback_drill`: try each week what must work one day."""

from __future__ import annotations

from perennial_airflow.execution.drills import dags

globals().update(dags())
