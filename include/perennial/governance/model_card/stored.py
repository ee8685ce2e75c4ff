"""The card of a version as files that are stored with it, and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence

from perennial.charts.markup import Markup
from perennial.governance.model_card import annex_iv, content, document
from perennial.governance.model_card.bill_of_materials import bill_of_materials
from perennial.governance.model_card.content import ModelCard
from perennial.governance.model_card.decisions import decision_sections
from perennial.governance.model_card.document import Section
from perennial.governance.model_card.metadata import metadata_block
from perennial.governance.model_card.sections import card_sections
from perennial.governance.model_card.stored_documents import load_document
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import CARD_FILE
from perennial.spec.model_spec import ModelSpec

MARKDOWN, PAGE = "model_card.md", "model_card.html"
BILL_OF_MATERIALS, ANNEX_IV = "model_bom.cdx.json", "annex_iv.md"


def files(card: ModelCard) -> dict[str, str]:
    """The files that are stored with a version, by name."""
    stored = card.as_dict()
    card = content.parse(stored)  # numbers are rounded as they are when it is read again
    return {
        CARD_FILE: json.dumps(stored, indent=1, ensure_ascii=False),
        MARKDOWN: markdown(card),
        PAGE: html(card),
        BILL_OF_MATERIALS: materials(card),
        ANNEX_IV: annex(card),
    }


def read(version: ModelVersion, present: ModelSpec) -> ModelCard:
    """The card of a version, checked against the ledger's digest.

    Slices and groups by a column that is personal data by now are left out, also if it was not when the version was
    trained; not groups that the spec named then.

    Args:
        version: the version.
        present: the present spec.

    Raises:
        ArtifactError: it has none, or the file is not what was recorded.
    """
    card = content.parse(load_document(version, CARD_FILE, "card"))
    return content.without_columns(card, present.personal_names)


def decided(card: ModelCard) -> list[Section]:
    """What was decided about the version since, for the end of its card."""
    return decision_sections(card.model, card.version, card.run_id)


def markdown(card: ModelCard, more: Sequence[Section] = ()) -> str:
    """The card as Markdown, with the metadata block of the Hugging Face Hub.

    Args:
        card: the card.
        more: sections at its end.
    """
    return metadata_block(card) + document.to_markdown(card.title, [*card_sections(card), *more])


def html(card: ModelCard, more: Sequence[Section] = (), links: Markup = Markup("")) -> str:  # noqa: B008 - immutable
    """The card as a page.

    Args:
        card: the card.
        more: sections at its end.
        links: below its title.
    """
    return document.to_html(card.title, [*card_sections(card), *more], links)


def annex(card: ModelCard, more: Sequence[Section] = ()) -> str:
    """The technical documentation of Annex IV as Markdown."""
    parts = [*annex_iv.annex_sections(card), *more]
    open_points = len(document.gaps(parts))
    note = f"{card.title}. {open_points} points are not known; each is marked as a gap that says what to add where."
    return document.to_markdown(annex_iv.TITLE, [Section(card.title, [document.Paragraph(note)]), *parts])


def materials(card: ModelCard) -> str:
    """The bill of materials as JSON."""
    return json.dumps(bill_of_materials(card), indent=1, ensure_ascii=False)
