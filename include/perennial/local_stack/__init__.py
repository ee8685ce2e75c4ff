"""The local stack: MLflow and Airflow on one machine, and `make run`, which runs the loop on the sample.

Nothing in the library imports it; benchmarks and tests use its servers, processes, progress and Airflow client.
"""

__all__ = ["airflow_client", "config", "demo", "driver", "processes", "progress", "servers", "summary"]

__all__ = ["airflow_client", "config", "processes", "progress", "sample", "servers"]
