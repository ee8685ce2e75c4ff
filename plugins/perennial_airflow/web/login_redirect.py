"""Leads people who are not logged in from our pages to Airflow's login page, and back: links in messages need that."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse

from perennial_airflow.web.links import PREFIX, ui_path

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LoginRedirect:
    """ASGI middleware of the API server.

    Args:
        app: what answers the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does; a browser that is refused a page for lack of a login is sent to it."""
        if not _asks_for_page(scope):
            await self.app(scope, receive, send)
            return
        refused = False

        async def send_or_redirect(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 401:
                refused = True
                await RedirectResponse(_login_address(Request(scope)), 302)(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, send_or_redirect)


def _asks_for_page(scope: Scope) -> bool:
    """Whether a request is a browser's for one of our pages."""
    if scope["type"] != "http" or scope.get("method") not in ("GET", "HEAD"):
        return False
    request = Request(scope)
    return f"{PREFIX}/" in request.url.path and "text/html" in request.headers.get("accept", "")


def _login_address(request: Request) -> str:
    """Address of the login page, which leads back to what was asked for."""
    page = request.url.path + f"?{request.url.query}" * bool(request.url.query)
    return f"{ui_path('/api/v2/auth/login')}?next={quote(page, safe='')}"


__all__ = ["LoginRedirect"]
