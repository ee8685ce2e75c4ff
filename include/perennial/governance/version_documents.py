"""The documents that a training stores with the version that it registers: its explanation, and its card.

No step depends on one: what cannot be drawn is left out, and the log of the training says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from perennial.governance import model_explanation
from perennial.governance.model_card import collection, stored
from perennial.governance.model_card.collection import Training
from perennial.spec.model_spec import ModelSpec
from perennial.storage import pages
from perennial.training.artifacts import ModelArtifacts
from perennial.training.candidates import Candidate
from perennial.training.tracking import RegisteredVersion


def add_explanation(spec: ModelSpec, candidate: Candidate, artifacts: ModelArtifacts) -> ModelArtifacts:
    """The artifacts with the explanation of the model that is registered.

    Args:
        spec: the model.
        candidate: what was trained.
        artifacts: with the sample of the held-out rows.
    """
    sample = artifacts.holdout
    if sample is None:
        return artifacts
    explanation, _ = pages.attempt(
        f"the explanation of {spec.name}",
        lambda: model_explanation.explain_model(
            spec, candidate.registered_model, sample, candidate.model.encoding
        ),
    )
    if explanation is None:
        return artifacts
    documents = artifacts.documents | {model_explanation.ARTIFACT: explanation.as_dict()}
    return replace(artifacts, documents=documents)


def describe(training: Training, registered: RegisteredVersion) -> Mapping[str, str]:
    """The card of a version in all its forms, and the page of its explanation: content by file name.

    Args:
        training: the training.
        registered: the version.
    """
    title = f"{training.spec.name}, version {registered.version.version}"
    card, _ = pages.attempt(
        f"the card of {title},", lambda: stored.files(collection.collect(training, registered))
    )
    content = training.documents.get(model_explanation.ARTIFACT)
    page, _ = pages.attempt(
        f"the page about what {title} does",
        lambda: model_explanation.to_html(title, model_explanation.parse(content)) if content else "",
    )
    return (card or {}) | ({model_explanation.PAGE: page} if page else {})
