"""The lifecycle of a model's versions: retraining decisions, promotion, rollback, trials.

`retraining` and `promotion` run in light tasks and import no heavy libraries; the other modules use NumPy, and SciPy is
imported inside the function that needs it.
"""

__all__ = ["ab_trial", "explanation", "promotion", "retraining", "trial_evaluation", "trials"]
