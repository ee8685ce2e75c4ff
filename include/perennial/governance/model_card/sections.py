"""The card of a version for people: its sections, and what is not known."""

from __future__ import annotations

from collections.abc import Iterable

from perennial.charts.markup import number
from perennial.governance.model_card.content import ModelCard
from perennial.governance.model_card.document import (
    Authored,
    Block,
    Bullets,
    Facts,
    Gap,
    Paragraph,
    Section,
    Table,
)
from perennial.modeling.performance import Estimate, SlicePerformance
from perennial.spec.constraints import direction, metric_in_words
from perennial.spec.model_spec import CUT, MAX_README
from perennial.training.gate import fairness_chart
from perennial.training.gate.fairness import Disparity

#: Most files of which the digest is listed first, and rows that a table of a card has.
MAX_ROWS = 60
TASKS = {
    "binary": "the probability of one of two outcomes",
    "multiclass": "one of several classes",
    "regression": "a number",
    "ranking": "the order of the rows of a list",
}
ROWS = {"fit": "to fit on", "valid": "for early stopping", "holdout": "held out"}


def card_sections(card: ModelCard) -> list[Section]:
    """The card, from what a reader asks first to what an engineer does."""
    return [
        Section("What it does", [*_summary(card)]),
        *([Section("From the README", [*_readme(card)])] if card.readme.strip() else []),
        Section("Use", [], [*_use(card)]),
        Section("How good it is", [*_results(card)], [*_slices(card)]),
        Section("Limits and risks", [], [*_limits(card)]),
        Section("Fairness", [*fairness(card)], [*group_rates(card)]),
        Section("Data", [*data(card)], [Section("Features", [*features(card)])]),
        Section("How it was made", [*training(card)]),
        Section("How it is watched", [Facts([*card.monitoring.items()])]),
        Section("Evidence", [*evidence(card)]),
    ]


def statement(values: str | Iterable[str] | None, key: str, what: str = "") -> Block:
    """What people say, or that it is not known and where to add it.

    Args:
        values: of the section ``card`` in model.yaml.
        key: its key.
        what: it is about, where the heading does not say it.
    """
    remedy = f"add card.{key} to model.yaml"
    if isinstance(values, str):
        return Paragraph(f"{what}: {values}" if what else values)
    items = list(values or ())
    return Bullets(items) if items else Gap(what, remedy)


def _summary(card: ModelCard) -> Iterable[Block]:
    verdict = "passed the gate" if card.passed else "was rejected by the gate"
    yield Paragraph(card.description)
    yield Paragraph(
        f"It predicts {TASKS[card.task]}. Version {card.version} was trained as of {card.as_of} and {verdict}."
    )
    yield Facts(
        [
            ("Owner", card.owner),
            ("Requested because", card.reason),
            ("Requested by", card.requested_by),
            ("What is predicted", card.target),
            ("License", card.statements.license),
            ("Before it becomes champion", _approval(card)),
        ]
    )
    if not card.statements.license:
        yield statement(None, "license", "License")


def _readme(card: ModelCard) -> Iterable[Block]:
    yield Authored(card.readme)
    if len(card.readme) == MAX_README and card.readme.endswith(CUT):
        yield Paragraph("(cut)")


def _approval(card: ModelCard) -> str:
    if not card.approvers:
        return "nobody has to approve it (gate.approval is not set)"
    return f"one of {', '.join(card.approvers)} has to approve it"


def _use(card: ModelCard) -> Iterable[Section]:
    stated = card.statements
    yield Section("Intended use", [statement(stated.intended_use, "intended_use")])
    yield Section("Users", [statement(stated.users, "users")])
    yield Section("Not for", [statement(stated.out_of_scope, "out_of_scope")])
    yield Section("Human oversight", [statement(stated.oversight, "oversight")])


def _results(card: ModelCard) -> Iterable[Block]:
    measured = card.performance
    yield Paragraph(
        f"On rows from {_span(card.periods.get('holdout', ''))} that it had not learned from: {card.coverage}."
        + (f" Intervals have a confidence of {measured.confidence:.0%}." if measured else "")
        + (
            " Afterwards it was fitted once more, with these rows as well."
            if card.periods.get("refit")
            else ""
        )
    )
    yield metrics_table(card)
    yield from comparisons(card)


def metrics_table(card: ModelCard) -> Table:
    """The metrics with their intervals, and those of the champion."""
    measured = card.performance
    champion = measured.champion if measured else {}
    heads = ["metric", "better is", "value (interval)", *(["champion then"] if champion else [])]
    rows = [
        (
            metric_in_words(name),
            direction(name),
            measured.metrics.get(name, number(value)) if measured else number(value),
            *([champion.get(name, "–")] if champion else []),
        )
        for name, value in sorted(card.metrics.items())
    ]
    return Table(heads, rows)


def comparisons(card: ModelCard) -> Iterable[Block]:
    """The comparisons of the gate, and its criteria."""
    if card.comparisons:
        rows = [
            (
                c.other,
                number(c.loss),
                number(c.other_loss),
                f"{c.improvement:+.1%} ({c.low:+.1%} to {c.high:+.1%})",
            )
            for c in card.comparisons
        ]
        yield Table(
            ["compared with", metric_in_words(card.metric), "of the other", "improvement (interval)"], rows
        )
    yield Bullets(card.criteria)


def _slices(card: ModelCard) -> Iterable[Section]:
    measured = card.performance
    columns = dict.fromkeys(s.column for s in measured.slices) if measured else {}
    for column in columns:
        yield Section(f"By {column}", [slice_table(card, column)])


