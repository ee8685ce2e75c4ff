"""Airflow DAGs `<model>.data`, `.train`, `.score`, `.monitor` and `.rollback` of every model folder.

Each DAG's page in the UI, made from the model's spec, says what it does, reads and emits. One file for all models, so
that each spec is read once per parse. To add a model, add its folder; this file stays as it is.
"""

from __future__ import annotations

from perennial_airflow.dag_factory.factory import dags

globals().update(dags())
