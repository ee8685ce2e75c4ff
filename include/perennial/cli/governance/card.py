"""The command ``perennial card``: the card of a version, for people and for machines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["CardFormat", "card"]


class CardFormat(StrEnum):
    """What the card is written as."""

    MD = "md"
    HTML = "html"
    BOM = "bom"
    ANNEX_IV = "annex-iv"
    EXPLANATION = "explanation"


def card(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Argument(help="Number of the version; default: the champion.")] = "",
    form: Annotated[
        CardFormat,
        typer.Option(
            "--format", "-f",
            help="md: Markdown with the metadata of the Hugging Face Hub; html: a page; bom: CycloneDX 1.7, JSON; "
            "annex-iv: technical documentation of the EU AI Act, Markdown; explanation: what the model does, a page.",
        ),
    ] = CardFormat.MD,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of printing.")
    ] = None,
) -> None:  # fmt: skip
    """Print the card of a version: what is known about it, what was decided since, and what is not known."""
    from perennial.core.errors import PerennialError

    text = _render(model, version, form)
    if output is None:
        print(text, end="")  # noqa: T201
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise PerennialError(f"{output} cannot be written: {error.strerror}", "name another file") from error


def _render(model: str, number: str, form: CardFormat) -> str:
    """The card, or the explanation, of a version.

    Raises:
        DataError: there is no champion, or no such version.
        ArtifactError: the version has none, or the file is not what was recorded.
    """
    from perennial.governance import model_explanation, reproduction
    from perennial.governance.model_card import stored
    from perennial.spec import catalog

    spec = catalog.load_model_by_name(model)
    version = reproduction.find_version(spec, number)
    if form is CardFormat.EXPLANATION:
        explanation = model_explanation.read(version, spec)
        return model_explanation.to_html(f"{model}, version {version.version}", explanation)
    content = stored.read(version, spec)
    if form is CardFormat.BOM:
        return stored.materials(content) + "\n"
    decided = stored.decided(content)
    if form is CardFormat.HTML:
        return stored.html(content, decided)
    return stored.markdown(content, decided) if form is CardFormat.MD else stored.annex(content, decided)
