"""One measured figure, with its target."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        target: the bound; None: the figure is for information only.
        at_least: whether the bound is a lower one.
    """

    part: str
    what: str
    value: float
    unit: str = ""
    target: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return _text(self.value, self.unit)

    @property
    def target_text(self) -> str:
        """The target with its unit."""
        if self.target is None:
            return ""
        return f"{'≥' if self.at_least else '≤'} {_text(self.target, self.unit)}"

    def as_dict(self) -> dict[str, Any]:
        """The figure as written to the JSON file."""
        return asdict(self) | {"met": self.met}


def _text(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {unit}".strip()
