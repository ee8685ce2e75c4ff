"""What knows Airflow: DAGs from model specs, where a step runs, assets, alerts, reports in the UI."""
