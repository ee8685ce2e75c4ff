"""The local stack: MLflow and Airflow on one machine, and the sample's loop through them."""
