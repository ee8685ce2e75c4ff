"""The step that erases the rows of keys from the lake, and from the table of a database that predictions go to."""

from __future__ import annotations

from typing import TypedDict

from perennial.governance import erasure
from perennial.spec.model_spec import ModelSpec
from perennial.steps import publish_predictions


class ErasedRows(TypedDict):
    """What the step removed, and what is left to do.

    Attributes:
        request: name of the request.
        rows: number of rows that were removed, by table.
        files: number of files of older table versions that were deleted.
        reports: number of data docs and profiles that were deleted.
        published_again: partitions of the database's table that were replaced.
        versions: numbers of the versions to train again.
        champion: whether the champion is one of them.
        joining: numbers of the versions of other models to train again, by model.
        landed: landed files that may still hold such rows.
        hidden: records of quarantine that may be of the keys.
        references: reference tables that have such rows.
        other_models: models from whose rows feature tables may compute such rows again, or with the same columns.
        remaining: what else may have such values, and is not searched.
    """

    request: str
    rows: dict[str, int]
    files: int
    reports: int
    published_again: list[str]
    versions: list[str]
    champion: bool
    joining: dict[str, list[str]]
    landed: list[str]
    hidden: int
    references: list[str]
    other_models: list[str]
    remaining: list[str]


def erase(
    spec: ModelSpec, *, request: str, actor: str = "", hidden: bool = False, run_id: str = ""
) -> ErasedRows:
    """Erase the rows of a request: `perennial.governance.erasure.erase`.

    Args:
        spec: the model.
        request: name of the request, which `perennial erase` makes: the keys themselves are no argument.
        actor: who asks for it, for the ledger.
        hidden: also remove the records of quarantine of which is not known whose they are.
        run_id: id of the Airflow run.

    Raises:
        PerennialError: there is no such request, or the model is held for an audit.
        StorageError, DatabaseError: the lake or the database cannot be read or written; repeat it.
    """
    result = erasure.erase(spec, request=request, actor=actor, hidden=hidden)
    replaced, untouched = publish_predictions.replace_written(
        spec, result["partitions"], run_id, emptied=result["emptied"]
    )
    return ErasedRows(
        request=result["request"],
        rows=result["rows"],
        files=result["files"],
        reports=result["reports"],
        published_again=replaced,
        versions=result["versions"],
        champion=result["champion"],
        joining=result["joining"],
        landed=result["landed"],
        hidden=result["hidden"],
        references=result["references"],
        other_models=result["other_models"],
        remaining=[*untouched, *result["remaining"]],
    )
