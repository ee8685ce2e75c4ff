"""The features of a model: what they are worth; importance and drift, with histograms of training and latest window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from perennial.charts.histogram_chart import HistogramChart
from perennial.charts.markup import Markup
from perennial.console.views.parts import Parts
from perennial.core.errors import StorageFaultError
from perennial.monitoring.pictures import feature_histograms
from perennial.storage import manifests, object_store

if TYPE_CHECKING:
    from perennial.training.studies.usefulness import Usefulness

#: What the page shows of usefulness, and of each unit of it.
_USEFULNESS = {"metric", "confidence", "sentence", "units", "not_measured"}
_UNIT = {"name", "kind", "loss_without", "loss", "rise", "low", "high", "verdict", "as_of"}
#: Orders of the list, with their titles.
ORDERS = {"importance": "By importance", "drift": "By drift", "name": "By name"}


@dataclass(frozen=True)
class Feature:
    """A column that monitoring compared.

    Attributes:
        column: its name.
        role: ``feature`` or ``prediction``.
        status: ``stable``, ``drifted`` or ``undetermined``.
        reason: of the status.
        psi: PSI of window and reference; None if it could not be computed.
        threshold: PSI above which it has drifted.
        importance: share of the model's total gain.
        attributed_loss: rise of the expected loss that its drift accounts for, as a share; None if it is not known.
        reference_nulls: share of rows without a value in the reference.
        current_nulls: the same in the window.
        kind: ``numeric`` or ``categorical``; empty without bins.
        bins: name of each bin, the last one for rows without a value; empty if nothing was counted.
        reference: number of rows of the reference in each bin.
        current: number of rows of the window in each bin.
    """

    column: str
    role: str
    status: str
    reason: str
    psi: float | None
    threshold: float
    importance: float
    attributed_loss: float | None
    reference_nulls: float
    current_nulls: float | None
    kind: str
    bins: list[str]
    reference: list[int]
    current: list[int]


@dataclass(frozen=True)
class FeaturesPage:
    """The features of a model.

    Attributes:
        model: name of the model.
        as_of: last partition of the window; empty if none has histograms.
        version: the champion whose training rows are the reference.
        sort: one of `ORDERS`.
        features: in that order.
        total: number of compared columns.
        usefulness: what features and feature tables are worth, as `training.studies.usefulness` measured it; None if it
            did not yet.
        problems: parts that cannot be shown, with cause and remedy.
    """

    model: str
    as_of: str = ""
    version: str = ""
    sort: str = "importance"
    features: list[Feature] = field(default_factory=list)
    total: int = 0
    usefulness: Usefulness | None = None
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def compose(model: str, sort: str = "importance", as_of: str = "") -> FeaturesPage:
    """Read the features of the latest window.

    Args:
        model: name of the model.
        sort: one of `ORDERS`; by importance when it is none of them.
        as_of: last partition of the window; found when empty.
    """
    parts = Parts()
    sort = sort if sort in ORDERS else "importance"
    content = parts.read("features", lambda: _read(model, as_of), None)
    if content is None:
        return FeaturesPage(model, sort=sort, problems=parts.problems)
    listed = sorted(content["columns"], key=lambda feature: _rank(feature, sort))
    return FeaturesPage(
        model, content["as_of"], content["version"], sort, listed, content["total"], problems=parts.problems
    )


def compose_with_usefulness(model: str, sort: str) -> FeaturesPage:
    """The same, with what the features are worth."""
    page, parts = compose(model, sort), Parts()
    usefulness = parts.read("usefulness", lambda: _read_usefulness(model), None)
    return replace(page, usefulness=usefulness, problems=[*parts.problems, *page.problems])


def _read_usefulness(model: str) -> Usefulness | None:
    """What the latest training has; without the library of trainings, which takes long to load."""
    manifest = manifests.latest(model, "train")
    known: Usefulness | None = (manifest.result.get("usefulness") or None) if manifest else None
    if known and not ({*known} >= _USEFULNESS and all({*unit} >= _UNIT for unit in known["units"])):
        raise StorageFaultError(
            "the manifest of the latest training is damaged", "train again with --force", model=model
        )
    return known


def _read(model: str, as_of: str) -> dict[str, Any] | None:
    """The content of the latest file; None if there is none."""
    for key in [as_of] if as_of else sorted(manifests.finished(model, "monitor"), reverse=True)[:10]:
        file = feature_histograms.uri(model, key)
        try:
            text = object_store.read_text(file)
        except FileNotFoundError:
            continue
        try:
            content = json.loads(text)
            if content.get("format") != feature_histograms.FORMAT:  # as of a page that could not be drawn
                continue
            names = [f.name for f in fields(Feature)]
            columns = [Feature(**{name: column[name] for name in names}) for column in content["columns"]]
            return {**content, "columns": columns}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageFaultError(
                f"{file} is damaged", "run the monitor step of that partition again with --force", model=model
            ) from error
    return None


def _rank(feature: Feature, sort: str) -> tuple[Any, ...]:
    if sort == "name":
        return (feature.column,)
    if sort == "drift":
        return (feature.status != "drifted", -((feature.psi or 0.0) / (feature.threshold or 1.0)))
    return (feature.role != "feature", -feature.importance, feature.column)


def chart(feature: Feature) -> Markup:
    """Both histograms; empty if nothing was counted."""
    if not feature.bins:
        return Markup("")
    has_nulls = feature.reference[-1] or feature.current[-1]
    end = None if has_nulls else -1
    return HistogramChart(
        feature.column,
        feature.bins[:end],
        feature.reference[:end],
        feature.current[:end],
        ("reference", "latest window"),
    ).figure(height=150)


def most_notable(features: Sequence[Feature], count: int) -> list[Feature]:
    """The drifted features first, then the most important ones."""
    return sorted(features, key=lambda f: (f.status != "drifted", _rank(f, "importance")))[:count]
