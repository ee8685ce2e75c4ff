"""Columns of personal data."""

from __future__ import annotations

from perennial.cli.new import inference
from perennial.cli.new.decisions.answers import GivenAnswers
from perennial.cli.new.questions import Questions
from perennial.cli.new.samples.sample_reader import Sample

__all__ = ["decide_personal"]


def decide_personal(
    sample: Sample, answers: GivenAnswers, label: str, questions: Questions, remarks: list[str]
) -> list[str]:
    """Columns of personal data: those given, or those whose values show it and that the user confirms."""
    columns, rows = sample.columns, sample.row_count
    if answers.personal is not None:
        return [inference.find_column(p, columns, "--personal") for p in answers.personal]
    result = []
    for column in [c for c in columns.values() if c.name != label]:
        likely = inference.looks_personal(column, rows)
        if not (likely or inference.named_personal(column.name)):
            continue
        why = f" Its texts look like {column.personal}." if column.personal else ""
        if questions.confirm(f"Is {column.name} personal data?{why}", default=likely):
            result.append(column.name)
            if not questions.ask:
                like = f"looks like {column.personal}" if column.personal else "looks like it"
                remarks.append(f"{column.name} is declared as personal data ({like}), and is no feature")
        elif not questions.ask:
            remarks.append(
                f"{column.name} may be personal data by its name, and is used; --personal declares it"
            )
    return result
