"""`model.yaml` as validated, typed objects; compute profiles, and the pods that they describe.

DAG files load every spec when Airflow parses them, so this package imports no heavy libraries.
"""

__all__ = [
    "alerts",
    "catalog",
    "compute_profile",
    "constraints",
    "feature_table",
    "gate",
    "model_spec",
    "pod_manifest",
    "policies",
    "sections",
    "sources",
    "spec_changes",
    "strict_model",
    "text_format",
    "yaml_reader",
]
