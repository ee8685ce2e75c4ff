"""Who asks for a page, what they may see, and the answer: what all routes share."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Response

from perennial.console import rendering, report_files, time_limit
from perennial.console.host import Host


def current_user() -> Any:
    """Replaced by the host's `user`."""
    raise HTTPException(401)


#: Parameter of a route that gives the user, or refuses the request.
User = Annotated[Any, Depends(current_user)]


def host_of(request: Request) -> Host:
    """The program that the console runs in."""
    host: Host = request.app.state.host
    return host


def authorise(request: Request, model: str, user: Any) -> None:
    """Refuse names that cannot be a model's, and users who may not see it; then ask whether the lake answers.

    Raises:
        StorageError: it does not.
    """
    if not report_files.is_plain_name(model):
        raise HTTPException(404, "There is no such model.")
    if model not in host_of(request).visible(user, [model]):
        raise HTTPException(403, "You are not allowed to see this model.")
    time_limit.check_lake()


def page(request: Request, template: str, content: Any, *, status: int = 200, **context: Any) -> Response:
    """Answer with a page, or its content as JSON: `rendering.page`, with the host's name."""
    context = {"host": host_of(request).name, **context}
    return rendering.page(request, template, content, context, status=status)
