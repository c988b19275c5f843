"""What a browser may load, and how its streams end."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from .running import is_ending

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
"""What a browser may load: nothing from elsewhere, whatever an answer has written."""

LOOKS_FOR_THE_END = 0.2
"""Seconds between two looks whether the server is to end."""


class Guarded:
    """An ASGI application whose responses bring `POLICY`, and whose streams to a browser end when the server does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, is_open = scope["app"], False  # Gradio puts its own application into the scope

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            nonlocal is_open
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("Content-Security-Policy", POLICY)
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        async def receive_or_end() -> MutableMapping[str, Any]:
            receiving = asyncio.ensure_future(receive())
            try:
                while not receiving.done() and not is_ending(app):
                    await asyncio.wait({receiving}, timeout=LOOKS_FOR_THE_END)
                return receiving.result() if receiving.done() else {"type": "http.disconnect"}
            finally:
                receiving.cancel()

        is_streamed = scope["type"] == "http" and scope["path"].startswith("/gradio_api/")
        await self._app(scope, receive_or_end if is_streamed else receive, send_with_policy)
        if is_open and is_ending(app):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
