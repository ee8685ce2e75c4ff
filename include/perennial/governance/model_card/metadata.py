"""The metadata block of a model card, as the Hugging Face Hub reads it.

https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from perennial.governance.model_card.content import ModelCard
from perennial.modeling.performance import Estimate
from perennial.spec.constraints import metric_in_words

#: The Hub's name of a task; it has none for a ranking of tables' rows.
_PIPELINES = {
    "binary": "tabular-classification",
    "multiclass": "tabular-classification",
    "regression": "tabular-regression",
}


def metadata_block(card: ModelCard) -> str:
    """The block with its marks, for the beginning of the Markdown file."""
    content: dict[str, Any] = {
        "license": card.statements.license,
        "library_name": "xgboost",
        "pipeline_tag": _PIPELINES.get(card.task),
        "tags": ["tabular", card.task, card.algorithm, "perennial"],
        "datasets": [d.name for d in card.datasets],
        "metrics": sorted(card.metrics),
        "model-index": [{"name": card.model, "results": _results(card)}],
    }
    known = {name: value for name, value in content.items() if value}
    return f"---\n{yaml.safe_dump(known, allow_unicode=True, sort_keys=False, width=110)}---\n"


def _results(card: ModelCard) -> list[dict[str, Any]]:
    """The metrics on the held-out rows, of each slice, and the rates of groups."""
    measured = card.performance
    if measured is None:
        results = [_result(card, "", card.metrics, None)]
    else:
        results = [_result(card, "", measured.metrics, measured.confidence)]
        results += [
            _result(card, s.name, s.metrics, measured.confidence) for s in measured.slices if s.metrics
        ]
    confidence = card.fairness.confidence if card.fairness else None
    return results + [_result(card, part, rates, confidence) for part, rates in group_rates(card)]


def group_rates(card: ModelCard) -> list[tuple[str, dict[str, Estimate | float]]]:
    """The rates of each group that the gate compared, then the gaps between groups, by name; each with its rows.

    The rows of a group are written as ``sex = f``, those of all groups of a column as its name.
    """
    groups: dict[str, dict[str, Estimate | float]] = {}
    gaps: dict[str, dict[str, Estimate | float]] = {}
    for d in card.fairness.compared if card.fairness else ():
        columns = " × ".join(d.columns)
        for group in d.groups:
            rates = groups.setdefault(f"{columns} = {group.group}", {})
            rates[d.title] = Estimate(group.value, group.low, group.high)
        gap = gaps.setdefault(columns, {})
        assert d.difference is not None and d.low is not None and d.high is not None and d.ratio is not None
        gap[f"difference of {d.title}"] = Estimate(d.difference, d.low, d.high)
        gap[f"ratio of {d.title}"] = d.ratio
    return [*groups.items(), *gaps.items()]


def _result(
    card: ModelCard, part: str, metrics: Mapping[str, Estimate | float], confidence: float | None
) -> dict[str, Any]:
    dataset = {
        "type": card.model,
        "name": f"{card.model}, {card.periods.get('holdout', '').replace('..', ' to ')}",
        "config": part,
        "split": "held-out",
        "revision": f"{card.datasets[0].name}@{card.datasets[0].version}" if card.datasets else "",
    }

    def metric(name: str, estimate: Estimate | float) -> dict[str, Any]:
        value = estimate.value if isinstance(estimate, Estimate) else estimate
        content: dict[str, Any] = {"type": name, "name": metric_in_words(name), "value": float(value)}
        if confidence is not None and isinstance(estimate, Estimate):
            content["args"] = {
                "confidence": confidence,
                "interval": [round(float(estimate.low), 6), round(float(estimate.high), 6)],
            }
        return content

    return {
        "task": {"type": _PIPELINES.get(card.task, "other"), "name": card.task},
        "dataset": {name: value for name, value in dataset.items() if value},
        "metrics": [metric(name, estimate) for name, estimate in sorted(metrics.items())],
    }
