"""Calls of Airflow's REST API for the user of a request, within the API server.

Airflow itself then decides what the user may do, checks what is asked, and writes its audit log, as for any client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from fastapi import Request

from perennial_airflow.web.links import PREFIX

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_KEY = "perennial.airflow_api"
#: Headers that say who the user is, and that a page of the UI asks.
_FORWARDED = ("authorization", "cookie", "referer")


class ApiAccess:
    """ASGI middleware of the API server: lets the console reach the routes that are beside it.

    Args:
        app: what answers the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        if scope["type"] == "http" and f"{PREFIX}/" in str(scope.get("path", "")):
            scope[_KEY] = (self.app, scope.get("app"), scope.get("root_path", ""))
        await self.app(scope, receive, send)


async def call(request: Request, method: str, path: str, **arguments: Any) -> httpx.Response:
    """Call the REST API as the user of a request.

    Args:
        request: of the user, to the console.
        method: such as ``POST``.
        path: below ``/api/v2``.
        arguments: of `httpx.AsyncClient.request`: ``json``, ``params``.
    """
    inner, root, root_path = request.scope[_KEY]
    state = request.scope.get("state", {})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # the user whom Airflow's own middleware found in the cookie of this request, maybe with a renewed session
        await inner({**scope, "app": root, "root_path": root_path, "state": dict(state)}, receive, send)

    headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=str(request.base_url.replace(path="/")), headers=headers
    ) as client:
        return await client.request(method, f"/api/v2{path}", **arguments)


__all__ = ["ApiAccess", "call"]
