"""By which key a request is routed, so that all requests of one conversation have the same."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any
from urllib.parse import unquote

from fastapi import Request

from .histories import digest

ROUTE = "x-attention-sinks-route"
"""The header by which a replica is told the key."""

KEY = re.compile(r"[0-9a-f]{16}")
RESPONSE_ID = re.compile(r"resp_([0-9a-f]{16})[0-9a-f]{32}")
SESSION_PATH = re.compile(r"/v1/sessions/(.+)")


def route_of(http: Request, body: bytes) -> str:
    """Return the key of a request, 16 hexadecimal digits.

    It is made of the client's key, and of the session's name, or the messages until the first one of the user, or the
    earlier response. All that the page does goes by the client's key alone. What belongs to no conversation goes
    anywhere.
    """
    authorization, path = http.headers.get("authorization"), http.url.path
    if not path.startswith("/v1/") and path not in ("/health", "/metrics"):
        return _key(authorization, "page")
    if (session := http.headers.get("x-session-id")) is not None:
        return _key(authorization, "session", session)
    if (found := SESSION_PATH.fullmatch(path)) is not None:
        return _key(authorization, "session", unquote(found[1]))
    asked = _object(body)
    if isinstance(previous := asked.get("previous_response_id"), str):
        found = RESPONSE_ID.fullmatch(previous)
        return _key(authorization, previous) if found is None else found[1]
    begun = asked.get("messages", asked.get("input"))
    if begun is None:
        return uuid.uuid4().hex[:16]
    try:
        return _key(authorization, "begun", _beginning(begun))
    except RecursionError:  # the replica refuses it
        return _key(authorization)


def response_name(http: Request) -> str:
    """Return the id of a new response, which holds the key that its request was routed by, if it was."""
    route = http.headers.get(ROUTE, "")
    return f"resp_{route if KEY.fullmatch(route) else ''}{uuid.uuid4().hex}"


def _beginning(messages: Any) -> Any:
    """Return the messages until the first one of the user, which the conversation begins with for ever."""
    if not isinstance(messages, list):
        return messages
    users = [count for count, each in enumerate(messages, 1) if isinstance(each, dict) and each.get("role") == "user"]
    return messages[: users[0] if users else len(messages)]


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):  # the replica refuses it
        return {}
    return asked if isinstance(asked, dict) else {}


def _key(*told: Any) -> str:
    return digest(*told)[:16]
