"""`attention-sinks serve`: an OpenAI-compatible server of endless conversations."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .chat import ThoughtsOption
from .check import CacheDtypeOption, Dtype
from .failing import one_line_for_bad_input
from .imports import imports_that_stay
from .typed import json_object

if TYPE_CHECKING:
    from ..pool.pool import StreamPool
    from ..server.histories import Histories
    from ..server.settings import ServerSettings

    Opened = Callable[[], tuple[StreamPool, Histories]]

EXAMPLES = """\b
Examples:
  attention-sinks serve HuggingFaceTB/SmolLM2-135M-Instruct
  attention-sinks serve models/my-model.gguf --rows 16 --host 0.0.0.0 --api-key KEY
"""


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", hidden=True)],
    host: Annotated[str | None, typer.Option(metavar="NAME", help="Where to listen (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="(8000)")] = None,
    api_key: Annotated[list[str] | None, typer.Option(metavar="KEY", help="That clients must know.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let other machines ask without one.")] = False,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Answers made at once.")] = 8,
    max_waiting: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that wait for a row.")] = 64,
    sinks: Annotated[int | None, typer.Option(metavar="N", min=0, help="First tokens to keep (4).")] = None,
    window: Annotated[int | None, typer.Option(metavar="N", min=1, help="Last tokens to keep (1020).")] = None,
    dtype: Annotated[Dtype, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16.")] = Dtype.auto,
    cache_dtype: Annotated[
        CacheDtypeOption, typer.Option(metavar="TYPE", help="Rounds keys and values: int8 …")
    ] = CacheDtypeOption.auto,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda:1, mps …")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Where a client sends none.")] = None,
    thoughts: Annotated[ThoughtsOption, typer.Option(metavar="WHAT", help="keep or forget.")] = ThoughtsOption.keep,
    template_kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="For the template.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Slow to begin, then faster.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model.")] = None,
    sessions: Annotated[str | None, typer.Option(metavar="PATH", help="Folder or URL of conversations.")] = None,
    page: Annotated[bool | None, typer.Option("--page/--no-page", help="Have a page for a browser.")] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep none of them in a folder.")] = False,
    replicas: Annotated[int, typer.Option(metavar="N", min=1, help="Processes that hold the model, by Ray.")] = 1,
    gpus: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="Of each replica (1 if there are any).")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(metavar="N", min=1, help="Processes that share the model.")] = 1,
) -> None:
    """Serve endless conversations with MODEL to clients of OpenAI's API."""
    with one_line_for_bad_input("serve"):
        options = None if template_kwargs is None else json_object("--template-kwargs=", template_kwargs)
        with imports_that_stay():
            from ..server.settings import settings_from
            from .loading import look_to_chat
            from .quiet import quiet_libraries

        settings = settings_from(host=host, port=port, api_keys=api_key or None, no_auth=no_auth or None, page=page)
        if in_memory and sessions is not None:
            raise ValueError(f"--in-memory and --sessions={sessions} exclude each other; leave one out.")
        if tensor_parallel > 1:
            from .sharing import check_options

            beside = {"--replicas": replicas > 1, "--gpus": gpus is not None, "--compile": compile}
            check_options(tensor_parallel, {**beside, "--device": device is not None})
        pool = {
            "rows": rows,
            "max_waiting": max_waiting,
            "system": system,
            "thoughts": thoughts.value,
            "chat_template_kwargs": options,
            "compile": compile,
            "session_expiry": settings.session_expiry,
        }
        folder = None if in_memory else _absolute(sessions or str(_folder()))
        loading = (_absolute(model), system, options, sinks, window, dtype.value, cache_dtype.value, device)
        opened = partial(open_pool, loading, pool, folder)
        with _listening(settings.host, settings.port) as listener:
            if tensor_parallel > 1:
                _serve_shared(tensor_parallel, loading, pool, folder, name or model, settings, listener)
                return
            if replicas == 1:
                _serve(opened, name or model, settings, listener)
                return
            settings = settings.model_copy(update={"port": listener.getsockname()[1]})
            with quiet_libraries():
                look_to_chat(*loading[:5])  # refused before there is a cluster
        _serve_replicas(opened, name or model, settings, replicas, gpus)


