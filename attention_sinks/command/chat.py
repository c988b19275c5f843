"""`attention-sinks chat`: a conversation without end in the terminal."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .check import CacheDtypeOption, Dtype
from .failing import one_line_for_bad_input
from .imports import imports_that_stay

if TYPE_CHECKING:
    from .opening import Opener, Wishes
    from .talking import Talk

EXAMPLES = """\b
Examples:
  attention-sinks chat HuggingFaceTB/SmolLM2-135M-Instruct --session garden
  attention-sinks chat models/my-model.gguf --window 2000 --system "Be brief."
"""


class ThoughtsOption(str, Enum):
    """What becomes of thoughts."""

    keep = "keep"
    forget = "forget"


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", hidden=True)],
    sinks: Annotated[int | None, typer.Option(metavar="N", min=0, help="First tokens to keep (4).")] = None,
    window: Annotated[int | None, typer.Option(metavar="N", min=1, help="Last tokens to keep (1020).")] = None,
    dtype: Annotated[Dtype, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16.")] = Dtype.auto,
    cache_dtype: Annotated[
        CacheDtypeOption | None, typer.Option(metavar="TYPE", help="Rounds keys and values: int8 …")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda:1, mps …")] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="For each answer.")] = 1024,
    temperature: Annotated[float | None, typer.Option(metavar="X", min=0, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of the sampling.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What is never forgotten.")] = None,
    thoughts: Annotated[ThoughtsOption | None, typer.Option(metavar="WHAT", help="keep or forget.")] = None,
    no_thinking: Annotated[bool, typer.Option("--no-thinking", help="Ask the template for none.")] = False,
    template_kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="For the template.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Slow to begin, then faster.")] = False,
    session: Annotated[str | None, typer.Option(metavar="NAME", help="Keep it; go on with it.")] = None,
    session_folder: Annotated[Path | None, typer.Option(metavar="PATH", hidden=True)] = None,  # help fits a screen
) -> None:
    """Chat without end with MODEL, a name on the hub, folder or .gguf file."""
    with one_line_for_bad_input("chat"):
        options = _template_kwargs(template_kwargs, no_thinking)
        with imports_that_stay():
            import torch

            from ..settings import cache_dtype_named
            from .opening import Wishes
            from .quiet import quiet_libraries
            from .sessions import session_file

        if session is None and session_folder is not None:
            raise ValueError("--session-folder needs the name of a chat, --session NAME.")
        if seed is not None:
            torch.manual_seed(seed)
        with quiet_libraries():
            wishes = Wishes(
                system=system,
                thoughts=None if thoughts is None else thoughts.value,
                template_kwargs=options,
                sinks=sinks,
                window=window,
                cache_dtype=None if cache_dtype is None else cache_dtype_named(cache_dtype.value),
                generation_config=_generation_config(max_new_tokens, temperature),
                session=session,
                file=None if session is None else session_file(session, session_folder),
                compile=compile,
            )
            talk = _begin(_opener(model, wishes, dtype.value, device), model)
        talk.go_on()
    if session is not None:
        talk.note(f"--session {session} goes on with this conversation")


def _template_kwargs(text: str | None, no_thinking: bool) -> dict[str, Any] | None:
    """Return the keywords for the chat template; None where there are none."""
    from .typed import json_object

    options = {} if text is None else json_object("--template-kwargs=", text)
    return (options | ({"enable_thinking": False} if no_thinking else {})) or None


def _generation_config(max_new_tokens: int, temperature: float | None) -> Any:
    """Return how answers are made. What nobody asks for is left to the model."""
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return GenerationConfig(max_new_tokens=max_new_tokens, **sampling)


def _opener(name: str, wishes: Wishes, dtype: str, device: str | None) -> Opener:
    """Look at a model, refuse what cannot chat, and load it."""
    from .loading import load_to_chat
    from .opening import Opener

    given = wishes.system, wishes.template_kwargs, wishes.sinks, wishes.window
    return Opener(*load_to_chat(name, *given, dtype, wishes.cache_dtype or "auto", device), wishes)


def _begin(opener: Opener, name: str) -> Talk:
    """Open the chat, and say what was opened."""
    from .talking import Talk

    chat = opener.open()
    talk = Talk(opener, chat)
    settings, length = chat.cache.settings, chat.cache.get_seq_length()
    talk.note(f"{name}: {settings.sink_size:,} sinks and a window of {settings.window_size:,} tokens; /help")
    if length:
        talk.note(f"goes on with --session {opener.wishes.session}, {length:,} tokens long")
    if opener.wishes.compile:
        talk.note("the first answer compiles the model, which may take a minute or two")
    return talk
