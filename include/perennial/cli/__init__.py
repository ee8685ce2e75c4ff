"""The command line: running steps, checking and creating models, checking the environment."""

__all__ = ["app", "check", "doctor", "incidents", "invocation", "new", "spec_reference", "terminal"]