def open_pool(loading: tuple[Any, ...], options: dict[str, Any], folder: str | None) -> tuple[StreamPool, Histories]:
    """Load a model, and return its pool and the histories.

    Parameters
    ----------
    loading : tuple
        Arguments of `load_to_chat`.
    options : dict
        Arguments of `StreamPool`.
    folder : str, optional
        Where conversations are kept; None for memory alone.
    """
    from .loading import load_to_chat
    from .quiet import quiet_libraries

    with quiet_libraries():
        model, tokenizer = load_to_chat(*loading)
    return _pool_of(model, tokenizer, loading[0], options, folder)


def _pool_of(
    model: Any, tokenizer: Any, name: str, options: dict[str, Any], folder: str | None
) -> tuple[StreamPool, Histories]:
    """Return the pool of a model that is loaded, whose user calls it `name`, and the histories."""
    from ..pool.pool import StreamPool
    from ..server.histories import Histories

    conversations, histories = (
        None if folder is None else f"{folder}/{kind}" for kind in ("conversations", "histories")
    )
    try:
        pool = StreamPool(model, tokenizer, sessions=conversations, **options)
    except NotImplementedError as error:
        raise NotImplementedError(f"{error} To serve {name!r}, keep conversations in memory, --in-memory.") from error
    return pool, Histories(histories, options["session_expiry"])


def _serve(opened: Opened, name: str, settings: ServerSettings, listener: socket.socket) -> None:
    """Serve until the process is told to end."""
    _answer(*opened(), name, settings, listener)


def _serve_shared(
    count: int,
    loading: tuple[Any, ...],
    options: dict[str, Any],
    folder: str | None,
    name: str,
    settings: ServerSettings,
    listener: socket.socket,
) -> None:
    """Serve a model that `count` processes share, of which this is the one that clients know."""
    from ..tensor_parallel.processes import shared_model
    from .quiet import quiet_libraries
    from .sharing import load_part, look_to_share

    with quiet_libraries():
        arguments, tokenizer = look_to_share(count, *loading[:7])
    with shared_model(count, partial(load_part, arguments)) as (model, leader):
        options = {**options, "cache_class": leader.cache_class}
        _answer(*_pool_of(model, tokenizer, loading[0], options, folder), name, settings, listener)


def _answer(
    pool: StreamPool, histories: Histories, name: str, settings: ServerSettings, listener: socket.socket
) -> None:
    """Answer clients until the process is told to end."""
    from ..server.app import create_app
    from ..server.running import server_of

    with pool:
        app = create_app(pool, histories, name, settings)
        _tell(name, settings, listener.getsockname()[1])
        server_of(app, settings.max_connections).run([listener])


def _serve_replicas(opened: Opened, name: str, settings: ServerSettings, replicas: int, gpus: float | None) -> None:
    """Serve by several processes until this one is told to end."""
    import torch

    from ..server.replicas import start_replicas, stop_replicas

    gpus = float(torch.cuda.is_available()) if gpus is None else gpus
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    try:
        start_replicas(opened, name, settings, replicas, gpus)
        _tell(name, settings, settings.port)
        ending.wait()
    finally:
        stop_replicas()


def _tell(name: str, settings: ServerSettings, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{port}"
    told = f"{address}/v1 (a page: {address}/)" if settings.page else f"{address}/v1"
    typer.echo(f"serving {name} at {told}", err=True)


def _absolute(path: str) -> str:
    """Return a path that means the same in another process; names and URLs stay as they are."""
    return path if "://" in path or not os.path.exists(path) else os.path.abspath(path)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; OSError when that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"--host={host} --port={port}: {error.strerror or error}; choose another.") from error


def _folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("attention_sinks", appauthor=False) / "served"
