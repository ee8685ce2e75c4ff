"""The report of a training: how good the version is and why the gate passed or rejected it, in pictures and words.

The same charts are files of the run in MLflow. Nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perennial.charts import page
from perennial.charts.markup import Markup, element, number, table, text
from perennial.charts.stylesheet import standalone
from perennial.core.settings import settings
from perennial.modeling import evaluation_charts
from perennial.modeling.evaluation_charts import Chart
from perennial.modeling.metrics import EVAL_METRICS
from perennial.modeling.performance import Estimate
from perennial.spec.constraints import direction
from perennial.spec.model_spec import ModelSpec
from perennial.storage import pages
from perennial.training.candidates import Candidate
from perennial.training.challenger_evaluation import Evaluation
from perennial.training.gate import fairness_chart
from perennial.training.studies import staleness, usefulness
from perennial.training.studies.staleness import Staleness
from perennial.training.studies.usefulness import UnitUsefulness, Usefulness

#: Kind of the page: its folder in the lake.
KIND = "training"


@dataclass(frozen=True)
class TrainingReport:
    """The report of a training, before it is stored.

    Attributes:
        spec: the model.
        as_of: partition date of the training.
        candidate: what was trained.
        importance: share of each feature, by name.
        facts: what the page lists about the training, by name.
    """

    spec: ModelSpec
    as_of: str
    candidate: Candidate
    importance: Mapping[str, float]
    facts: Mapping[str, str]

    @property
    def uri(self) -> str:
        """URI of the page in the lake."""
        return f"{settings().lake}/reports/{self.spec.name}/{KIND}/{self.as_of}.html"

    def charts(self) -> dict[str, Chart]:
        """The charts by name; those that cannot be drawn are missing."""
        drawn = dict(self.candidate.evaluation.charts)
        if any(self.importance.values()):
            drawn["importance"] = evaluation_charts.importance_chart(self.importance)
        best = self.candidate.fitted.best_trial
        if best is not None and best.curve:
            metric = EVAL_METRICS[self.spec.task, self.spec.metric]
            drawn["learning_curve"] = evaluation_charts.learning_curve_chart(metric, best.curve)
        return drawn

    def slice_charts(self) -> dict[str, list[Chart]]:
        """The charts of the slices, by column; empty if there are none."""
        performance = self.candidate.evaluation.performance
        return evaluation_charts.slice_charts(performance, self.spec.metric) if performance else {}

    def files(self) -> dict[str, str]:
        """The charts as SVG files, for MLflow; empty if they cannot be drawn."""
        drawn, _ = pages.attempt(
            f"the plots of {self.spec.name}",
            lambda: {f"{name}.svg": standalone(chart.svg()) for name, chart in self._all_charts().items()},
        )
        return drawn or {}

    def write(self, version: str, run_page: str) -> str:
        """Store the page in the lake; returns its URI.

        Args:
            version: the registered version.
            run_page: address of the run in MLflow.
        """
        pages.write(self._title(version), [self.uri], lambda: [self.render(version, run_page)])
        return self.uri

    def render(self, version: str, run_page: str) -> str:
        """The page as HTML.

        Args:
            version: the registered version.
            run_page: address of the run in MLflow.
        """
        evaluation = self.candidate.evaluation
        gate = "passed" if evaluation.passed else "rejected"
        reasons = element("ul", *(element("li", text(reason)) for reason in self.candidate.reasons))
        link = element("a", text("the run in MLflow"), href=run_page)
        return page.document(
            self._title(version),
            element("h1", text(f"{self._title(version)} "), page.tag(gate)),
            element("p", text(self.spec.description)) if self.spec.description else Markup(""),
            page.charts([chart.figure() for chart in self.charts().values()]),
            page.section(f"Gate: {gate}", reasons),
            page.section(f"Metrics on {evaluation.rows:,} held-out rows", _metrics(evaluation)),
            *_slices(evaluation, self.slice_charts()),
            *_fairness(evaluation),
            *_staleness(self.candidate.studies.get(staleness.ARTIFACT)),
            *_usefulness(self.candidate.studies.get(usefulness.ARTIFACT)),
            page.section("Training", page.facts([*self.facts.items(), ("MLflow", link)])),
        )

    def _all_charts(self) -> dict[str, Chart]:
        """`charts`, and those of the slices by the number of their column: its name may be no name of a file."""
        charts = self.charts()
        for number_, of_column in enumerate(self.slice_charts().values(), 1):
            kinds = zip(("slices", "slice_improvement"), of_column, strict=False)
            charts |= {f"{kind}_{number_}": chart for kind, chart in kinds}
        return charts

    def _title(self, version: str) -> str:
        return f"{self.spec.name}, version {version}, trained as of {self.as_of}"


def _metrics(evaluation: Evaluation) -> Markup:
    """A table of the metrics with their intervals, and those of the champion on the same rows."""
    estimates: Mapping[str, Estimate] = evaluation.performance.metrics if evaluation.performance else {}
    champion: Mapping[str, Estimate] = evaluation.performance.champion if evaluation.performance else {}
    rows = [
        (
            name,
            f"{direction(name)} is better",
            str(estimates.get(name, number(value))),
            *([str(champion.get(name, ""))] if champion else []),
        )
        for name, value in sorted(evaluation.metrics.items())
    ]
    interval = (
        f"value ({evaluation.performance.confidence:.0%} interval)" if evaluation.performance else "value"
    )
    return table(["metric", "", interval, *(["champion"] if champion else [])], rows)


def _slices(evaluation: Evaluation, charts: Mapping[str, Sequence[Chart]]) -> list[Markup]:
    """A section with charts and a table for each column of ``monitoring.slices``."""
    if evaluation.performance is None:
        return []
    sections = []
    slices, other_rows = evaluation.performance.slices, evaluation.performance.other_rows
    for column in dict.fromkeys(s.column for s in slices):
        rows = [
            (
                s.value,
                f"{s.rows:,}",
                *(str(s.metrics.get(name, "")) for name in sorted(evaluation.metrics)),
                s.improvement_text or s.too_few,
            )
            for s in slices
            if s.column == column
        ]
        heads = [column, "rows", *sorted(evaluation.metrics), "improvement over the champion"]
        others = f"{other_rows[column]:,} rows have another value." if other_rows.get(column) else ""
        figures = page.charts([chart.figure() for chart in charts.get(column, ())])
        parts = [figures, table(heads, rows), *([element("p", text(others))] if others else [])]
        sections.append(page.section(f"Slices by {column}", *parts))
    return sections


def _fairness(evaluation: Evaluation) -> list[Markup]:
    """A section with the rates of the groups of ``gate.fairness``; none without."""
    if evaluation.fairness is None:
        return []
    drawn, known = page.charts(fairness_chart.figures(evaluation.fairness)), evaluation.fairness
    parts = drawn, fairness_chart.verdict_table(known), fairness_chart.describe(known)
    return [page.section("Fairness: gaps between groups", *parts)]


def _staleness(curve: Staleness | None) -> list[Markup]:
    """A section with the loss by age of the model; none if it is not known."""
    if curve is None:
        return []
    explained = (
        f"The challenger, fitted on windows of {curve['window']} partitions that ended earlier, with its parameters "
        f"and rounds: all on the rows of {curve['held_out']}."
    )
    return [
        page.section(
            "What it costs to be older",
            element("p", text(explained)),
            page.charts([evaluation_charts.staleness_chart(curve).figure()]),
        )
    ]


def _usefulness(known: Usefulness | None) -> list[Markup]:
    """A section with what each feature and feature table is worth, the most useful first; none if it is not known."""
    if known is None:
        return []
    explained = (
        f"How much the {known['metric']} on held-out partitions rises when the model is fitted without the feature, "
        f"with its window, parameters and rounds, and the {known['confidence']:.0%} interval of that. Useless: it "
        "rises by less than retraining.min_gain; unclear: it may rise by more. A feature may be useless because "
        "another one says the same."
    )
    units = sorted(known["units"], key=lambda unit: (unit["kind"] == "feature", -unit["rise"]))
    together = [known["together"]] if known["together"] else []
    parts = [element("p", text(explained))]
    if known["sentence"]:
        parts.append(element("p", text(f"As of {known['as_of']}, {known['sentence']}.")))
    heads = ["left out", "", "without it", "with it", "rise (interval)", "", "as of"]
    parts.append(table(heads, [_usefulness_row(unit) for unit in (*units, *together)]))
    if known["not_measured"]:
        parts.append(
            element("p", text(f"Not measured yet, for want of time: {', '.join(known['not_measured'])}."))
        )
    return [page.section("What features are worth", *parts)]


def _usefulness_row(unit: UnitUsefulness) -> tuple[str, ...]:
    name = f"together: {', '.join(unit['columns'])}" if unit["name"] == "together" else unit["name"]
    rise = f"{unit['rise']:+.2%} [{unit['low']:+.2%}, {unit['high']:+.2%}]"
    losses = number(unit["loss_without"]), number(unit["loss"])
    return name, unit["kind"], *losses, rise, unit["verdict"], unit["as_of"]
