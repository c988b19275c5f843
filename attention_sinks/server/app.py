"""The application: which paths there are, and who may ask there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers import GenerationConfig

from .. import __version__
from ..pool.pool import StreamPool
from ..pool.prometheus import PoolCollector
from .answering import Answering
from .completions import Completion
from .conversations import Asked, Conversations
from .errors import RequestError, failure_of
from .histories import Histories
from .keys import Keys
from .limits import body_of
from .requests import AnswerRequest, ChatRequest
from .response_requests import ResponseRequest
from .responses import Responding
from .routes import response_name
from .settings import ServerSettings

OPENED = int(time.time())
EXPIRY_SECONDS = 60.0
"""Sessions that have expired are deleted this often."""

ResultT = TypeVar("ResultT")
RequestT = TypeVar("RequestT", bound=AnswerRequest)


class Service:
    """What all requests share.

    Parameters
    ----------
    pool : StreamPool
        The conversations.
    histories : Histories
        What was said in those that have no name.
    model : str
        The name of the model.
    settings : ServerSettings
        What clients may have.
    """

    def __init__(self, pool: StreamPool, histories: Histories, model: str, settings: ServerSettings) -> None:
        self.pool, self.histories, self.model, self.settings = pool, histories, model, settings
        self.conversations = Conversations(pool, histories, f"{model} {pool.sizes}", settings.sessions_per_key)
        self.keys = Keys(settings.keys)
        self.registry = CollectorRegistry()
        self.registry.register(PoolCollector(lambda: pool.numbers))

    def owner(self, authorization: Annotated[str | None, Header()] = None) -> str:
        """Return who asks."""
        return self.keys.owner(authorization)

    async def read(self, http: Request, kind: type[RequestT]) -> RequestT:
        """Return what a client asks for."""
        body = await body_of(http, self.settings.max_body_bytes, self.settings.body_seconds)
        request = await run_in_threadpool(kind.model_validate_json, body)
        self.check_model(request.model)
        return request

    async def complete(self, http: Request, owner: str, session: str | None) -> Response:
        """Answer a request for a chat completion."""
        request = await self.read(http, ChatRequest)
        options, messages = await run_in_threadpool(getattr, request, "conversation")
        asked = Asked(owner, options, messages, self.config(request), request.seed, session)
        completion = Completion(await self.begun(http, asked), self.model)
        if not request.stream:
            return JSONResponse(await unless_gone(http, completion.whole()))
        tells_usage = request.stream_options is not None and request.stream_options.include_usage
        return _stream_of(completion.events(tells_usage))

    async def respond(self, http: Request, owner: str) -> Response:
        """Answer a request for a response."""
        request = await self.read(http, ResponseRequest)
        options, messages = await run_in_threadpool(getattr, request, "conversation")
        name, previous = response_name(http), request.previous_response_id
        asked = Asked(owner, options, messages, self.config(request), request.seed, response=name, previous=previous)
        response = Responding(await self.begun(http, asked), name, self.model, previous)
        if not request.stream:
            return JSONResponse(await unless_gone(http, response.whole()))
        return _stream_of(response.events())

    def config(self, request: AnswerRequest) -> GenerationConfig:
        """Return how an answer is made."""
        return request.generation_config(self.settings.max_tokens, self.settings.usual_tokens)

    async def begun(self, http: Request, asked: Asked) -> Answering:
        """Return an answer of which the first piece is made."""
        answering = Answering(self.conversations, asked, self.settings.request_seconds)
        await unless_gone(http, answering.begin())
        return answering

    def check_model(self, name: str) -> None:
        """Raise RequestError unless it is the model that is served."""
        if name != self.model:
            raise RequestError(
                404, f"The model {name!r:.200} is not served here; ask for {self.model!r}.", "model_not_found", "model"
            )

    async def expire(self) -> None:
        """Delete what has expired, for ever."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            with suppress(OSError):  # it is tried again
                await run_in_threadpool(self.pool.expire)
                await run_in_threadpool(self.histories.expire)


def _stream_of(events: AsyncIterator[str]) -> Response:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def unless_gone(http: Request, work: Awaitable[ResultT]) -> ResultT:
    """Await `work`, and cancel it when the client has gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(499, "The client has gone.", "gone")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def create_app(pool: StreamPool, histories: Histories, model: str, settings: ServerSettings) -> FastAPI:
    """Return the application that serves `model` from `pool`, both of which stay the caller's."""
    service = Service(pool, histories, model, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.create_task(service.expire())
        yield
        expiring.cancel()

    app = FastAPI(title="attention_sinks", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    if settings.is_local and not settings.api_keys:  # or any page in a browser could ask, by a name of its own for us
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", settings.host])
    _add_errors(app)
    _add_paths(app, service)
    if settings.page:
        from .page import mount_page  # importing Gradio takes seconds

        mount_page(app, service.conversations, service.keys, model, settings)
    return app


def _add_paths(app: FastAPI, service: Service) -> None:
    owner: Any = Depends(service.owner)
    session: Any = Header(None, alias="X-Session-Id", min_length=1, max_length=256)

    @app.post("/v1/chat/completions")
    async def complete(http: Request, by: str = owner, name: str | None = session) -> Response:
        return await service.complete(http, by, name)

    @app.post("/v1/responses")
    async def respond(http: Request, by: str = owner) -> Response:
        return await service.respond(http, by)

    @app.get("/v1/models")
    async def models(by: str = owner) -> dict[str, Any]:
        return {"object": "list", "data": [_model(service.model)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, by: str = owner) -> dict[str, Any]:
        service.check_model(name)
        return _model(name)

    @app.get("/v1/sessions")
    def sessions(by: str = owner) -> dict[str, Any]:
        found = [
            {"id": name, "object": "session", "used": int(used.timestamp()), "bytes": nbytes}
            for name, used, nbytes in service.conversations.named(by)
        ]
        return {"object": "list", "data": found}

    @app.delete("/v1/sessions/{name:path}")
    def delete(name: str, by: str = owner) -> dict[str, Any]:
        if not service.conversations.delete(by, name):
            raise RequestError(404, f"There is no session {name!r:.200}.", "session_not_found")
        return {"id": name, "object": "session", "deleted": True}

    @app.get("/metrics")
    def metrics(by: str = owner) -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def nothing(http: Request, path: str) -> Response:
        raise RequestError(404, f"{http.method} /v1/{path:.200}: there is no such path, or not with this method.")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": OPENED, "owned_by": "attention_sinks"}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Exception)
    @app.exception_handler(ValueError)
    @app.exception_handler(TypeError)
    @app.exception_handler(RuntimeError)
    @app.exception_handler(RequestError)
    async def refuse(http: Request, error: Exception) -> Response:
        return failure_of(error).response

    @app.exception_handler(RequestValidationError)
    async def refuse_header(http: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return RequestError(400, f"{name}: {first['msg']}.", "invalid_value", name).response

    @app.exception_handler(HTTPException)
    async def no_such_path(http: Request, error: HTTPException) -> Response:
        return RequestError(error.status_code, f"{http.method} {http.url.path:.200}: {error.detail}.").response
