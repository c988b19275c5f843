"""How large a request may be, and how slowly it may come."""

from __future__ import annotations

import anyio
from fastapi import Request

from .errors import RequestError


async def body_of(request: Request, most: int, seconds: float) -> bytes:
    """Return the body of a request.

    Raises
    ------
    RequestError
        When it has more than `most` bytes, or takes longer than so many seconds to come.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    body = bytearray()
    with anyio.move_on_after(seconds) as scope:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise _too_large(most)
    if scope.cancelled_caught:
        raise RequestError(408, f"The body did not come within {seconds:g} seconds; send it faster.", "timeout")
    return bytes(body)


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"The body has more than {most:,} bytes; send less at once.", "body_too_large")
