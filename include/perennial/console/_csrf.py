"""Proof that a form was sent from a page of the console, by the user whom it was shown to.

Cookies alone prove neither: a browser adds them to whatever another site lets it send.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from fastapi import Request


def token(credential: str, purpose: str) -> str:
    """The token of a form.

    The user's own session is the key of the HMAC: other sites do not know it, and it needs no secret of the server's,
    so that each of several servers accepts the form of another.

    Args:
        credential: identifies the session.
        purpose: what the form does; a token of one form is useless for another.
    """
    return hmac.new(credential.encode(), f"perennial console\n{purpose}".encode(), hashlib.sha256).hexdigest()


def is_valid(given: str, credential: str, purpose: str) -> bool:
    """Whether a token is that of a form and a session."""
    return bool(credential) and hmac.compare_digest(given.encode(), token(credential, purpose).encode())


def is_same_origin(request: Request) -> bool:
    """Whether the browser says that a page of this site sent the request; a client that says nothing is no browser."""
    if site := request.headers.get("sec-fetch-site"):
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
