"""The documents of a version: its card, the technical documentation of Annex IV, and what it does in general."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response

from perennial.charts.markup import Markup, element, join, text
from perennial.console import access, overview, rendering, time_limit
from perennial.console.access import User
from perennial.governance import model_explanation
from perennial.governance.model_card import annex_iv, document, stored
from perennial.governance.model_card.content import ModelCard
from perennial.governance.model_card.sections import card_sections
from perennial.modeling import training_records
from perennial.modeling.registry import ModelVersion
from perennial.spec.model_spec import ModelSpec

Part = TypeVar("Part")


@dataclass(frozen=True)
class DocumentPage:
    """A document about a version.

    Attributes:
        model: name of the model.
        version: number of the version.
        title: of the document.
        content: what it says, as JSON.
    """

    model: str
    version: str
    title: str
    content: Any


def show_card(request: Request, model: str, number: str, user: User) -> Response:
    """The card of a version, and what was decided about it since."""
    card = _card(request, model, number, user)
    body = document.html_sections([*card_sections(card), *stored.decided(card)])
    return _page(request, DocumentPage(model, number, "Model card", card.as_dict()), body)


def show_annex(request: Request, model: str, number: str, user: User) -> Response:
    """The technical documentation of Annex IV of the EU AI Act."""
    card = _card(request, model, number, user)
    body = document.html_sections([*annex_iv.annex_sections(card), *stored.decided(card)])
    return _page(request, DocumentPage(model, number, annex_iv.TITLE, card.as_dict()), body)


def show_explanation(request: Request, model: str, number: str, user: User) -> Response:
    """What each feature adds to the raw scores of a version."""
    explanation = _read(request, model, number, user, model_explanation.read)
    body = join(
        (
            *(element("p", text(sentence)) for sentence in model_explanation.introduction(explanation)),
            element("h2", text("Importance")),
            element("div", model_explanation.importance_figure(explanation), class_="charts"),
            element("h2", text("By value")),
            element("div", *model_explanation.dependence_figures(explanation), class_="charts of-slices"),
            element("h2", text("All features")),
            element("div", model_explanation.importance_table(explanation), class_="wide"),
        )
    )
    return _page(request, DocumentPage(model, number, "What it does", explanation.as_dict()), body)


def export_markdown(request: Request, model: str, number: str, user: User) -> Response:
    """The card as Markdown, with the metadata of the Hugging Face Hub."""
    card = _card(request, model, number, user)
    text_ = stored.markdown(card, stored.decided(card))
    return _file(f"{model}-{number}-card.md", text_, "text/markdown; charset=utf-8")


def export_annex(request: Request, model: str, number: str, user: User) -> Response:
    """The technical documentation of Annex IV as Markdown."""
    card = _card(request, model, number, user)
    text_ = stored.annex(card, stored.decided(card))
    return _file(f"{model}-{number}-annex-iv.md", text_, "text/markdown; charset=utf-8")


def export_materials(request: Request, model: str, number: str, user: User) -> Response:
    """The bill of materials, CycloneDX."""
    card = _card(request, model, number, user)
    return _file(f"{model}-{number}.cdx.json", stored.materials(card), "application/vnd.cyclonedx+json")


def _card(request: Request, model: str, number: str, user: Any) -> ModelCard:
    return _read(request, model, number, user, stored.read)


def _read(
    request: Request, model: str, number: str, user: Any, read: Callable[[ModelVersion, ModelSpec], Part]
) -> Part:
    """A document of a version, if the user may see the model."""
    access.authorise(request, model, user)
    records = [r for r in training_records.all_records(model) if r.version == number]
    if not records:
        raise HTTPException(404, f"The ledger has no training of version {number} of {model}.")
    record = records[-1]
    version = ModelVersion(model, number, record.run_id, record.model_id, record.tags)
    spec = overview.load_spec(model)
    return time_limit.within(
        time_limit.MLFLOW_SECONDS, "MLflow, which has the documents of versions,", lambda: read(version, spec)
    )


def _page(request: Request, content: DocumentPage, body: Markup) -> Response:
    return access.page(request, "version_document.html", content, body=body)


def _file(name: str, content: str, media_type: str) -> Response:
    headers = rendering.HEADERS | {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, 200, headers, media_type)
