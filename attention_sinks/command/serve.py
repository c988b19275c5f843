"""`attention-sinks serve`: an OpenAI-compatible server of endless conversations."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .chat import ThoughtsOption
from .check import Dtype
from .failing import one_line_for_bad_input
from .imports import imports_that_stay
from .typed import json_object

if TYPE_CHECKING:
    from ..server.settings import ServerSettings

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
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda:1, mps …")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Where a client sends none.")] = None,
    thoughts: Annotated[ThoughtsOption, typer.Option(metavar="WHAT", help="keep or forget.")] = ThoughtsOption.keep,
    template_kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="For the template.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Slow to begin, then faster.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model.")] = None,
    sessions: Annotated[str | None, typer.Option(metavar="PATH", help="Folder or URL of conversations.")] = None,
    page: Annotated[bool | None, typer.Option("--page/--no-page", help="Have a page for a browser.")] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep none of them in a folder.")] = False,
) -> None:
    """Serve endless conversations with MODEL to clients of OpenAI's API."""
    with one_line_for_bad_input("serve"):
        options = None if template_kwargs is None else json_object("--template-kwargs=", template_kwargs)
        with imports_that_stay():
            from ..server.settings import settings_from
            from .loading import load_to_chat
            from .quiet import quiet_libraries

        settings = settings_from(host=host, port=port, api_keys=api_key or None, no_auth=no_auth or None, page=page)
        if in_memory and sessions is not None:
            raise ValueError(f"--in-memory and --sessions={sessions} exclude each other; leave one out.")
        with quiet_libraries():
            loaded, tokenizer = load_to_chat(model, system, options, sinks, window, dtype.value, device)
        pool = {
            "rows": rows,
            "max_waiting": max_waiting,
            "system": system,
            "thoughts": thoughts.value,
            "chat_template_kwargs": options,
            "compile": compile,
        }
        _serve(loaded, tokenizer, pool, None if in_memory else sessions or str(_folder()), name or model, settings)


def _serve(
    model: Any, tokenizer: Any, options: dict[str, Any], folder: str | None, name: str, settings: ServerSettings
) -> None:
    """Serve until the process is told to end."""
    from ..pool.pool import StreamPool
    from ..server.app import create_app
    from ..server.histories import Histories
    from ..server.running import server_of

    conversations, histories = (
        None if folder is None else f"{folder}/{kind}" for kind in ("conversations", "histories")
    )
    expiry = settings.session_expiry
    with _listening(settings.host, settings.port) as listener:
        try:
            pool = StreamPool(model, tokenizer, sessions=conversations, session_expiry=expiry, **options)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{error} To serve {name!r}, keep conversations in memory, --in-memory."
            ) from error
        with pool:
            app = create_app(pool, Histories(histories, expiry), name, settings)
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            address = f"http://{host}:{listener.getsockname()[1]}"
            told = f"{address}/v1 (a page: {address}/)" if settings.page else f"{address}/v1"
            typer.echo(f"serving {name} at {told}", err=True)
            server_of(app, settings.max_connections).run([listener])


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; OSError when that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"--host={host} --port={port}: {error.strerror or error}; choose another.") from error


def _folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("attention_sinks", appauthor=False) / "served"
