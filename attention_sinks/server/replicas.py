"""More than one replica of the server, by Ray Serve: each conversation goes on in the replica that holds it.

A front reads each request and sends it on by a key that stays the same for all requests of one conversation (`routes`).
Ray's consistent hashing takes a key to the same replica as long as that lives, and then to another, which finds the
conversation in the folder of sessions that all share.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any

import ray
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ..pool.pool import StreamPool
from .app import create_app
from .errors import RequestError, failure_of
from .histories import Histories
from .limits import body_of
from .routes import ROUTE, route_of
from .running import GRACE_SECONDS
from .settings import ServerSettings

APP = "attention_sinks"
"""The name of the application in the cluster."""

ROUTER: Any = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
HEALTH_SECONDS = 2.0
OF_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_worker_niceness": "0",  # by default, whatever else runs on the machine goes before the replicas
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine needs more than five seconds to start a process
}
"""Settings of a cluster of this machine, in the environment, where nobody has made others."""

TRIES = 3
"""A request of which nothing was answered is sent to so many replicas, when they die."""

Head = tuple[int, list[tuple[bytes, bytes]]]
"""The status and the headers of a response."""

Opened = Callable[[], tuple[StreamPool, Histories]]
"""Makes what a replica serves. It is called in the replica's own process."""


