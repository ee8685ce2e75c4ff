"""Errors that name the model, the partition, the cause and what to do next."""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "DataError",
    "LedgerError",
    "LockHeldError",
    "PerennialError",
    "RegistryError",
    "SpecError",
    "StepInterruptedError",
    "StorageError",
    "WorkersUnavailableError",
]


class PerennialError(Exception):
    """An error with a cause and a remedy.

    Args:
        cause: what is wrong, with the value received and the value expected.
        remedy: what to do next.
        model: name of the model concerned.
        partition: the partition concerned: a date, or a range ``start..end``.
    """

    def __init__(
        self, cause: str, remedy: str, *, model: str | None = None, partition: str | None = None
    ) -> None:
        self.cause, self.remedy, self.model, self.partition = cause, remedy, model, partition
        super().__init__(str(self))

    def __str__(self) -> str:
        where = [f"model {self.model}"] if self.model else []
        where += [f"partition {self.partition}"] if self.partition else []
        return (f"{', '.join(where)}: " if where else "") + f"{self.cause}\n  What to do: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Airflow copies exceptions, and the default protocol cannot copy keyword-only arguments.
        return _rebuild, (type(self), self.cause, self.remedy, self.model, self.partition)


def _rebuild(
    kind: type[PerennialError], cause: str, remedy: str, model: str | None, partition: str | None
) -> PerennialError:
    return kind(cause, remedy, model=model, partition=partition)


class SpecError(PerennialError):
    """A model folder is invalid: the message has one line per problem, with file, line and key."""


class DataError(PerennialError):
    """Data was refused: missing, malformed, or failing an expectation that stops the partition."""


class ArtifactError(PerennialError):
    """A model file does not match its record."""


class RegistryError(PerennialError):
    """The model registry (MLflow) cannot be reached, or does not have the requested version or file."""


class LedgerError(PerennialError):
    """The ledger's chain of hashes is broken."""


class LockHeldError(PerennialError):
    """Another run holds a lock that this one needs; a retry later can succeed."""


class StorageError(PerennialError):
    """The lake or the landing area cannot be read or written: disk full, no permission, no connection."""


class StepInterruptedError(PerennialError):
    """A step lost a resource while it ran, such as a worker; a retry continues from its checkpoint."""


class WorkersUnavailableError(PerennialError):
    """A trainer and its workers did not connect in time; the log of the missing process shows why."""
