"""Errors that name the model, the partition, the cause and what to do next.

`TIME_HEALS` sorts them: those for which the same work can succeed later, and those that need a person. It alone decides
which failures of a task are tried again, wherever the step ran.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "FAILED",
    "TEMPORARILY_FAILED",
    "TIME_HEALS",
    "ArtifactError",
    "DataError",
    "DataNotReadyError",
    "DataReplacedError",
    "DatabaseError",
    "DatabaseRequestError",
    "LedgerError",
    "LockHeldError",
    "OutOfMemoryError",
    "PerennialError",
    "RegistryError",
    "RegistryRequestError",
    "SpecError",
    "StepInterruptedError",
    "StorageError",
    "StorageFaultError",
    "UnexpectedError",
    "WorkersUnavailableError",
    "exit_status",
    "time_heals",
]

#: Exit statuses of the command line after an error: of one that needs a person, and of one that time heals (EX_TEMPFAIL
#: of sysexits.h).
FAILED, TEMPORARILY_FAILED = 1, 75


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


class DataReplacedError(DataError):
    """A landed file was replaced while it was read: the feed is delivering it."""


class DataNotReadyError(DataError):
    """What another model publishes is needed, and is not there yet."""


class ArtifactError(PerennialError):
    """A version of a model, one of its files, or the champion does not match the ledger's record."""


class RegistryError(PerennialError):
    """The model registry (MLflow) cannot be reached, or failed."""


class RegistryRequestError(RegistryError):
    """The model registry does not have what was asked for, refuses access, or is not MLflow."""


class LedgerError(PerennialError):
    """The ledger's chain of hashes is broken."""


class LockHeldError(PerennialError):
    """Another run holds a lock that this one needs."""


class StorageError(PerennialError):
    """The lake or the landing area cannot be read or written now: disk full, no connection, a conflict of writers."""


class DatabaseError(PerennialError):
    """A database that a feed is read from, or predictions are written to, does not answer now, or not in time."""


class DatabaseRequestError(DatabaseError):
    """A database refuses the login or the statement, or does not have what it names."""


class StorageFaultError(StorageError):
    """What is stored is damaged or does not fit, its address is wrong, or this user has no access to it."""


class OutOfMemoryError(PerennialError):
    """Work needs more memory than it may use."""


class UnexpectedError(PerennialError):
    """An error that Perennial did not foresee, probably a defect."""


class StepInterruptedError(PerennialError):
    """A step lost a resource while it ran, such as a worker; a retry continues from its checkpoint."""


class WorkersUnavailableError(PerennialError):
    """A trainer and its workers did not connect in time; the log of the missing process shows why."""


#: Whether time heals an error of a class: whether the same work can succeed later although nobody changed anything.
TIME_HEALS: Mapping[type[PerennialError], bool] = {
    PerennialError: False,
    SpecError: False,
    DataError: False,
    DataReplacedError: True,
    DataNotReadyError: True,
    ArtifactError: False,
    RegistryError: True,
    RegistryRequestError: False,
    LedgerError: False,
    LockHeldError: True,
    StorageError: True,
    StorageFaultError: False,
    DatabaseError: True,
    DatabaseRequestError: False,
    OutOfMemoryError: True,  # other processes may have used the memory
    UnexpectedError: True,  # nobody knows its cause
    StepInterruptedError: True,
    WorkersUnavailableError: False,  # it has waited as long as the compute profile allows
}


def time_heals(error: BaseException) -> bool:
    """Whether the work that ended with an error is worth another try later: `TIME_HEALS`, by the closest kind."""
    kinds = (kind for kind in type(error).__mro__ if kind in TIME_HEALS)
    return isinstance(error, PerennialError) and TIME_HEALS[next(kinds)]


def exit_status(error: PerennialError) -> int:
    """The exit status of a command that ended with an error."""
    return TEMPORARILY_FAILED if time_heals(error) else FAILED
