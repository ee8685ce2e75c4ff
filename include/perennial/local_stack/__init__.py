"""The local stack: MLflow and Airflow on one machine; `make run` runs the whole loop on the sample.

The rest of the library does not import it; benchmarks and tests use its servers, processes and Airflow client.
"""

__all__ = [
    "airflow_client",
    "components",
    "config",
    "demo",
    "driver",
    "processes",
    "progress",
    "sample",
    "servers",
    "summary",
    "supervisor",
]
