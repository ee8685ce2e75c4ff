"""Whether a champion is still well: drift, performance, signals, their baselines, the report."""
