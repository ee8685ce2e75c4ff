"""What is known about a version: the content of its card, whatever it is rendered as."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from perennial.modeling import performance
from perennial.modeling.performance import Performance
from perennial.modeling.training_records import CARD_FILE, reading
from perennial.spec.policies import CardSpec
from perennial.training.gate import fairness
from perennial.training.gate.fairness import Fairness

#: Version of the format of `training_records.CARD_FILE`.
FORMAT = 2


@dataclass(frozen=True)
class Dataset:
    """A table version that a training read.

    Attributes:
        name: of the table.
        version: its version.
        digest: of the partitions that were read; empty if it is not known.
        kind: ``rows``, ``labels``, ``reference table`` or ``feature table``.
    """

    name: str
    version: int
    digest: str
    kind: str


@dataclass(frozen=True)
class Feature:
    """A feature of the model.

    Attributes:
        name: of the feature.
        kind: ``number`` or ``category``.
        importance: its share in the gain.
        sources: columns that it is computed from; None if they could not be traced.
        personal: why the model needs it, of a feature that depends on personal data; empty otherwise.
    """

    name: str
    kind: str
    importance: float
    sources: list[str] | None
    personal: str = ""


@dataclass(frozen=True)
class Compared:
    """A comparison of the gate, on the same held-out rows.

    Attributes:
        other: what the version was compared with.
        loss: of the version.
        other_loss: of the other.
        improvement: as a share of the other's loss.
        low: lower end of the improvement's confidence interval.
        high: upper end.
    """

    other: str
    loss: float
    other_loss: float
    improvement: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelCard:
    """What is known about a version when it is registered.

    Attributes:
        model: name of the model.
        version: number of the version.
        created_at: when it was registered (UTC).
        task: task of the model.
        owner: who is responsible for it.
        description: what it predicts.
        readme: text of the model's README.
        statements: what people say about it.
        as_of: partition date of the training.
        reason: why it was requested.
        requested_by: who requested it.
        target: what is predicted: the label's expression, and when it becomes known.
        metric: the loss that the gate compares.
        algorithm: ``trees`` or ``linear``.
        objective: that was minimised.
        parameters: of the model and of its training, by name.
        periods: partitions by what they were used for.
        rows: numbers of rows by what they were used for.
        coverage: on how many of how many rows the metrics rest.
        datasets: what was read.
        inputs: columns of a row, with their types.
        personal_columns: those of personal data.
        features: the most important ones.
        feature_count: number of all features.
        metrics: on the held-out rows, by name.
        performance: the metrics with intervals, in total and by slice; None if they are not known.
        comparisons: of the gate.
        champion: version of the champion that it was compared with; empty if there was none.
        passed: whether it passed the gate.
        criteria: of the gate, a sentence each.
        fairness: how far apart the gate saw groups of the held-out rows; None if it compared none.
        findings: what studies of the training say, a sentence each.
        monitoring: how its successors are monitored and retrained, by name.
        approvers: who may approve that it becomes champion; none if nobody has to.
        run_id: MLflow run.
        spec_digest: SHA-256 of the spec.
        code: version and commit of the library.
        environment: versions of what it was trained with, by name.
        digests: SHA-256 of each file of the version, by name.
        previous: version that was registered before; empty for the first one.
        changes: keys of the spec that differ from those of the version before.
    """

    model: str
    version: str
    created_at: str
    task: str
    owner: str
    description: str
    readme: str
    statements: CardSpec
    as_of: str
    reason: str
    requested_by: str
    target: str
    metric: str
    algorithm: str
    objective: str
    parameters: Mapping[str, str]
    periods: Mapping[str, str]
    rows: Mapping[str, int]
    coverage: str
    datasets: list[Dataset]
    inputs: Mapping[str, str]
    personal_columns: list[str]
    features: list[Feature]
    feature_count: int
    metrics: Mapping[str, float]
    performance: Performance | None
    comparisons: list[Compared]
    champion: str
    passed: bool
    criteria: list[str]
    fairness: Fairness | None
    findings: list[str]
    monitoring: Mapping[str, str]
    approvers: list[str]
    run_id: str
    spec_digest: str
    code: str
    environment: Mapping[str, str]
    digests: Mapping[str, str]
    previous: str = ""
    changes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Model and version."""
        return f"{self.model}, version {self.version}"

    def as_dict(self) -> dict[str, Any]:
        """The content of `CARD_FILE`."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "format": FORMAT,
            **content,
            "statements": self.statements.model_dump(mode="json", exclude_defaults=True),
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "features": [asdict(feature) for feature in self.features],
            "comparisons": [asdict(compared) for compared in self.comparisons],
            "performance": self.performance.as_dict() if self.performance else None,
            "fairness": self.fairness.as_dict() if self.fairness else None,
        }


def parse(content: Any) -> ModelCard:
    """Read the content of `CARD_FILE`.

    Raises:
        ArtifactError: it is of another format.
    """
    with reading(CARD_FILE, content, FORMAT):
        values = {name: content[name] for name in ModelCard.__dataclass_fields__}
        measured, compared = values["performance"], values["fairness"]
        values |= {
            "statements": CardSpec.model_validate(values["statements"]),
            "datasets": [Dataset(**item) for item in values["datasets"]],
            "features": [Feature(**item) for item in values["features"]],
            "comparisons": [Compared(**item) for item in values["comparisons"]],
            "performance": performance.parse(measured) if measured else None,
            "fairness": fairness.parse(compared) if compared else None,
        }
        return ModelCard(**values)


def without_columns(card: ModelCard, columns: Collection[str]) -> ModelCard:
    """The card without what it says of slices and groups by some columns, but for groups that the spec named."""
    measured, compared = card.performance, card.fairness
    if measured:
        hidden = [s.name for s in measured.slices if s.column in columns]
        named = re.compile("|".join(rf"(?<!\S){re.escape(name)}:" for name in hidden) or "(?!)")
        card = replace(
            card,
            performance=measured.without_columns(columns),
            criteria=[text for text in card.criteria if not named.search(text)],
            findings=[text for text in card.findings if not named.search(text)],
        )
    if compared:
        shown = compared.without_columns(columns)
        removed = {v.sentence for v in compared.verdicts} - {v.sentence for v in shown.verdicts}
        criteria = [text for text in card.criteria if text.partition(": ")[2] not in removed]
        card = replace(card, fairness=shown, criteria=criteria)
    return card
