"""The version as a bill of materials: CycloneDX 1.7, with the model card of its machine-learning component.

https://cyclonedx.org/docs/1.7/json/
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from perennial import __version__
from perennial.charts.markup import number
from perennial.core.html import printable
from perennial.governance.model_card.content import Dataset, ModelCard
from perennial.governance.model_card.metadata import group_rates
from perennial.modeling.performance import Estimate, Performance
from perennial.modeling.training_records import MODEL_FILE

#: Versions of an environment that are no package.
_NO_PACKAGES = ("library", "Python", "processor", "device", "threads")
#: Namespace of serial numbers, which are the same for the same version.
_NAMESPACE = uuid.UUID("8f4b4bb6-3d0b-4d5b-9a51-6d8a3f5f6c11")
#: Licenses of the Hub's list that are not SPDX identifiers by another case are named.
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "cc-by-4.0": "CC-BY-4.0",
    "cc0-1.0": "CC0-1.0",
    "bsd-3-clause": "BSD-3-Clause",
}


def bill_of_materials(card: ModelCard) -> dict[str, Any]:
    """The document as JSON."""
    libraries = [*_libraries(card)]
    model = _model(card)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{card.model} {card.version} {card.run_id}')}",
        "version": 1,
        "metadata": {
            "timestamp": card.created_at,
            "tools": {
                "components": [{"type": "application", "name": "perennial", "version": __version__}],
            },
            "component": model,
            "properties": _properties({"perennial:owner": card.owner, "perennial:as_of": card.as_of}),
        },
        "components": [*libraries, *(_table(card, d) for d in card.datasets)],
        "dependencies": [
            {"ref": model["bom-ref"], "dependsOn": sorted(c["bom-ref"] for c in libraries)},
        ],
    }


def _model(card: ModelCard) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{card.model}:{card.version}",
        "name": card.model,
        "version": card.version,
        "description": _line(card.description),
        "authors": [{"name": _line(card.owner)}],
        "hashes": [{"alg": "SHA-256", "content": card.digests[MODEL_FILE]}]
        if MODEL_FILE in card.digests
        else [],
        "modelCard": _model_card(card),
        "properties": _properties(
            {
                "perennial:mlflow_run": card.run_id,
                "perennial:spec_digest": card.spec_digest,
                "perennial:code_version": card.code,
                "perennial:gate": "passed" if card.passed else "rejected",
                "perennial:champion_then": card.champion,
                "perennial:previous_version": card.previous,
                **{
                    f"perennial:environment:{n}": card.environment[n]
                    for n in _NO_PACKAGES
                    if n in card.environment
                },
                **{f"perennial:file:{name}": digest for name, digest in card.digests.items()},
            }
        ),
    }
    if stated := card.statements.license:
        license_ = {"id": _SPDX[stated]} if stated in _SPDX else {"name": stated}
        component["licenses"] = [{"license": license_}]
    return {name: value for name, value in component.items() if value not in ([], "")}


def _model_card(card: ModelCard) -> dict[str, Any]:
    families = {
        "trees": ("gradient-boosted trees", "XGBoost gbtree"),
        "linear": ("linear model", "XGBoost gblinear"),
    }
    family, architecture = families.get(card.algorithm, (card.algorithm, card.algorithm))
    parameters = {
        "approach": {"type": "supervised"},
        "task": card.task,
        "architectureFamily": family,
        "modelArchitecture": architecture,
        "datasets": [{"ref": _table_ref(d)} for d in card.datasets],
        "inputs": [{"format": _line(f"{name}: {kind}")} for name, kind in card.inputs.items()][:200],
        "outputs": [{"format": "string" if card.task == "multiclass" else "number"}],
    }
    content = {
        "bom-ref": f"card:{card.model}:{card.version}",
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [*_metrics(card)]},
        "considerations": _considerations(card),
        "properties": _properties(
            {f"perennial:parameter:{n}": value for n, value in card.parameters.items()}
        ),
    }
    return {name: value for name, value in content.items() if value}


def _metrics(card: ModelCard) -> Iterator[dict[str, Any]]:
    measured = card.performance
    for name, value in sorted(card.metrics.items()):
        estimate = measured.metrics.get(name) if measured else None
        yield _metric(name, estimate or value)
    yield from _slices(measured)
    for part, rates in group_rates(card):
        for name, rate in rates.items():
            yield _metric(_line(name), rate) | {"slice": _line(part)}


def _slices(measured: Performance | None) -> Iterator[dict[str, Any]]:
    for part in measured.slices if measured else ():
        for name, estimate in sorted(part.metrics.items()):
            yield _metric(name, estimate) | {"slice": part.name}


def _metric(name: str, value: Estimate | float) -> dict[str, Any]:
    if not isinstance(value, Estimate):
        return {"type": name, "value": f"{value:.6g}"}
    interval = {"lowerBound": f"{value.low:.6g}", "upperBound": f"{value.high:.6g}"}
    return {"type": name, "value": f"{value.value:.6g}", "confidenceInterval": interval}


def _considerations(card: ModelCard) -> dict[str, Any]:
    stated, verdicts = card.statements, card.fairness.verdicts if card.fairness else ()
    content: dict[str, Any] = {
        "users": stated.users,
        "useCases": [*stated.intended_use, *(f"Not for: {use}" for use in stated.out_of_scope)],
        "technicalLimitations": [
            *stated.limitations,
            *card.findings,
            *(_line(v.sentence) for v in verdicts if v.value is None),
        ],
        "performanceTradeoffs": stated.tradeoffs,
        "ethicalConsiderations": [
            {"name": r.risk} | ({"mitigationStrategy": r.mitigation} if r.mitigation else {})
            for r in stated.risks
        ],
        "fairnessAssessments": [
            {
                name: value
                for name, value in (
                    ("groupAtRisk", g.group),
                    ("benefits", g.benefits),
                    ("harms", g.harms),
                    ("mitigationStrategy", g.mitigation),
                )
                if value
            }
            for g in stated.groups
        ]
        + [
            {
                "groupAtRisk": _line(f"{' × '.join(v.columns)} = {v.at_risk or v.lowest}"),
                "harms": _line(v.sentence),
            }
            for v in verdicts
            if v.value is not None and not v.met
        ],
    }
    return {name: value for name, value in content.items() if value}


def _libraries(card: ModelCard) -> Iterator[dict[str, Any]]:
    for name, version in card.environment.items():
        if name not in _NO_PACKAGES:
            address = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}"
            yield {
                "type": "library", "bom-ref": address, "name": name, "version": version, "purl": address,
            }  # fmt: skip


def _table_ref(dataset: Dataset) -> str:
    return f"table:{quote(dataset.name)}:{dataset.version}"


def _table(card: ModelCard, dataset: Dataset) -> dict[str, Any]:
    """A table version that was read, as a component of data."""
    periods = {
        f"perennial:{name}": span for name, span in card.periods.items() if dataset.kind in ("rows", "labels")
    }
    rows = (
        ", ".join(f"{name} {number(count)}" for name, count in card.rows.items())
        if dataset.kind == "rows"
        else ""
    )
    content: dict[str, Any] = {
        "type": "dataset",
        "name": dataset.name,
        "description": f"{dataset.kind}, version {dataset.version}",
        "contents": {
            "properties": _properties({"perennial:digest": dataset.digest, "perennial:rows": rows, **periods})
        },
        "governance": {"owners": [{"contact": {"name": _line(card.owner)}}]},
    }
    if dataset.kind == "rows" and card.personal_columns:
        content["sensitiveData"] = [_line(f"personal data in column {c}") for c in card.personal_columns]
    return {
        "type": "data",
        "bom-ref": _table_ref(dataset),
        "name": dataset.name,
        "version": str(dataset.version),
        "data": [content],
    }


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": _line(name), "value": _line(value)} for name, value in values.items() if value]


def _line(value: str) -> str:
    return printable(" ".join(str(value).split()))
