"""Which version serves and when another one is trained: retraining decisions, promotion, rollback, trials.

`retraining` and `promotion` run in light tasks and import nothing heavy; the other modules compute with NumPy, and
SciPy is imported inside the function that needs it.
"""

__all__ = ["ab_trial", "explanation", "promotion", "retraining", "trial_evaluation", "trials"]
