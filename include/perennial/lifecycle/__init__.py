"""The lifecycle of a model: what is due, retraining, the champion, promotion, rollback, trials, verification,
and the deletion of feature tables that nothing uses.

`retraining`, `champion` and `promotion` run in light tasks and import no heavy libraries; the other modules use NumPy,
and SciPy is imported inside the function that needs it.
"""

__all__ = [
    "ab_trial",
    "backlog",
    "champion",
    "champion_age",
    "explanation",
    "ledger_anchors",
    "promotion",
    "promotion_approval",
    "retraining",
    "rollback_drill",
    "trial_evaluation",
    "trials",
    "unused_feature_tables",
    "verification",
]
