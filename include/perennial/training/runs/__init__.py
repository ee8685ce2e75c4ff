"""A training from request to result, what its run in MLflow holds besides the model, and how killed runs are closed."""

__all__ = [
    "liveness",
    "recipe",
    "run_content",
    "signature",
    "system_metrics",
    "train_result",
    "training_inputs",
    "version_facts",
]
