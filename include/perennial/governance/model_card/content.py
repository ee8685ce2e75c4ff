"""What is known about a version: the content of its card, whatever it is rendered as."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from perennial.core.errors import ArtifactError
from perennial.modeling import performance
from perennial.modeling.performance import Performance
from perennial.modeling.training_records import CARD_FILE
from perennial.spec.policies import CardSpec

#: Version of the format of `training_records.CARD_FILE`.
FORMAT = 1


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
        fairness: sentences about groups of people, as far as they were compared.
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
    fairness: list[str]
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
        }


def parse(content: Any) -> ModelCard:
    """Read the content of `CARD_FILE`.

    Raises:
        ArtifactError: it is of another format.
    """
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        values = {name: content[name] for name in ModelCard.__dataclass_fields__}
        measured = values["performance"]
        values |= {
            "statements": CardSpec.model_validate(values["statements"]),
            "datasets": [Dataset(**item) for item in values["datasets"]],
            "features": [Feature(**item) for item in values["features"]],
            "comparisons": [Compared(**item) for item in values["comparisons"]],
            "performance": performance.parse(measured) if measured else None,
        }
        return ModelCard(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{CARD_FILE} cannot be used: {error}", "train again: training writes it"
        ) from error


def without_columns(card: ModelCard, columns: Collection[str]) -> ModelCard:
    """The card without what it says of slices by some columns."""
    measured = card.performance
    if measured is None or not any(s.column in columns for s in measured.slices):
        return card
    shown = [s for s in measured.slices if s.column not in columns]
    hidden = [s.name for s in measured.slices if s.column in columns]
    others = {column: n for column, n in measured.other_rows.items() if column not in columns}

    def keep(sentences: list[str]) -> list[str]:
        return [text for text in sentences if not any(name in text for name in hidden)]

    return replace(
        card,
        performance=replace(measured, slices=shown, other_rows=others),
        criteria=keep(card.criteria),
        findings=keep(card.findings),
        fairness=[text for text in card.fairness if not any(column in text for column in columns)],
    )
