"""What stands before every request: whose page may send it, the token, and what browsers are told.

Without a token the service listens on this machine only. Then a page of another site, open in a browser on this
machine, could still send requests; so the host must be this machine's own name, and a page must be our own.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/health", "/ready")
"""What anybody may ask for: the page, which holds nothing, and whether the service lives."""
HEADERS = {
    # The viewer makes styles and pictures of its own; nothing is asked of other hosts.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; font-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Passes on what may pass.

    Args:
        app: what answers.
        token: what clients must send as `Authorization: Bearer TOKEN`; None where only this machine can ask.
    """

    def __init__(self, app: App, token: str | None) -> None:
        self._app, self._token = app, None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(headers, scope["path"])
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, path: str) -> JSONResponse | None:
        host = headers.get("host", "")
        if self._token is None and not is_loopback(_name(host)):
            return _refuse(403, f"this service is for this machine alone, not for {host[:100]!r}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refuse(403, "pages of other sites may not use this service")
        if self._token is None or path in OPEN_PATHS or path.startswith("/assets/"):
            return None
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # In constant time: how long a comparison takes must not tell how much of the token was right.
        if scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode("latin-1"), self._token):
            return None
        return _refuse(401, "a token is needed: send the header Authorization: Bearer TOKEN")


def _name(host: str) -> str:
    """The host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refuse(status: int, message: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": message}, status, headers)
