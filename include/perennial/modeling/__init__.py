"""A trained model and what judges one: encoding, prediction, metrics, paired comparison, the registry."""
