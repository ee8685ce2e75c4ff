"""Airflow DAGs `<model>.data`: each night's partition is fetched, validated and published.

One DAG a model folder; what it does, reads and emits is on each DAG's own page, made from the model's spec.
A model is added by adding its folder, never by editing this file.
"""

from __future__ import annotations

from perennial_airflow.factory import dags_of

globals().update(dags_of("data"))
