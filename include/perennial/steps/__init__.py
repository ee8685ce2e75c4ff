"""The steps that DAGs, pods and the command line run, and how one is called by name."""
