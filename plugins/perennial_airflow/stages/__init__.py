"""One module a stage: its DAG, and the few lines that each of its tasks runs."""
