"""Monitoring of champions: column drift, signals with a false alarm budget, performance, the report.

At training, `baseline` and `histograms` compute what later partitions are compared with. The monitor step
(`perennial.steps.monitor`) counts a window's columns (`window_counts`), compares them (`drift_verdict`), evaluates the
signals (`signal_evaluation`), measures performance on labelled rows (`performance`), and stores the result (`results`)
with an HTML report (`report`).

numpy, pyarrow and duckdb are imported at the top of the modules. xgboost, scipy, pandas and evidently are imported
inside the functions that use them: they take seconds and hundreds of megabytes, which scoring and training do not need
when they only use a part of this package.
"""

__all__ = [
    "baseline",
    "drift_attribution",
    "drift_verdict",
    "histograms",
    "partition_sample",
    "performance",
    "pictures",
    "report",
    "results",
    "retraining_gain",
    "signal_evaluation",
    "signals",
    "train_serve_skew",
    "window_counts",
]
