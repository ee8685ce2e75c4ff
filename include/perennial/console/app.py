"""The web application: its addresses, and who may open them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from perennial.console import (
    _action_pages,
    _figures,
    _loop,
    _model_page,
    access,
    overview,
    rendering,
    report_files,
)
from perennial.console.access import User
from perennial.console.actions import RefusedError
from perennial.console.host import Host, RunningWork
from perennial.console.overview import ModelOverview
from perennial.console.routes import exports, model_parts, version_documents
from perennial.console.time_limit import in_time
from perennial.console.views import features
from perennial.core import unexpected_errors
from perennial.core.errors import PerennialError, SpecError
from perennial.core.partitions import PartitionRange
from perennial.spec.catalog import TABLE_FILE, find_folders
from perennial.storage import pages

log = logging.getLogger("perennial")
#: Pages of a kind that the list of reports has, and features that the page of a model shows.
MAX_LISTED, SHOWN_FEATURES = 400, 6
_STATUS_TITLES = {
    401: "Log in first",
    403: "Not allowed",
    404: "Not here",
    503: "The lake cannot be read",
}


@dataclass(frozen=True)
class Message:
    """A page that only says something.

    Attributes:
        title: in a few words.
        cause: what is wrong.
        remedy: what to do; empty if nothing can be done.
    """

    title: str
    cause: str
    remedy: str = ""


@dataclass(frozen=True)
class ModelsPage:
    """All models that somebody may see.

    Attributes:
        models: after search and filters, in order.
        total: number before them.
        counts: number by state, before them.
        owners: to filter by.
        tags: to filter by.
        running: by model.
        query: search and filters.
        problem: why the lake cannot be read; empty if it can.
        remedy: what to do about it.
    """

    models: list[ModelOverview]
    total: int
    counts: dict[str, int]
    owners: list[str]
    tags: list[str]
    running: dict[str, list[RunningWork]]
    query: dict[str, str]
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class ReportsPage:
    """The stored pages of a model.

    Attributes:
        model: name of the model.
        span: partitions that the listed ones concern; empty for all.
        reports: by kind, the latest first.
        omitted: number of pages of a kind that are not listed.
    """

    model: str
    span: str
    reports: dict[str, list[pages.Page]]
    omitted: dict[str, int]


def create_app(host: Host) -> FastAPI:
    """The application, for one program that it runs in.

    Args:
        host: that program.
    """
    app = FastAPI(title="Perennial console", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.host = host
    app.dependency_overrides[access.current_user] = host.user
    app.get("/")(in_time(_models))
    for path, function in _PAGES.items():
        # First, since the path without an ending fits as well.
        app.get(f"{path}.json")(in_time(function))
        app.get(path)(in_time(function))
    for path, function in _FILES.items():
        app.get(path)(in_time(function))
    app.get("/static/{name}")(_static)
    _action_pages.add_routes(app)
    app.exception_handler(StarletteHTTPException)(_refuse)
    app.exception_handler(RefusedError)(_refuse)
    app.exception_handler(PerennialError)(_explain)
    return app


def _running(request: Request, models: list[str]) -> dict[str, list[RunningWork]]:
    """What is queued or running; nothing where that cannot be known now."""
    try:
        return dict(access.host_of(request).running(models))
    except Exception as error:  # whatever the host's database raises
        log.warning("Runs in progress are not shown: %s", unexpected_errors.origin(error))
        return {}


def _models(request: Request, user: User, q: str = "", state: str = "", owner: str = "", tag: str = "",
            sort: str = "") -> Response:  # fmt: skip
    """All models."""
    content = _models_page(request, user, {"q": q, "state": state, "owner": owner, "tag": tag, "sort": sort})
    sparklines: dict[str, Any] = {
        "performance_sparkline": _figures.performance_sparkline,
        "drift_sparkline": _figures.drift_sparkline,
    }
    return access.page(
        request,
        "models.html",
        content,
        states=overview.STATES,
        age=overview.age_days,
        month=f"{datetime.now(UTC):%Y-%m}",
        **sparklines,
    )


def _models_page(request: Request, user: Any, query: dict[str, str]) -> ModelsPage:
    everything = overview.of_all()
    allowed = access.host_of(request).visible(user, list(everything.models))
    models = [model for name, model in everything.models.items() if name in allowed]
    statuses = [model.status for model in models if model.status]
    return ModelsPage(
        models=overview.sorted_by([m for m in models if _matches(m, query)], query["sort"]),
        total=len(models),
        counts={state: sum(m.state == state for m in models) for state in overview.STATES},
        owners=sorted({status.owner for status in statuses}),
        tags=sorted({tag for status in statuses for tag in status.tags}),
        running=_running(request, [m.name for m in models]),
        query=query,
        problem=everything.problem,
        remedy=everything.remedy,
    )


def _matches(model: ModelOverview, query: dict[str, str]) -> bool:
    """Whether a model fits search and filters."""
    status = model.status
    text = (
        f"{model.name} {status.owner} {status.description} {' '.join(status.tags)}" if status else model.name
    )
    return (
        all(word in text.lower() for word in query["q"].lower().split())
        and query["state"] in ("", model.state)
        and (not query["owner"] or bool(status and status.owner == query["owner"]))
        and (not query["tag"] or bool(status and query["tag"] in status.tags))
    )


def _model(request: Request, model: str, user: User) -> Response:
    """One model."""
    access.authorise(request, model, user)
    host = access.host_of(request)
    content = _model_page.compose(model, host.links(model), _running(request, [model]).get(model, []))
    if content is None:
        raise HTTPException(404, f"There is no model called {model}.")
    if rendering.wants_json(request):
        return access.page(request, "model.html", content)
    return access.page(
        request,
        "model.html",
        content,
        stations=_loop.stations(content),
        charts=_figures.of_model(content, rendering.base_path(request)),
        states=overview.STATES,
        titles=report_files.TITLES,
        offers=_action_pages.offers(request, model, user),
        performs=host.operations is not None,
        notable=[
            (f, features.chart(f)) for f in features.most_notable(content.features.features, SHOWN_FEATURES)
        ],
    )


def _dag(request: Request, dag_id: str, user: User) -> Response:
    """The page of the model that a DAG belongs to."""
    model, _, name = dag_id.partition(".")
    access.authorise(request, model, user)
    if overview.of_model(model) is None:
        if model == "features" and name in find_folders(TABLE_FILE):
            raise HTTPException(
                404,
                f"{name} is a feature table, not a model. What there is of it: perennial features show {name}",
            )
        raise HTTPException(404, f"{dag_id} is not a DAG of one of Perennial's models.")
    return RedirectResponse(f"{rendering.base_path(request)}/models/{model}", 302, rendering.HEADERS)


def _reports(request: Request, model: str, user: User, start: str = "", end: str = "") -> Response:
    """The list of a model's reports; those that concern some partitions where a range is given."""
    access.authorise(request, model, user)
    listed = pages.find(model)
    if start:
        span = PartitionRange.between(start, end or start)
        listed = [page for page in listed if page.concerns(span.start, span.end)]
    kinds: dict[str, list[pages.Page]] = {}
    for stored in listed:
        kinds.setdefault(stored.kind, []).append(stored)
    content = ReportsPage(
        model,
        PartitionRange.between(start, end or start).compact if start else "",
        {kind: of_kind[:MAX_LISTED] for kind, of_kind in kinds.items()},
        {kind: max(len(of_kind) - MAX_LISTED, 0) for kind, of_kind in kinds.items()},
    )
    return access.page(request, "reports.html", content, titles=report_files.TITLES)


