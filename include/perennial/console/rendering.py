"""Pages as HTML or JSON, with the headers that protect them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from perennial.charts.markup import number
from perennial.charts.stylesheet import stylesheet
from perennial.core import html
from perennial.spec.alerts import signal_measure

#: Nothing but our own files, no script or style within a page, shown in frames of the same site only.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; frame-src 'self'; "
        "form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}
#: Files that pages link, with their media types.
STATIC = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "models.svg": "image/svg+xml",
    "models-dark.svg": "image/svg+xml",
}
_FOLDER = Path(__file__).parent


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("perennial.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": _percent, "printable": html.printable, "moment": _moment,
        "ago": _ago, "duration": _duration, "money": _money, "pretty": _pretty,
        "measure": signal_measure,
    }  # fmt: skip
    return environment


@cache
def static_file(name: str) -> str:
    """The content of a file that pages link; the stylesheet includes that of charts."""
    content = (_FOLDER / "static" / name).read_text("utf-8")
    return f"{stylesheet()}\n{content}" if name == "console.css" else content


def base_path(request: Request) -> str:
    """The path under which the application is mounted."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def wants_json(request: Request) -> bool:
    """Whether the request is for JSON: by the path's ending, or by the header Accept."""
    accepted = request.headers.get("accept", "")
    return request.url.path.endswith(".json") or (
        "application/json" in accepted and "text/html" not in accepted
    )


def page(
    request: Request,
    template: str,
    content: Any,
    context: Mapping[str, Any],
    *,
    status: int = 200,
) -> Response:
    """Answer with a page, or with its content as JSON.

    Args:
        request: what was asked.
        template: file of the page.
        content: what it is about: the JSON, and the variable ``page`` of the template.
        context: other variables of the template.
        status: of the answer.
    """
    if wants_json(request):
        text = json.dumps(to_json(content), default=str)
        return Response(text, status, HEADERS, "application/json")
    variables = {"page": content, "base": base_path(request), **context}
    return Response(_templates().get_template(template).render(variables), status, HEADERS, "text/html")


def to_json(content: Any) -> Any:
    """Dataclasses as mappings; other values as they are."""
    return asdict(content) if is_dataclass(content) and not isinstance(content, type) else content


def _percent(share: float | None) -> str:
    """A share for people."""
    return "–" if share is None else f"{share:.0%}"


def _money(amount: float | None, currency: str) -> str:
    """An amount for people: 1,234.50 EUR."""
    return "–" if amount is None else f"{amount:,.2f} {currency}"


def _pretty(content: Any) -> str:
    """JSON for people, with a dot for each character that cannot be printed."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    return "\n".join(html.printable(line) for line in text.split("\n"))


def _moment(timestamp: str) -> str:
    """A time in UTC for people: 2024-05-01 06:30."""
    return timestamp[:16].replace("T", " ")


def _ago(timestamp: str) -> str:
    """How long ago a time was, in one unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
    return f"{_duration(max(seconds, 0))} ago"


def _duration(seconds: float) -> str:
    """A length of time in one unit."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count != 1)}"
    return f"{seconds:.0f} s"
