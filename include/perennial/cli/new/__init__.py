"""`perennial new`: a model's folder from a sample file."""