def _report(request: Request, model: str, path: str, user: User) -> Response:
    """One file of a model's reports."""
    media_type = report_files.media_type(f"{model}/{path}")
    if media_type is None:
        raise HTTPException(404, "There is no such report.")
    access.authorise(request, model, user)
    try:
        content = report_files.read(f"{model}/{path}")
    except FileNotFoundError:
        raise HTTPException(404, "There is no such report. Was the lake moved or cleaned?") from None
    return Response(content, media_type=media_type, headers=report_files.HEADERS)


def _static(name: str) -> Response:
    """Stylesheet and script, for everybody."""
    if name not in rendering.STATIC:
        raise HTTPException(404, "There is no such file.")
    headers = rendering.HEADERS | {"Cache-Control": "private, max-age=300"}
    return Response(rendering.static_file(name), media_type=rendering.STATIC[name], headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:
    """A refusal as a page, or as JSON."""
    assert isinstance(error, StarletteHTTPException | RefusedError)
    status = error.status_code
    if status == 401 and "text/html" in request.headers.get("accept", ""):
        path = request.url.path.removeprefix(rendering.base_path(request))
        query = f"?{request.url.query}" if request.url.query else ""
        if login := access.host_of(request).login_url(f"{path}{query}"):
            return RedirectResponse(login, 302, rendering.HEADERS)
    message = Message(_STATUS_TITLES.get(status, "This does not work"), str(error.detail))
    return _message(request, message, status)


async def _explain(request: Request, error: Exception) -> Response:
    """An error of the library as a page, or as JSON, with what to do about it."""
    assert isinstance(error, PerennialError)
    status = 404 if isinstance(error, SpecError) and "there is no model" in error.cause else 503
    title = "This model cannot be shown" if isinstance(error, SpecError) else _STATUS_TITLES[503]
    return _message(request, Message(title, error.cause, error.remedy), status)


def _message(request: Request, message: Message, status: int) -> Response:
    return access.page(request, "message.html", message, status=status)


#: Pages, each of which is also JSON with ``.json`` at the end of its path; the more specific path of two comes first.
_PAGES: dict[str, Callable[..., Response]] = {
    "/models": _models,
    "/cost": model_parts.show_cost,
    "/models/{model}/versions/{number}": model_parts.show_version,
    "/models/{model}/versions/{number}/card": version_documents.show_card,
    "/models/{model}/versions/{number}/annex-iv": version_documents.show_annex,
    "/models/{model}/versions/{number}/explanation": version_documents.show_explanation,
    "/models/{model}/compare": model_parts.compare_versions,
    "/models/{model}/features": model_parts.show_features,
    "/models/{model}/ledger": model_parts.show_ledger,
    "/models/{model}/cost": model_parts.show_model_cost,
    "/models/{model}/quarantine": model_parts.show_latest_quarantine,
    "/models/{model}": _model,
    "/reports/{model}": _reports,
}
#: Other addresses: downloads, which come before pages with the same beginning, and files.
_FILES: dict[str, Callable[..., Response]] = {
    "/models/{model}/quarantine/{partition}.csv": exports.export_quarantine,
    "/models/{model}/quarantine/{partition}.json": model_parts.show_quarantine,
    "/models/{model}/quarantine/{partition}": model_parts.show_quarantine,
    "/models/{model}/manifests/{step}/{key}.json": exports.export_manifest,
    "/models/{model}/versions/{number}/card.md": version_documents.export_markdown,
    "/models/{model}/versions/{number}/annex-iv.md": version_documents.export_annex,
    "/models/{model}/versions/{number}/bom.json": version_documents.export_materials,
    "/models/{model}/ledger.csv": exports.export_ledger_csv,
    "/models/{model}/ledger/export.json": exports.export_ledger_json,
    "/dags/{dag_id}": _dag,
    "/reports/{model}/{path:path}": _report,
}