class Replica:
    """One process that holds the model, and answers requests as a server of its own would.

    Parameters
    ----------
    opened : callable
        Makes the pool and the histories.
    model : str
        The name of the model.
    settings : ServerSettings
        What clients may have.
    """

    def __init__(self, opened: Opened, model: str, settings: ServerSettings) -> None:
        self._pool, self._histories = opened()
        self._app = create_app(self._pool, self._histories, model, settings)
        self._life, self._starting = AsyncExitStack(), asyncio.Lock()
        self._has_begun = False
        self._name = serve.get_replica_context().replica_id.unique_id.encode()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Head | bytes, None]:
        """Yield the head of the response, then its body in pieces."""
        await self._begin()
        messages: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        asked, gone = [body], asyncio.Event()

        async def receive() -> MutableMapping[str, Any]:
            if asked:
                return {"type": "http.request", "body": asked.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.create_task(self._app({**scope, "type": "http"}, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield message["status"], [*message["headers"], (b"x-replica", self._name)]
                elif message.get("body"):
                    yield message["body"]
            await task
        finally:
            gone.set()
            if not task.done():  # the client has gone: what it asked for is stopped
                task.cancel()

    async def _begin(self) -> None:
        async with self._starting:
            if not self._has_begun:
                await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
                self._has_begun = True

    def __del__(self) -> None:
        if (pool := getattr(self, "_pool", None)) is not None:
            pool.close()


class Front:
    """Takes requests from outside, and sends each to the replica that holds its conversation.

    Parameters
    ----------
    replicas : DeploymentHandle
        The replicas.
    settings : ServerSettings
        How large a request may be.
    """

    def __init__(self, replicas: DeploymentHandle[Any], settings: ServerSettings) -> None:
        self._replicas, self._settings = replicas.options(stream=True), settings

    async def __call__(self, http: Request) -> Response:
        try:
            body = await body_of(http, self._settings.max_body_bytes, self._settings.body_seconds)
            parts = self._parts(_scope_of(http, route := route_of(http, body)), body, route)
            status, headers = await anext(parts)
        except Exception as error:
            return failure_of(error).response
        is_stream = (b"content-type", b"text/event-stream; charset=utf-8") in headers
        response = StreamingResponse(_told(parts, http.url.path) if is_stream else parts, status)
        response.raw_headers = headers
        return response

    async def _parts(self, scope: dict[str, Any], body: bytes, route: str) -> AsyncGenerator[Any, None]:
        """Yield head and body of the response. A request of which nothing was answered survives its replica."""
        has_head = False
        for is_last in [False] * (TRIES - 1) + [True]:
            answer: Any = self._replicas.options(session_id=route).answer.remote(scope, body)
            try:
                async for part in answer:
                    yield part
                    has_head = True
                return
            except RayActorError as error:
                if has_head or is_last:
                    raise RequestError(503, "The replica has died; send the request again.", "replica_died") from error
            finally:
                answer.cancel()


async def _told(parts: AsyncGenerator[bytes, None], path: str) -> AsyncGenerator[bytes, None]:
    """Yield the events of a response; the last one tells what has ended it early."""
    try:
        async for part in parts:
            yield part
    except RequestError as error:
        told = error.body["error"]
        if path == "/v1/responses":
            yield f"event: error\ndata: {json.dumps({**told, 'type': 'error'})}\n\n".encode()
        else:
            yield f"data: {json.dumps(error.body)}\n\ndata: [DONE]\n\n".encode()


def _scope_of(http: Request, route: str) -> dict[str, Any]:
    """Return what a replica is told of a request, besides its body."""
    scope = http.scope
    headers = [(name, value) for name, value in scope["headers"] if name != ROUTE.encode()]
    told = ("http_version", "method", "path", "query_string", "scheme", "client", "server")
    return {
        **{name: scope[name] for name in told if name in scope},
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "raw_path": scope["path"].encode(),
        "root_path": "",
        "headers": [*headers, (ROUTE.encode(), route.encode())],
    }


def start_replicas(opened: Opened, model: str, settings: ServerSettings, count: int, gpus: float) -> None:
    """Start a front and its replicas in the cluster that `RAY_ADDRESS` names, or else in one of this machine.

    Parameters
    ----------
    opened : callable
        Makes what a replica serves.
    model : str
        The name of the model.
    settings : ServerSettings
        Where to listen, and what clients may have.
    count : int
        How many replicas there are.
    gpus : float
        How many GPUs each of them takes. The cores of this machine are shared out.

    Raises
    ------
    ChildProcessError
        When the replicas do not start.
    """
    for name, value in OF_RAY.items():
        os.environ.setdefault(name, value)
    cores, local = 1, dict[str, Any]()
    if "RAY_ADDRESS" not in os.environ:  # a cluster of its own, which no other machine reaches
        cores = max(1, (os.cpu_count() or 1) // count)
        local = {"num_cpus": cores * count, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(log_to_driver=False, logging_level=logging.WARNING, **local)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    both: dict[str, Any] = {
        "max_ongoing_requests": settings.max_connections,
        "graceful_shutdown_timeout_s": GRACE_SECONDS,
        "health_check_period_s": HEALTH_SECONDS,
        "logging_config": quiet,
    }
    route = RequestRouterConfig(request_router_class=ROUTER)
    replica = serve.deployment(
        num_replicas=count,
        ray_actor_options={"num_cpus": cores, "num_gpus": gpus},
        request_router_config=route,
        max_constructor_retry_count=1,
        **both,
    )
    front = serve.deployment(ray_actor_options={"num_cpus": 0}, **both)
    replicas = replica(Replica).bind(opened, model, settings)
    try:
        _start_serve(HTTPOptions(host=settings.host, port=settings.port), quiet)
        serve.run(front(Front).bind(replicas, settings), name=APP, route_prefix="/")
    except (RuntimeError, TimeoutError, RayError) as error:
        raise ChildProcessError(f"the replicas do not start: {_cause()}") from error


def _start_serve(listening: HTTPOptions, logs: LoggingConfig) -> None:
    """Start Ray Serve, and wait longer than it does by itself where the machine is busy."""
    for is_last in [False] * (TRIES - 1) + [True]:
        try:
            serve.start(http_options=listening, logging_config=logs)
            return
        except (TimeoutError, RayError):
            if is_last:
                raise


def _cause() -> str:
    """Return what a replica has raised that does not start, as the status of the application tells it."""
    applications = serve.status().applications
    deployments = applications[APP].deployments.values() if APP in applications else ()
    told = "\n".join(deployment.message for deployment in deployments)
    causes = re.findall(r"^\s*([\w.]*(?:Error|Exception)\b.*)", told, re.MULTILINE)
    return causes[-1] if causes else "Ray's log says why."


def stop_replicas() -> None:
    """End the front and all replicas. Turns that have ended are kept."""
    serve.shutdown()
    ray.shutdown()
