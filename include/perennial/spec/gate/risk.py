"""``risk``: how much harm the model's decisions can do to people, and what a high risk demands of the spec."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from perennial.spec.strict_model import StrictModel

__all__ = ["DEMANDS", "RiskSpec"]

#: What a high risk demands, by name. A ranking has no gate.fairness.
DEMANDS = {
    "approval": "gate.approval, by which a person approves each version",
    "fairness": "gate.fairness, bounds on gaps between groups",
    "slices": "gate.slices, a bound on what a slice of the rows may lose",
    "retention": "retention.rows or retention.predictions, how long they are kept",
}
_Demand = Literal["approval", "fairness", "slices", "retention"]


class RiskSpec(StrictModel):
    """How much harm the model's decisions can do to people."""

    level: Literal["low", "high"] = Field(
        description="high: `perennial check` demands gate.approval, gate.fairness (not of a ranking), gate.slices and "
        "retention. low: it demands nothing.",
    )
    without: dict[_Demand, Annotated[str, StringConstraints(min_length=10, max_length=300)]] = Field(
        {},
        description="Demands of a high risk that the spec does not meet, each with the reason why: approval, fairness, "
        "slices, retention.",
    )

    def unmet(self, task: str, given: Collection[str]) -> list[str]:
        """The demands that the spec neither meets nor gives a reason for.

        Args:
            task: of the model.
            given: names of the demands that the spec meets.
        """
        return [name for name in self._demanded(task) if name not in given and name not in self.without]

    def needless(self, task: str, given: Collection[str]) -> list[str]:
        """The names in ``without`` that are not demanded, or that the spec meets.

        Args:
            task: of the model.
            given: names of the demands that the spec meets.
        """
        return [name for name in self.without if name in given or name not in self._demanded(task)]

    def _demanded(self, task: str) -> list[str]:
        if self.level != "high":
            return []
        return [name for name in DEMANDS if not (name == "fairness" and task == "ranking")]
