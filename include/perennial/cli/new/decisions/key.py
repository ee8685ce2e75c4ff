"""The key of the rows, and rows that are there twice."""

from __future__ import annotations

from collections.abc import Sequence

from perennial.cli.new import inference, templates
from perennial.cli.new.decisions.answers import GivenAnswers
from perennial.cli.new.partitioning import Partitions
from perennial.cli.new.questions import Questions
from perennial.cli.new.samples.event_times import TimeSource
from perennial.cli.new.samples.sample_reader import Sample
from perennial.core.errors import DataError, SpecError

__all__ = ["decide_key", "remark_duplicates"]


def decide_key(
    sample: Sample, partitions: Partitions, sources: list[TimeSource], label: str, personal: list[str],
    answers: GivenAnswers, questions: Questions, remarks: list[str],
) -> tuple[list[str], str | None]:  # fmt: skip
    """The columns that identify a row, and the name of the row number if it is the key."""
    columns = sample.columns
    number = _free_name(templates.ROW_NUMBER, [*columns, *sample.left_out])
    if answers.key:
        chosen = list(answers.key)
    else:
        times = [s.column for s in sources if s.column]
        chosen = inference.suggest_key(sample, partitions, [label, *personal], times) or [number]
        if questions.ask:
            question = f"Key: the columns that identify a row within its partition ({number}: its number in the file)"
            chosen = questions.columns(question, chosen, [*columns, number])
    if chosen in ([templates.ROW_NUMBER], [number]) and number not in columns:
        if not answers.key:
            remarks.append(f"no column identifies a row: the key is {number}, the row's number in its file")
        return [number], number
    chosen = [inference.find_column(k, columns, "--key") for k in chosen]
    if label in chosen:
        raise SpecError(
            f"{label!r} is in the key, and the label", "predict another column, or use another key"
        )
    for column in chosen:
        if columns[column].nulls:
            raise DataError(
                f"{column!r} cannot be in the key: {columns[column].nulls} rows have no value",
                "choose another",
            )
    if not inference.identifies(sample, chosen):
        cause = (
            f"{' and '.join(repr(c) for c in chosen)} {'do' if chosen[1:] else 'does'} not identify a row: "
        )
        raise DataError(cause + "values repeat", f"name more columns with --key, or use --key {number}")
    return chosen, None


def _free_name(name: str, taken: Sequence[str]) -> str:
    folded = {t.casefold() for t in taken}
    while name.casefold() in folded:
        name += "_"
    return name


def remark_duplicates(sample: Sample, partitions: Partitions, numbered: bool, remarks: list[str]) -> None:
    if rows := inference.duplicate_rows(sample, dated=partitions.dated):
        remarks.append(
            f"{rows:,} rows repeat another one in all columns: "
            + (
                "all are kept, each with its number"
                if numbered
                else "the data step puts repeated keys in quarantine"
            )
        )
