"""Which failures of a task Airflow tries again: those that time heals, and no others.

The library sorts its errors (`errors.TIME_HEALS`). Every operator of ours raises them through `translated`: an error
that needs a person fails the task without retries, so that it is told at once and blocks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from perennial.core import unexpected_errors
from perennial.core.errors import PerennialError, time_heals


@contextmanager
def translated(task_id: str, *, model: str | None = None, hide: bool = True) -> Iterator[None]:
    """Raise what fails in the block as Airflow's error for it.

    The log then ends with the message (model, partition, cause and what to do), not with a stack trace.

    Args:
        task_id: name of the task.
        model: name of the model, for errors that do not name it.
        hide: quote nothing of a library's text, because it may hold personal values.

    Raises:
        AirflowFailException: what failed needs a person; the task is not tried again.
        AirflowException: time may heal it; or the task is skipped, or waits.
    """
    try:
        yield
    except AirflowException:  # a task that is skipped, or waits
        raise
    except Exception as failure:
        error = unexpected_errors.translate(failure, f"task {task_id}", hide=hide, model=model)
        error.model = error.model or model
        raise airflow_error([error]) from None


def airflow_error(errors: Iterable[PerennialError], prefix: str = "") -> AirflowException:
    """Airflow's error for some errors: the task is tried again if time may heal one of them.

    Args:
        errors: what failed.
        prefix: begins the message.
    """
    failures = list(errors)
    kind = AirflowException if any(map(time_heals, failures)) else AirflowFailException
    return kind(prefix + "\n".join(map(str, failures)))
