"""The technical documentation of Annex IV of the EU AI Act (Regulation 2024/1689), as far as it is known.

Its nine sections are filled from the card; what only people know is marked as a gap that says what to add where. It is
a draft for those who answer for the system, and no legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable

from perennial.governance.model_card import sections
from perennial.governance.model_card.content import ModelCard
from perennial.governance.model_card.document import Block, Bullets, Facts, Gap, Paragraph, Section
from perennial.governance.model_card.sections import statement
from perennial.spec.constraints import metric_in_words

TITLE = "Technical documentation according to Annex IV of Regulation (EU) 2024/1689"


def annex_sections(card: ModelCard) -> list[Section]:
    """The nine sections."""
    return [
        Section("1. General description", [], [*_general(card)]),
        Section("2. Elements and development", [], [*_development(card)]),
        Section("3. Monitoring, functioning and control", [], [*_control(card)]),
        Section("4. Appropriateness of the performance metrics", [*_metric_choice(card)]),
        Section(
            "5. Risk management system (Article 9)",
            [statement(card.statements.risk_management, "risk_management")],
        ),
        Section("6. Changes through the lifecycle", [*_changes(card)]),
        Section("7. Standards", [statement(card.statements.standards, "standards")]),
        Section(
            "8. EU declaration of conformity (Article 47)",
            [statement(card.statements.declaration, "declaration")],
        ),
        Section("9. Post-market monitoring (Article 72)", [*_post_market(card)]),
    ]


def _part(letter: str, title: str, *blocks: Block) -> Section:
    return Section(f"({letter}) {title}", blocks)


def _general(card: ModelCard) -> Iterable[Section]:
    stated = card.statements
    yield _part(
        "a",
        "Intended purpose, provider, version",
        statement(stated.intended_use, "intended_use", "Intended purpose"),
        statement(stated.provider, "provider", "Provider"),
        Facts(
            [
                ("Name", card.model),
                ("Version", card.version),
                ("Version before it", card.previous or "none"),
                ("Champion when it was trained", card.champion or "none"),
                ("Description", card.description),
                ("Responsible", card.owner),
            ]
        ),
    )
    yield _part("b", "Interaction with other systems", statement(stated.deployment, "deployment"))
    yield _part(
        "c", "Versions of software", Facts([*card.environment.items(), ("library and commit", card.code)])
    )
    yield _part("d", "Form in which it is put into service", statement(stated.deployment, "deployment"))
    yield _part(
        "e",
        "Hardware",
        Facts(
            [("Trained on", card.environment.get("device")), ("Processor", card.environment.get("processor"))]
        ),
        Paragraph("Predictions are computed on CPUs."),
    )
    yield _part(
        "f",
        "Product that it is a component of",
        Gap(
            "",
            "add to card.deployment in model.yaml whether it is part of a product, with photographs in its README",
        ),
    )
    yield _part(
        "g", "User interface",
        Paragraph("Predictions are rows of a table, with key, prediction and version. People see models, verdicts and "
                  "decisions in the console."),
    )  # fmt: skip
    yield _part("h", "Instructions for use", statement(stated.instructions, "instructions"))


def _development(card: ModelCard) -> Iterable[Section]:
    stated = card.statements
    yield _part(
        "a",
        "Methods and steps of development",
        Paragraph(_method(card)),
        *sections.training(card),
    )
    yield _part(
        "b",
        "Design specifications",
        Facts(
            [
                ("Expected output", sections.TASKS[card.task]),
                ("Predicts", card.target),
                ("Optimises", f"{card.objective}; compared by {metric_in_words(card.metric)}"),
            ]
        ),
        *sections.features(card),
        statement(stated.users, "users", "Persons on whom, and by whom, it is used"),
        statement(stated.tradeoffs, "tradeoffs", "Trade-offs"),
    )
    yield _part(
        "c",
        "Architecture and computational resources",
        Paragraph(
            "Partitions are validated and published to versioned tables; features are computed by one SQL in training "
            "and scoring; versions are registered in MLflow with the digests of their files; decisions are recorded in "
            "a ledger chained by hashes."
        ),
        Facts([("Device", card.environment.get("device")), ("Threads", card.environment.get("threads"))]),
    )
    yield from _process(card)


def _method(card: ModelCard) -> str:
    """How it was trained and compared, in sentences."""
    trials = int(card.parameters.get("search_trials", "1"))
    others = ", ".join(c.other for c in card.comparisons)
    return (
        "It was trained from scratch on labelled partitions, without any pre-trained model. "
        + (
            f"Its parameters are the best of {trials:,} that were tried on partitions for early stopping. "
            if trials > 1
            else "Its parameters are those of model.yaml and defaults; no others were tried. "
        )
        + (
            f"On later partitions, which were held out, it was compared with: {others}."
            if others
            else "It was compared with no other model."
        )
    )


def _process(card: ModelCard) -> Iterable[Section]:
    """The rest of the second section: data, oversight, changes, tests, security."""
    yield _part("d", "Data", *sections.data(card))
    yield _part("e", "Human oversight (Article 14)", *_oversight(card))
    yield _part(
        "f",
        "Pre-determined changes",
        Paragraph("It is trained again and replaced by this policy:"),
        Facts(
            [
                (key, card.monitoring[key])
                for key in ("Retraining", "Promotion", "Trial")
                if key in card.monitoring
            ]
        ),
        *_approval(card),
    )
    yield Section(
        "(g) Validation and testing",
        [
            Paragraph(f"Metrics rest on {card.coverage}."),
            sections.metrics_table(card),
            *sections.comparisons(card),
        ],
        [Section("Potentially discriminatory impacts", [*sections.fairness(card)])],
    )
    yield _part("h", "Cybersecurity", *_security(card))


def _oversight(card: ModelCard) -> Iterable[Block]:
    yield statement(card.statements.oversight, "oversight")
    yield from _approval(card)
    yield Paragraph(
        f"perennial explain {card.model} PARTITION KEY says what each feature added to a prediction, and what would "
        "have changed the decision; perennial run rollback puts the previous version back."
    )


def _approval(card: ModelCard) -> Iterable[Block]:
    if card.approvers:
        yield Paragraph(f"A version becomes champion only if one of {', '.join(card.approvers)} approves it.")
    else:
        yield Gap("Approval of a version by a person", "add gate.approval to model.yaml")


def _security(card: ModelCard) -> Iterable[Block]:
    yield Paragraph(
        "No model file is unpickled; each file of a version is compared with the digest in the ledger before it is "
        "used."
    )
    yield statement(card.statements.security, "security", "Other measures")


def _control(card: ModelCard) -> Iterable[Section]:
    stated = card.statements
    yield Section(
        "Capabilities and limits",
        [sections.metrics_table(card), statement(stated.limitations, "limitations")],
    )
    measured = card.performance
    for column in dict.fromkeys(s.column for s in measured.slices) if measured else ():
        yield Section(f"Accuracy by {column}", [sections.slice_table(card, column)])
    yield Section("Accuracy for groups of persons", [*_groups(card)], [*sections.group_rates(card)])
    yield Section("Foreseeable unintended outcomes and risks", [sections.risks(card)])
    yield Section("Human oversight", [*_oversight(card)])
    yield Section("Input data", [Bullets([f"{name}: {kind}" for name, kind in [*card.inputs.items()][:200]])])


def _groups(card: ModelCard) -> Iterable[Block]:
    if card.fairness and card.fairness.compared:
        yield Paragraph("How far apart they may be is in the second section, (g).")
    elif card.fairness:
        yield Paragraph("No groups could be compared: the second section, (g), says why.")
    else:
        yield Gap("Accuracy for groups", "add gate.fairness to model.yaml, with the columns of the groups")


def _metric_choice(card: ModelCard) -> Iterable[Block]:
    yield Paragraph(f"Versions are compared by {metric_in_words(card.metric)} on held-out rows.")
    yield statement(card.statements.metric_choice, "metric_choice", "Why it is appropriate")


def _changes(card: ModelCard) -> Iterable[Block]:
    if not card.previous:
        yield Paragraph("This is the first version.")
    elif card.changes:
        yield Paragraph(f"The spec differs from that of version {card.previous} in:")
        yield Bullets(card.changes)
    else:
        yield Paragraph(f"The spec is that of version {card.previous}.")
    yield Paragraph(f"perennial ledger {card.model} lists all versions and decisions, with reasons.")


def _post_market(card: ModelCard) -> Iterable[Block]:
    yield Facts([*card.monitoring.items()])
    yield statement(card.statements.post_market, "post_market", "Post-market monitoring plan (Article 72(3))")
