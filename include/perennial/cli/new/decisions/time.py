"""The time of the events, and how the rows are divided into partitions."""

from __future__ import annotations

from typing import get_args

from perennial.cli.new import inference, partitioning
from perennial.cli.new.decisions.answers import GivenAnswers
from perennial.cli.new.partitioning import Partitions
from perennial.cli.new.questions import Questions
from perennial.cli.new.samples.event_times import TimeSource
from perennial.cli.new.samples.sample_reader import Sample
from perennial.cli.new.samples.time_zones import written_zone
from perennial.core.errors import SpecError
from perennial.core.partitions import DAILY, MAX_PARTITIONS, Cadence, Unit
from perennial.spec.constraints import check_timezone

__all__ = ["decide_event_time", "decide_partitions", "delivery_text"]

UNITS: tuple[Unit, ...] = get_args(Unit)


def decide_partitions(
    sample: Sample, sources: list[TimeSource], label: str, answers: GivenAnswers, questions: Questions,
    remarks: list[str],
) -> tuple[TimeSource | None, Partitions]:  # fmt: skip
    """The time of the events, and how the rows are divided into partitions."""
    usable = [s for s in sources if s.column != label]
    source = _source(sample, usable, answers, questions, remarks)
    if source and source.column:
        source = source.in_zone(sample, _zone(sample, source.column, answers, questions, remarks))
    column = answers.partition_by
    if column is not None:
        column = inference.find_column(column, sample.columns, "--partition-by")
    elif questions.ask and not (answers.at_random or source or sample.names):
        column = questions.column(
            "The rows have no dates. Divide them into partitions by which column, in its order (none: at random)",
            None, None, [c for c in sample.columns if c != label], "--partition-by", none=True,
        )  # fmt: skip
    cadence = None
    if source and not (sample.names or column or answers.at_random):
        cadence = _cadence(sample, source, answers, questions, remarks)
    partitions = partitioning.divide(
        sample,
        source=source,
        column=column,
        count=answers.partitions,
        at_random=answers.at_random,
        cadence=cadence,
    )
    if not sample.names and len(sample.paths) > 1:
        remarks.append(
            f"the {len(sample.paths)} files have no dates in their names: they are read as one table"
        )
    elif sample.names and partitions.by == "names" and not partitions.as_they_are:
        remarks.append("files with the same date in their names are one partition")
    if partitions.cadence.unit != DAILY.unit:
        cadence = partitions.cadence
        starts = f" that begins on {cadence.week_starts.capitalize()}" if cadence.unit == "week" else ""
        reason = f"by its dates, the feed is one of {cadence.unit}s"
        if cadence.unit == "week" and source and source.gap < 7 and answers.every is None:
            reason = f"a range has at most {MAX_PARTITIONS['day']:,} days, and the sample's dates span more"
        remarks.append(f"{reason}: a partition is one {cadence.unit}{starts}")
    if not partitions.dated:
        remarks.append(_how_divided(partitions, source) + " " + delivery_text(partitions))
    return source, partitions


def _source(
    sample: Sample, sources: list[TimeSource], answers: GivenAnswers, questions: Questions, remarks: list[str]
) -> TimeSource | None:
    """The time of the events; None if rows have none."""
    names = [s.text for s in sources]
    if not sources and answers.event_time in (None, "none"):
        if sample.names:
            remarks.append("no column is the time of the event: that of a row is the date of its file")
        return None
    question = f"Event time: the time of a row's event ({', '.join([*names, 'none'])})"
    chosen = questions.column(
        question, answers.event_time, names[0] if names else None, names, "--event-time", none=True
    )
    if chosen is None:
        return None
    if others := [n for n in names if n != chosen and answers.event_time is None]:
        remarks.append(
            f"{chosen} is taken for the time of the event; --event-time names another: {', '.join(others)}"
        )
    return next(s for s in sources if s.text == chosen)


