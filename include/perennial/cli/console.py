"""The command ``perennial console``: the console's pages on this machine, for this machine only."""

from __future__ import annotations

import socket

from perennial.cli import terminal
from perennial.core.errors import PerennialError

__all__ = ["serve"]

_LOOPBACK = "127.0.0.1"


def serve(port: int) -> None:
    """Serve the pages until the command is stopped.

    Args:
        port: on the loopback address.

    Raises:
        PerennialError: the port is in use, or the web server is not installed.
    """
    try:
        import uvicorn
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from perennial.console.app import create_app
        from perennial.console.host import LocalHost
    except ImportError as error:
        raise PerennialError(
            f"the console needs {error.name}, which is not installed",
            "use the environment of `make setup`, or install fastapi, jinja2 and uvicorn",
        ) from None
    with socket.socket() as probe:
        if probe.connect_ex((_LOOPBACK, port)) == 0:
            raise PerennialError(
                f"port {port} is in use", "choose another one: perennial console --port NUMBER"
            )
    app = create_app(LocalHost())
    # another site's page cannot reach it under a name of its own
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_LOOPBACK, "localhost"])
    terminal.console().print(f"The models: http://{_LOOPBACK}:{port}  (Ctrl+C stops it)")
    uvicorn.run(app, host=_LOOPBACK, port=port, log_level="warning")
