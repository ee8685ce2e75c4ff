"""Pages about parts of a model, each as HTML and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from perennial.console import access, overview, rendering
from perennial.console.access import User
from perennial.console.views import comparison, cost, features, ledger_records, version
from perennial.console.views.version import VersionPage
from perennial.status import quarantine_rows
from perennial.status.quarantine_rows import Quarantine


@dataclass(frozen=True)
class QuarantinePage:
    """The quarantine of a partition.

    Attributes:
        model: name of the model.
        quarantine: rows and reasons.
        partitions: those that have quarantined rows, in order.
        earlier: the one before it; empty if there is none.
        later: the one after it.
        hidden: columns of personal data.
    """

    model: str
    quarantine: Quarantine
    partitions: list[str]
    earlier: str = ""
    later: str = ""
    hidden: list[str] = field(default_factory=list)


def show_version(request: Request, model: str, number: str, user: User) -> Response:
    """One version."""
    access.authorise(request, model, user)
    content = _version(request, model, number)
    return access.page(
        request,
        "version.html",
        content,
        slice_figures=version.slice_figures(model, content.held_out),
        fairness_figures=version.fairness_figures(content.fairness),
    )


def _version(request: Request, model: str, number: str) -> VersionPage:
    base, has_runs = rendering.base_path(request), access.host_of(request).operations is not None
    content = version.compose(model, number, base, has_runs=has_runs) if number.isdigit() else None
    if content is None:
        raise HTTPException(404, f"The ledger has no training of version {number} of {model}.")
    return content


def compare_versions(request: Request, model: str, user: User, a: str = "", b: str = "") -> Response:
    """Two versions side by side; the latest two when none is named."""
    access.authorise(request, model, user)
    if not (a and b):
        a, b = _default_versions(model, a)
    content = comparison.compose(_version(request, model, a), _version(request, model, b))
    sections: dict[str, list[comparison.Row]] = {}
    for row in content.rows:
        sections.setdefault(row.section, []).append(row)
    return access.page(request, "compare.html", content, sections=sections)


def _default_versions(model: str, first: str) -> tuple[str, str]:
    """The champion, or the given version, and the latest of the others."""
    trained = version.numbers(model)
    champion = version.champion_of(model)
    first = first or (champion if champion in trained else "") or next(iter(trained), "")
    others = [number for number in trained if number != first]
    if not first or not others:
        raise HTTPException(404, f"{model} has no two versions that could be compared.")
    return first, others[0]


def show_features(request: Request, model: str, user: User, sort: str = "importance") -> Response:
    """The features of a model."""
    access.authorise(request, model, user)
    return access.page(
        request,
        "features.html",
        features.compose_with_usefulness(model, sort),
        orders=features.ORDERS,
        chart=features.chart,
    )


def show_ledger(request: Request, model: str, user: User, kind: str = "", before: int = 0) -> Response:
    """The ledger of a model."""
    access.authorise(request, model, user)
    return access.page(request, "ledger.html", ledger_records.compose(model, kind, before))


def show_quarantine(request: Request, model: str, partition: str, user: User) -> Response:
    """The quarantine of a partition."""
    access.authorise(request, model, user)
    spec = overview.load_spec(model)
    content = quarantine_rows.read(spec, partition)
    keys = quarantine_rows.partitions(spec)
    page = QuarantinePage(
        model,
        content,
        keys,
        earlier=max((key for key in keys if key < partition), default=""),
        later=min((key for key in keys if key > partition), default=""),
        hidden=spec.personal_columns,
    )
    return access.page(request, "quarantine.html", page)


def show_latest_quarantine(request: Request, model: str, user: User) -> Response:
    """The quarantine of the latest partition that has one."""
    access.authorise(request, model, user)
    keys = quarantine_rows.partitions(overview.load_spec(model))
    if not keys:
        raise HTTPException(404, f"{model} has nothing in quarantine.")
    suffix = ".json" if rendering.wants_json(request) else ""
    address = f"{rendering.base_path(request)}/models/{model}/quarantine/{keys[-1]}{suffix}"
    return RedirectResponse(address, 302, rendering.HEADERS)


def show_model_cost(request: Request, model: str, user: User) -> Response:
    """What a model's steps took."""
    access.authorise(request, model, user)
    content = cost.of_model(model)
    if content is None:
        raise HTTPException(404, f"There is no model called {model}.")
    return access.page(request, "model_cost.html", content)


def show_cost(request: Request, user: User, month: str = "") -> Response:
    """What the steps of all models took."""
    everything = overview.of_all()
    allowed = access.host_of(request).visible(user, list(everything.models))
    models = [model for name, model in everything.models.items() if name in allowed]
    content = cost.of_all(models, month, everything.problem, everything.remedy)
    return access.page(request, "cost.html", content)
