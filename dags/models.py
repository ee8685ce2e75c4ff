"""Airflow DAGs `<model>.data`, `.train`, `.score`, `.monitor` and `.rollback` of every model folder.

What each does, reads and emits is on its own page, made from the model's spec. All are in one file, so that each spec
is read once a parse. A model is added by adding its folder, never by editing this file.
"""

from __future__ import annotations

from perennial_airflow.factory import dags

globals().update(dags())
