"""The HTTP server that runs the application, and how that knows of its end."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI

GRACE_SECONDS = 5
"""Answers that are being made at the end have so long."""


def server_of(app: FastAPI, max_connections: int | None = None, **options: Any) -> uvicorn.Server:
    """Return a server for `app`.

    Parameters
    ----------
    app : FastAPI
        The application.
    max_connections : int, optional
        How many requests there may be at once; others get 503. Default: any number.
    **options
        More settings of `uvicorn.Config`, such as `host` and `port`.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_level="warning",
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=GRACE_SECONDS,
        **options,
    )
    app.state.server = server = uvicorn.Server(config)
    return server


def is_ending(app: FastAPI) -> bool:
    """Return whether the server of `app` has been told to end."""
    server: uvicorn.Server | None = getattr(app.state, "server", None)
    return server is not None and server.should_exit
