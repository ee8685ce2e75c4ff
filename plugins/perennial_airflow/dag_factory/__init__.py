"""The DAGs of every model: one per stage, made from the model's spec, with its trigger form and its page in the UI.

`factory` is what the files in dags/ call. Everything here is imported at each parse of a DAG file and at the start of
each task, so nothing heavy is imported at the top of a module.
"""

__all__ = ["assets", "dag_builder", "dag_docs", "factory", "params", "stages", "team_roles"]
