"""The command line: running steps, checking and creating models, checking the environment."""

__all__ = [
    "app",
    "check",
    "console",
    "doctor",
    "features",
    "governance",
    "incidents",
    "invocation",
    "missing",
    "new",
    "new_generation",
    "predictions",
    "quarantine",
    "spec_reference",
    "status",
    "terminal",
]
