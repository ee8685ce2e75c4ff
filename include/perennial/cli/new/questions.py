"""Ask a person on the keyboard, or use what was given or suggested; show the sample's columns and the decisions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import typer
from rich.text import Text

from perennial.cli import terminal
from perennial.cli.new import inference
from perennial.cli.new.samples.choices import Undecided
from perennial.cli.new.samples.sample_reader import Sample, SampleColumn
from perennial.core.errors import PerennialError, SpecError

__all__ = ["Questions", "show_columns", "show_decisions"]

T = TypeVar("T")
#: Lines above which a table is shown a page at a time.
PAGE_LINES = 60
#: Examples of a column, and the length of each.
EXAMPLES, EXAMPLE_LENGTH = 3, 16
#: Values that a question lists.
LISTED_VALUES = 12


@dataclass(frozen=True)
class Questions:
    """Get an answer: the one that was given as an option, one from the keyboard, or the suggestion.

    Attributes:
        ask: whether there is a person to ask.
        numbered: the columns in the order in which they were shown.
    """

    ask: bool
    numbered: tuple[str, ...] = ()

    def until_valid(self, decide: Callable[[], T], *, given: bool) -> T:
        """A decision, which a person makes again if it does not fit the sample.

        Args:
            decide: asks, and raises an error about what does not fit.
            given: whether the answer was given as an option, which would be the same again.

        Raises:
            PerennialError: nobody is asked, and it does not fit.
        """
        while True:
            try:
                return decide()
            except PerennialError as error:
                if given or not self.ask:
                    raise
                typer.echo(f"  {error.cause}: {error.remedy}.")

    def column(
        self,
        what: str,
        given: str | None,
        suggestion: str | None,
        columns: Sequence[str],
        option: str,
        none: bool = False,
    ) -> str | None:
        """A column, by its name in any case, or by its number in the table that is shown.

        Args:
            what: the question.
            given: what the option says.
            suggestion: what to use otherwise.
            columns: the columns that are allowed.
            option: the option's name.
            none: whether ``none`` is an answer, unless a column has this name.

        Raises:
            SpecError: the given column does not exist; or there is neither an answer nor a suggestion.
        """
        allows_none = none and "none" not in columns
        if given is None and self.ask:
            while True:
                answer = self.text(what, suggestion or ("none" if none else None))
                if allows_none and answer.lower() == "none":
                    return None
                if (column := self._column(answer, columns)) is not None:
                    return column
                typer.echo(f"  {answer!r} is not valid: give a column's name or its number.")
        if given is not None:
            if allows_none and given.lower() == "none":
                return None
            return inference.find_column(given, columns, option)
        if suggestion is None and not none:
            raise SpecError(f"{what}: the sample does not show it", f"give it with {option}")
        return suggestion

    def columns(self, what: str, suggestion: Sequence[str], columns: Sequence[str]) -> list[str]:
        """Ask for several columns, separated by spaces or commas, by their names or numbers."""
        while True:
            answer = self.text(what, " ".join(suggestion))
            if answer == " ".join(suggestion):
                return list(suggestion)
            parts = [answer] if answer in columns else answer.replace(",", " ").split()
            named = [self._column(part, columns) for part in parts]
            if all(named):
                return [name for name in named if name]
            typer.echo(f"  {answer!r} is not valid: give columns' names or their numbers.")

    def _column(self, text: str, columns: Sequence[str]) -> str | None:
        """The column that a person named, or numbered; None if there is none."""
        if text not in columns and text.isdigit() and 1 <= int(text) <= len(self.numbered):
            text = self.numbered[int(text) - 1]
        try:
            return inference.find_column(text, columns, "")
        except SpecError:
            return None

    def choice(
        self, what: str, given: str | None, suggestion: str | None, allowed: Sequence[str], option: str
    ) -> str:
        """One of some values.

        Raises:
            SpecError: the given value is not allowed; or there is neither a value nor a suggestion.
        """
        if given is None and self.ask:
            shown = f" ({', '.join(allowed)})" if len(allowed) <= LISTED_VALUES else ""
            while (answer := self.text(what + shown, suggestion)) not in allowed:
                typer.echo(f"  {answer!r} is not valid.")
            return answer
        value = given if given is not None else suggestion
        if value is None:
            raise SpecError(f"{what}: the sample does not show it", f"give it with {option}")
        if value not in allowed:
            raise SpecError(f"{option} is {value!r}", f"one of: {', '.join(allowed[:LISTED_VALUES])}")
        return value

    def way(self, undecided: Undecided) -> str:
        """The way to read something that is undecided, of which a person sees what comes of each."""
        if not self.ask:
            return undecided.used
        typer.echo(f"{undecided.question[:1].upper()}{undecided.question[1:]}:")
        for way, shown in undecided.previews.items():
            typer.echo(f"  {way}: {shown}")
        question = f"Which ({', '.join(undecided.previews)})"
        return self.text(question, undecided.used, lambda answer: answer in undecided.previews)

    def text(self, what: str, default: str | None, check: Callable[[str], bool] = bool) -> str:
        """A text; the default if nobody is asked."""
        if not self.ask:
            return default or ""
        while True:
            answer = str(typer.prompt(what, default=default)).strip()
            if check(answer):
                return answer
            typer.echo(f"  {answer!r} is not valid.")

    def confirm(self, what: str, default: bool = True) -> bool:
        """Yes or no; the default if nobody is asked."""
        return typer.confirm(what, default=default) if self.ask else default


def show_columns(sample: Sample) -> None:
    """Print the columns of a sample as a table: number, name, type, distinct and missing values, examples."""
    table = terminal.table(
        "", "column", "type", "distinct", "missing", "examples", right=("", "distinct", "missing")
    )
    for i, column in enumerate(sample.columns.values()):
        missing = f"{column.nulls / sample.row_count:.1%}" if column.nulls else ""
        table.add_row(
            str(i + 1),
            Text(column.name),
            column.kind,
            f"{column.distinct:,}",
            missing,
            Text(_examples(sample, column)),
        )
    _print(table, len(sample.columns))


def _examples(sample: Sample, column: SampleColumn) -> str:
    """Some values of a column, unless they may be personal data."""
    if column.personal or inference.named_personal(column.name):
        return "(hidden)"
    if column.values:
        return ", ".join(_short(str(v)) for v in column.values[:EXAMPLES])
    if column.low is not None and column.high is not None:
        return f"{column.low:.6g} to {column.high:.6g}"
    return ""


def _short(text: str) -> str:
    return text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 1] + "…"


def show_decisions(decisions: Iterable[tuple[str, str]], remarks: Iterable[str]) -> None:
    """Print what was decided as a table, and the remarks."""
    table = terminal.table("", "")
    for name, value in decisions:
        table.add_row(Text(name, "bold"), Text(value))
    terminal.console().print(table)
    for line in remarks:
        terminal.console().print(Text(f"  {line}"))


def _print(table: object, lines: int) -> None:
    console = terminal.console()
    if lines > PAGE_LINES and sys.stdout.isatty() and sys.stdin.isatty():
        with console.pager():
            console.print(table)
    else:
        console.print(table)
