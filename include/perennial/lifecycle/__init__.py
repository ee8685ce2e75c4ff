"""What becomes of versions: the decision to retrain, promotion, rollback, trials, and why it was so."""
