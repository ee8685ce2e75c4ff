"""What steps took: of one model by month and run, and of all models by month."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perennial.console import overview
from perennial.console.overview import ModelOverview
from perennial.console.views.parts import Parts
from perennial.spec.compute_profile import Price
from perennial.status import cost
from perennial.status import history as history_module
from perennial.status.cost import StepRun
from perennial.status.history import History

#: Latest runs that the page of a model lists, and months that the page of all models shows.
SHOWN_RUNS, SHOWN_MONTHS = 200, 12


@dataclass(frozen=True)
class ModelCostPage:
    """The cost of one model.

    Attributes:
        model: name of the model.
        months: sums by month, as in its status record, the latest first.
        runs: the latest first.
        total: number of runs whose manifests are known.
        currency: of money; empty if no profile has a price.
        problems: parts that cannot be shown, with cause and remedy.
    """

    model: str
    months: dict[str, dict[str, float]]
    runs: list[StepRun]
    total: int
    currency: str = ""
    problems: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class CostRow:
    """The cost of one model in one month.

    Attributes:
        model: name of the model.
        owner: of the model.
        seconds: duration of its steps.
        gpu_seconds: duration of those with a GPU.
        memory_mb: highest memory, in MiB.
        money: None if no profile has a price.
        currency: of the money.
    """

    model: str
    owner: str
    seconds: float
    gpu_seconds: float
    memory_mb: float
    money: float | None
    currency: str


@dataclass(frozen=True)
class CostPage:
    """The cost of all models in one month.

    Attributes:
        month: as YYYY-MM; empty if nothing has run yet.
        months: those that can be chosen, the latest first.
        rows: the most expensive model first.
        seconds: of all.
        gpu_seconds: of all.
        money: of all, by currency.
        problem: why the lake cannot be read; empty if it can.
        remedy: what to do about it.
    """

    month: str
    months: list[str]
    rows: list[CostRow]
    seconds: float
    gpu_seconds: float
    money: dict[str, float]
    problem: str = ""
    remedy: str = ""


def of_model(name: str) -> ModelCostPage | None:
    """The cost of a model; None if there is no such model.

    Raises:
        StorageError: the lake cannot be read.
    """
    model = overview.of_model(name)
    if model is None:
        return None
    parts = Parts()
    history = parts.read("manifests", lambda: history_module.load(name)[0], History({}))
    # Without the spec, nothing says on which profile the steps ran.
    none: dict[str, Price] = {}
    prices = (
        none if model.problem else parts.read("prices", lambda: cost.prices(overview.load_spec(name)), none)
    )
    runs = cost.runs(history, prices)[::-1]
    months = model.status.cost if model.status else {}
    return ModelCostPage(
        name,
        dict(reversed(months.items())),
        runs[:SHOWN_RUNS],
        len(runs),
        cost.currency(prices) or (model.status.currency if model.status else ""),
        parts.problems,
    )


def of_all(models: Sequence[ModelOverview], month: str, problem: str = "", remedy: str = "") -> CostPage:
    """The cost of several models.

    Args:
        models: those that somebody may see.
        month: as YYYY-MM; the latest one when empty.
        problem: why the lake cannot be read.
        remedy: what to do about it.
    """
    statuses = [m.status for m in models if m.status]
    months = sorted({name for status in statuses for name in status.cost}, reverse=True)[:SHOWN_MONTHS]
    month = month if month in months else (months[0] if months else "")
    rows = [_row(s.model, s.owner, s.cost[month], s.currency) for s in statuses if month and month in s.cost]
    rows.sort(key=lambda row: (-(row.money or 0), -row.gpu_seconds, -row.seconds, row.model))
    money: dict[str, float] = {}
    for row in rows:
        if row.money is not None:
            money[row.currency] = money.get(row.currency, 0.0) + row.money
    seconds, gpu = sum(row.seconds for row in rows), sum(row.gpu_seconds for row in rows)
    return CostPage(month, months, rows, seconds, gpu, money, problem, remedy)


def _row(model: str, owner: str, of_month: Mapping[str, float], currency: str) -> CostRow:
    return CostRow(
        model,
        owner,
        of_month.get("seconds", 0.0),
        of_month.get("gpu_seconds", 0.0),
        of_month.get("memory_mb", 0.0),
        of_month.get("money"),
        currency,
    )
