"""What a request is answered that cannot be done: a status, and an error body as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError
from transformers.utils import logging

from ..cache.files import FileContentError
from ..pool.conversation import ConversationMovedError
from ..pool.host import PoolFullError
from ..sessions.store import SessionInUseError

logger = logging.get_logger(__name__)


class RequestError(Exception):
    """A request that is refused.

    Parameters
    ----------
    status : int
        The HTTP status.
    message : str
        Cause and cure.
    code : str, optional
        A short name of the cause, for programs.
    param : str, optional
        The field of the request that is wrong.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        headers |= {"Retry-After": "1"} if self.status in (429, 503) else {}
        return JSONResponse(self.body, self.status, headers)


def failure_of(error: Exception) -> RequestError:
    """Return what a client is told of an error, and tell the operator of one that no request can help."""
    refusal = _refusal_of(error)
    if refusal is None:
        logger.error(f"a request has failed: {error!r}", exc_info=error)
        refusal = RequestError(500, "The server has failed to answer; its log says why.", "server_error")
    return refusal


def _refusal_of(error: Exception) -> RequestError | None:
    """Return how a request is refused that has met `error`; None for an error that no request can help."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PoolFullError):
        return RequestError(503, "All rows of the model are in use; try again later.", "overloaded")
    if isinstance(error, ConversationMovedError):
        cause = "This conversation has gone on meanwhile; send all of it, without what it is to go on from."
        return RequestError(409, cause, "conversation_moved")
    if isinstance(error, SessionInUseError):
        return RequestError(409, "This session is being answered; wait until that answer has ended.", "session_in_use")
    if isinstance(error, FileContentError):  # its message tells a path
        logger.warning(f"a session cannot be used: {error}")
        cause = "This session cannot be used: its file is damaged, or another model's. Delete it, or name another one."
        return RequestError(409, cause, "session_unusable")
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, (TypeError, ValueError)):
        return RequestError(400, str(error), "invalid_value")
    return None


def _invalid(error: ValidationError) -> RequestError:
    """Return what the first thing is that is wrong in a request."""
    errors = error.errors(include_url=False, include_context=False)
    first = max(errors, key=lambda each: len(each["loc"]))  # of what might have been meant, what fits best
    names = [str(part) for part in first["loc"] if "[" not in str(part)]  # without names of types
    param = ".".join(names) or None
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"{param} is no parameter of this server; leave it out.", "unknown_parameter", param)
    return RequestError(400, f"{param or 'The body'}: {first['msg']}.", "invalid_value", param)
