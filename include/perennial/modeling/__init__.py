"""The trained model, its encoding, metrics and comparison, and the model registry.

XGBoost, scikit-learn, SciPy and MLflow are imported inside the functions that use them. Scoring runs in little memory
and needs none of them but XGBoost: scikit-learn alone takes 100 MiB.
"""

__all__ = [
    "comparison",
    "coverage",
    "encoding",
    "evaluation_charts",
    "grouped_bootstrap",
    "linear_design",
    "metrics",
    "mlflow_api",
    "performance",
    "registry",
    "signing",
    "single_feature",
    "trained_model",
    "training_records",
]