def slice_table(card: ModelCard, column: str) -> Table:
    """The metrics of the slices of a column."""
    measured = card.performance
    names = sorted(card.metrics)
    slices = [s for s in measured.slices if s.column == column] if measured else []

    def row(of_value: SlicePerformance) -> tuple[object, ...]:
        values = [of_value.metrics.get(name, "–") for name in names]
        return (
            of_value.value,
            f"{of_value.rows:,}",
            *values,
            of_value.improvement_text or of_value.too_few or "–",
        )

    heads = [column, "rows", *map(metric_in_words, names), "improvement over the champion"]
    return Table(heads, [row(of_value) for of_value in slices[:MAX_ROWS]])


def _limits(card: ModelCard) -> Iterable[Section]:
    stated = card.statements
    yield Section("Known limits", [statement(stated.limitations, "limitations")])
    if card.findings:
        yield Section("Noticed in this training", [Bullets(card.findings)])
    yield Section("Trade-offs", [statement(stated.tradeoffs, "tradeoffs")])
    yield Section("Risks", [risks(card)])


def risks(card: ModelCard) -> Block:
    """Risks with what is done about them."""
    stated = card.statements.risks
    rows = [(r.risk, r.mitigation or "nothing yet") for r in stated]
    return Table(["risk", "what is done about it"], rows) if rows else statement(None, "risks", "Risks")


def fairness(card: ModelCard) -> Iterable[Block]:
    """Groups of people: what is stated, what the gate compared, what is monitored."""
    stated = card.statements.groups
    if stated:
        rows = [(g.group, g.benefits or "–", g.harms or "–", g.mitigation or "–") for g in stated]
        yield Table(["group", "benefits", "harms", "what is done about it"], rows)
    else:
        yield statement(None, "groups", "Groups of people at risk")
    compared = card.fairness
    if compared is None:
        yield Gap(
            "Differences between groups on held-out rows",
            "add gate.fairness to model.yaml, with the columns of the groups",
        )
    elif compared.verdicts:
        yield Table(fairness_chart.VERDICT_HEADS, fairness_chart.verdict_rows(compared))
    else:
        yield Paragraph(
            "The groups that the gate compared are left out: their columns are personal data by now."
        )


def group_rates(card: ModelCard) -> Iterable[Section]:
    """The rates of the groups that the gate compared, by the columns of the groups."""
    by_columns: dict[str, list[Disparity]] = {}
    for disparity in card.fairness.compared if card.fairness else ():
        by_columns.setdefault(" × ".join(disparity.columns), []).append(disparity)
    heads = ["rate", "group", "rows", "value (interval)"]
    for columns, disparities in by_columns.items():
        rows = [
            (d.title, g.group, f"{g.rows:,}", Estimate(g.value, g.low, g.high))
            for d in disparities
            for g in d.groups
        ]
        yield Section(f"Groups by {columns}", [Table(heads, rows[:MAX_ROWS])])


def data(card: ModelCard) -> Iterable[Block]:
    """Tables, partitions, rows, personal columns."""
    periods = card.periods
    yield Facts(
        [
            ("Trained on", _span(periods.get("trained", ""))),
            ("Evaluated on", _span(periods.get("holdout", ""))),
            ("Fitted once more on", _span(periods.get("refit", ""))),
            ("Rows", ", ".join(f"{card.rows[k]:,} {words}" for k, words in ROWS.items() if k in card.rows)),
            ("Columns of personal data", ", ".join(card.personal_columns) or "none are declared"),
        ]
    )
    yield Table(
        ["table", "kind", "version", "digest of what was read"],
        [(d.name, d.kind, d.version, d.digest or "–") for d in card.datasets],
    )
    yield statement(card.statements.data_origin, "data_origin", "How the data came about")


def features(card: ModelCard) -> Iterable[Block]:
    """The most important features, with the columns that they are computed from."""
    if card.feature_count > len(card.features):
        yield Paragraph(f"The {len(card.features)} most important of {card.feature_count:,}.")
    has_personal = any(f.personal for f in card.features)
    heads = [
        "feature",
        "kind",
        "share of the gain",
        "computed from",
        *(["personal: why it is needed"] * has_personal),
    ]
    rows = [
        (
            f.name,
            f.kind,
            f"{f.importance:.1%}",
            "not traced" if f.sources is None else ", ".join(f.sources[:20]) or "no column",
            *([f.personal or "–"] if has_personal else []),
        )
        for f in card.features
    ]
    yield Table(heads, rows)


def training(card: ModelCard) -> Iterable[Block]:
    """Algorithm and parameters."""
    algorithm = {"trees": "gradient-boosted trees (XGBoost)", "linear": "a linear model (XGBoost)"}
    yield Facts(
        [
            ("Algorithm", algorithm.get(card.algorithm, card.algorithm)),
            ("Minimises", card.objective),
            ("The gate compares", metric_in_words(card.metric)),
            *card.parameters.items(),
        ]
    )


def evidence(card: ModelCard) -> Iterable[Block]:
    """Where everything is, and how to make the version again."""
    yield Facts(
        [
            ("Registered at (UTC)", card.created_at),
            ("Run in MLflow", card.run_id),
            ("Spec", card.spec_digest),
            ("Code", card.code),
            ("Environment", ", ".join(f"{name} {value}" for name, value in card.environment.items())),
        ]
    )
    yield Table(["file", "SHA-256"], [*card.digests.items()])
    yield Paragraph(
        f"perennial reproduce {card.model} {card.version} makes it again and compares it byte for byte; "
        f"perennial ledger {card.model} lists the decisions about it."
    )


def _span(partitions: str) -> str:
    return partitions.replace("..", " to ")
