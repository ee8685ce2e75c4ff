"""The sample: real flights and digits, landed as nightly files, and the plan of the demonstration."""

__all__ = ["landing", "plan"]
