"""Shows broken model folders as one import error in Airflow's list of DAGs.

It holds no DAG. Airflow marks every DAG of a file that has an error as broken. So the error has a file of its own, and
the DAGs of all other models stay as they are.
"""

from __future__ import annotations

from perennial_airflow.dag_factory.factory import check_models

check_models()
