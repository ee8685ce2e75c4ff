"""What is due and not done, in ranges of partitions, with the command that does each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perennial.core.partitions import PartitionRange
from perennial.lifecycle import backlog
from perennial.lifecycle.backlog import Stage
from perennial.spec.model_spec import ModelSpec


@dataclass(frozen=True)
class OverdueRange:
    """Partitions without a gap between them that one stage has not done.

    Attributes:
        model: name of the model.
        stage: ``published``, ``labelled``, ``scored`` or ``monitored``.
        partitions: the range, as ``start..end``.
        number: of partitions.
        state: ``overdue``, or ``failed before`` from the same inputs.
        command: does it.
    """

    model: str
    stage: Stage
    partitions: str
    number: int
    state: str
    command: str


def ranges(spec: ModelSpec, until: str) -> Iterator[OverdueRange]:
    """The ranges of overdue partitions of each stage.

    Args:
        spec: the model.
        until: last partition that is due.

    Raises:
        StorageError: the lake, or the landing area, cannot be read.
    """
    for stage, of_stage in backlog.of_all_stages(spec, until).items():
        for state, days in (("overdue", of_stage.overdue), ("failed before", of_stage.failed)):
            for span in spec.cadence.contiguous_ranges(days):
                yield OverdueRange(
                    spec.name, stage, span.compact, len(span), state, _command(spec, stage, span)
                )


def _command(spec: ModelSpec, stage: Stage, span: PartitionRange) -> str:
    """The command that does what is overdue."""
    if stage == "monitored":
        command = f"perennial run monitor --model {spec.name} --as-of"
        return (
            f"for day in {' '.join(span.keys())}; do {command} $day; done"
            if len(span) > 1
            else f"{command} {span.start}"
        )
    if stage == "labelled":
        span = span.shift(spec.label_delay)
    step = "score" if stage == "scored" else "data"
    end = "" if span.start == span.end else f" --end {span.end}"
    return f"perennial run {step} --model {spec.name} --start {span.start}{end}"