def _zone(
    sample: Sample, column: str, answers: GivenAnswers, questions: Questions, remarks: list[str]
) -> str:
    """The zone of the days: that of the time, where it is written with one."""
    if answers.timezone is not None:
        try:
            return check_timezone(answers.timezone)
        except ValueError as error:
            raise SpecError(f"--timezone is {answers.timezone!r}: {error}", "correct the name") from None
    if sample.columns[column].kind != "timestamp" or (zone := written_zone(sample, column)) == "UTC":
        return "UTC"
    if not questions.ask:
        remarks.append(
            f"the times of {column} are written with the offsets of {zone}: data.timezone is {zone}; --timezone names "
            "another one"
        )
    return questions.text("Time zone whose days partitions are, such as UTC", zone, check=_is_zone)


def _is_zone(text: str) -> bool:
    try:
        return bool(check_timezone(text))
    except ValueError:
        return False


def _cadence(
    sample: Sample, source: TimeSource, answers: GivenAnswers, questions: Questions, remarks: list[str]
) -> Cadence | None:
    """How long a partition is; None if the events are too far apart for partitions of their own."""
    suggested = partitioning.suggest_cadence(sample, source)
    unit = answers.every
    hourly = _is_hourly(sample, source)
    if unit is None and suggested and (suggested.unit != "day" or hourly):
        chosen = questions.choice("Length of a partition", None, suggested.unit, UNITS, "--every")
        unit = next(u for u in UNITS if u == chosen)
        if not questions.ask and hourly and unit == "day":
            remarks.append(
                "there is an event in each hour, and a partition is one day; --every hour makes it one hour"
            )
    if unit is None or (suggested and unit == suggested.unit):
        return suggested
    return partitioning.cadence_of(sample, source, unit)


def _is_hourly(sample: Sample, source: TimeSource) -> bool:
    """Whether almost all hours of the days have an event, and all events are on the hour."""
    ((minutes,),) = sample.query(
        f"SELECT count(DISTINCT (minute({source.sql}), second({source.sql}))) FROM __rows"
    )
    count, share = partitioning.hours(sample, source)
    return bool(minutes == 1 and count > source.days and share >= partitioning.HOURLY_SHARE)


def _how_divided(partitions: Partitions, source: TimeSource | None) -> str:
    count, days = len(partitions.counts), list(partitions.counts)
    ending = f"{count} partitions, dated {days[0]} to {days[-1]}, for a first model:"
    if partitions.by == "random":
        return f"rows without dates were divided at random into {ending}"
    if source and source.text == partitions.column:
        rows = f"rows of {source.first} to {source.last} ({partitions.column})"
        return f"{rows} were divided in their order into {ending}"
    return f"rows were divided in the order of {partitions.column} into {ending}"


def delivery_text(partitions: Partitions) -> str:
    then = partitions.cadence.shift(max(partitions.counts), 1)
    return f"the dates are not those of the events. From {then} on, deliver one file a day with the rows of that day."


def decide_event_time(
    sample: Sample, source: TimeSource | None, partitions: Partitions, personal: list[str], remarks: list[str]
) -> str | None:
    """The column that the spec declares as the event time, if the data step would accept its values."""
    if source is None or source.column is None:
        return None
    if source.column in personal:
        raise SpecError(
            f"{source.column!r} is personal data", "choose another event time, or --event-time none"
        )
    rows = partitioning.untimely(sample, partitions, source)
    if not rows:
        return source.column
    share = rows / sample.row_count
    first = partitions.counts[min(partitions.counts)]
    why = f"{rows:,} of {sample.row_count:,} rows have no {source.column}, or one later than their partition"
    if share <= partitioning.UNTIMELY_SHARE and rows <= first * partitioning.UNTIMELY_SHARE * 5:
        remarks.append(f"{why}: they go to quarantine")
        return source.column
    remarks.append(f"{why}: the spec declares no event time")
    return None
