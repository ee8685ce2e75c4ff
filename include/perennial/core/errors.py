"""Errors that name the model, the partition, the cause and what to do next."""

from __future__ import annotations


class PerennialError(Exception):
    """A failure that a person can act upon.

    Args:
        cause: what is wrong, with the value received and what was expected.
        remedy: what to do next.
        model: the model concerned.
        partition: the partition (ISO date, or a range ``start..end``) concerned.
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
        # Exceptions with keyword-only arguments do not survive the default protocol, and Airflow copies exceptions.
        return _rebuild, (type(self), self.cause, self.remedy, self.model, self.partition)


def _rebuild(
    kind: type[PerennialError], cause: str, remedy: str, model: str | None, partition: str | None
) -> PerennialError:
    return kind(cause, remedy, model=model, partition=partition)


class SpecError(PerennialError):
    """A model folder that cannot be used: the message holds one line a problem, with file, line and key."""


class DataError(PerennialError):
    """Rows that were refused: missing, malformed, or breaking an expectation that stops the partition."""


class ArtifactError(PerennialError):
    """A model file that is not what its record says it is."""


class RegistryError(PerennialError):
    """The model registry (MLflow) cannot be reached, or does not hold what was asked for."""


class LedgerError(PerennialError):
    """The ledger's chain of hashes is broken."""


class LockHeldError(PerennialError):
    """Another run holds what this one needs. Trying again later helps."""


class StorageError(PerennialError):
    """The lake or the landing area cannot be read or written: disk full, no permission, no connection."""


class StepInterruptedError(PerennialError):
    """Something outside took away what the step ran on, such as one of its workers. Trying again goes on from there."""


class WorkersUnavailableError(PerennialError):
    """A step's workers, or a worker's trainer, did not come. Why is known where they were started."""
