"""`perennial check`: everything about a model folder that can be found wrong before it runs."""
