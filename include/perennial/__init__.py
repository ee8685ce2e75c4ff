"""Perennial keeps tabular machine-learning models fresh: the library that its Airflow DAGs and its command line run."""

__version__ = "0.1.0"
