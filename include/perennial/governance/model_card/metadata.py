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
    """The metrics on the held-out rows, and of each slice."""
    measured = card.performance
    if measured is None:
        return [_result(card, "", {name: Estimate(v, v, v) for name, v in card.metrics.items()}, None)]
    results = [_result(card, "", measured.metrics, measured.confidence)]
    return results + [
        _result(card, s.name, s.metrics, measured.confidence) for s in measured.slices if s.metrics
    ]


def _result(
    card: ModelCard, part: str, metrics: Mapping[str, Estimate], confidence: float | None
) -> dict[str, Any]:
    dataset = {
        "type": card.model,
        "name": f"{card.model}, {card.periods.get('holdout', '').replace('..', ' to ')}",
        "config": part,
        "split": "held-out",
        "revision": f"{card.datasets[0].name}@{card.datasets[0].version}" if card.datasets else "",
    }

    def metric(name: str, estimate: Estimate) -> dict[str, Any]:
        content: dict[str, Any] = {
            "type": name,
            "name": metric_in_words(name),
            "value": float(estimate.value),
        }
        if confidence is not None:
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
