"""`model.yaml` as typed objects, read and checked; compute profiles, and the pods that they describe.

DAG files load every spec when Airflow parses them: this package imports nothing but pydantic and PyYAML.
"""

__all__ = [
    "alerts",
    "catalog",
    "compute_profile",
    "constraints",
    "model_spec",
    "pod_manifest",
    "policies",
    "sections",
    "yaml_reader",
]
