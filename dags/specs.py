"""Shows broken model folders as one import error in Airflow's list of DAGs.

It has no DAG. If a file has an error, Airflow marks all its DAGs as broken. Therefore the error is raised in this
separate file, and the DAGs of all other models are not affected.
"""

from __future__ import annotations

from perennial_airflow.dag_factory.factory import check_models

check_models()
