"""The page at `/`: a chat for a browser, its sessions, and what the cache holds."""

from __future__ import annotations

import html
import uuid
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from transformers import GenerationConfig

from ..chat.formats import THOUGHTS
from ..chat.messages import Message
from .conversations import ON_PAGE, Conversations
from .errors import RequestError, failure_of
from .followed import FollowedAnswers, Stand
from .guarded import Guarded
from .keys import Keys
from .picture import STYLE, CachePicture
from .settings import ServerSettings

MOST_SHOWN = 200
"""So many messages are shown, the last ones. The session keeps all of them."""

LONGEST_TITLE = 40
"""A session is called by so many characters of its first message."""

Update = dict[Any, Any]
"""What changes on the page: a component and its new value, for each."""


class Page:
    """What the page does.

    Parameters
    ----------
    conversations : Conversations
        Where its sessions are.
    model : str
        The name of the model.
    settings : ServerSettings
        What a reader may have.
    """

    def __init__(self, conversations: Conversations, model: str, settings: ServerSettings) -> None:
        self._conversations, self._model, self._settings = conversations, model, settings
        config = GenerationConfig(max_new_tokens=settings.usual_tokens)
        self._answers = FollowedAnswers(conversations, config, settings.request_seconds)
        self._build()

    def _build(self) -> None:
        with gr.Blocks(
            title=f"{self._model} · attention_sinks", analytics_enabled=False, fill_height=True, fill_width=True
        ) as blocks:
            self.last = gr.BrowserState(None, storage_key="attention_sinks_session", secret="attention_sinks")
            with gr.Sidebar(width=300):
                self.new = gr.Button("New conversation", variant="secondary")
                self.sessions = gr.Radio([], label="Conversations", elem_id="sessions")
                self.delete = gr.Button("Delete this conversation", variant="stop", size="sm", interactive=False)
            gr.HTML(f"<h1>{html.escape(self._model)}</h1>", elem_id="model")
            self.picture = gr.HTML(CachePicture(self._conversations.pool.sizes).html, elem_id="cache")
            self.chat = gr.Chatbot(
                [],
                show_label=False,
                elem_id="chat",
                scale=1,
                buttons=["copy", "copy_all"],
                feedback_options=None,
                placeholder="Say something. The conversation may be as long as you like.",
            )
            with gr.Row():
                self.text = gr.Textbox(  # not to be written in before it is known which conversation goes on
                    interactive=False,
                    show_label=False,
                    placeholder="Message",
                    lines=1,
                    max_lines=8,
                    scale=8,
                    elem_id="text",
                    autofocus=True,
                )
                self.send = gr.Button("Send", variant="primary", scale=1, min_width=80, interactive=False)
                self.stop = gr.Button("Stop", variant="stop", scale=1, min_width=80, interactive=False)
        self.blocks = blocks
        with blocks:
            self._connect()

    def _connect(self) -> None:
        """Say what happens when."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        seen = [self.last, self.sessions, self.chat, self.picture, self.text, self.send, self.stop, self.delete]
        opened = self.blocks.load(self.open, self.last, seen, **quiet)
        chosen = self.sessions.input(self.open, self.sessions, seen, **quiet)
        asking = [
            event(self.ask, [self.text, self.sessions], seen, **quiet) for event in (self.send.click, self.text.submit)
        ]
        followers: list[Any] = [opened, chosen, *asking]
        self.sessions.input(None, cancels=[opened, *asking])
        self.new.click(lambda: None, None, self.sessions, cancels=followers, **quiet).then(
            self.open, self.sessions, seen, **quiet
        )
        self.stop.click(self.end, self.sessions, None, **quiet)
        self.delete.click(self.remove, self.sessions, seen, cancels=followers, **quiet)

    async def open(self, session: str | None, request: gr.Request) -> AsyncIterator[Update]:
        """Show a session, and the answer that is being made in it; a new one for None, or where it is gone."""
        owner = _owner(request)
        names = await self._names(owner)
        is_there = session in names or (session is not None and self._answers.find(owner, session) is not None)
        async for update in self._shown(owner, session if is_there else None):
            yield update

    async def ask(self, text: str, session: str | None, request: gr.Request) -> AsyncIterator[Update]:
        """Send a message, and show its answer while it is made."""
        owner = _owner(request)
        if not text.strip():
            raise gr.Error("Write a message first.", duration=5)
        session = session or f"{uuid.uuid4().hex[:8]} {_title(text)}"
        try:
            followed = await self._answers.begin(owner, session, text)
        except Exception as error:
            raise _told(error) from error
        yield self._controls(session, await self._names(owner, session), is_answered=True) | {
            self.text: gr.Textbox("", interactive=True)
        }
        async for update in self._shown(owner, session):
            yield update
        if followed.error is not None:
            raise _told(followed.error) from followed.error

    def end(self, session: str | None, request: gr.Request) -> None:
        """Stop the answer that is being made."""
        if session is not None and (followed := self._answers.find(_owner(request), session)) is not None:
            followed.stop()

    async def remove(self, session: str | None, request: gr.Request) -> AsyncIterator[Update]:
        """Delete a session, and show a new one."""
        owner = _owner(request)
        try:
            await run_in_threadpool(self._conversations.delete, owner, session or "", ON_PAGE)
        except Exception as error:
            raise _told(error) from error
        async for update in self._shown(owner, None):
            yield update

    async def _shown(self, owner: str, session: str | None) -> AsyncIterator[Update]:
        """Yield what there is to see of a session, until no answer is being made in it."""
        names, speed = await self._names(owner, session), 0.0
        if session is not None and (followed := self._answers.find(owner, session)) is not None:
            yield self._controls(session, names, is_answered=True)
            async for followed in self._answers.looks(owner, session):
                speed = followed.tokens_per_second
                yield self._view(followed.now, speed)
        try:
            stand = Stand([]) if session is None else await self._answers.stand(owner, session)
        except Exception as error:
            yield self._controls(None, names, is_answered=False) | self._view(Stand([]))
            raise _told(error) from error
        yield self._controls(session, names, is_answered=False) | self._view(stand, speed)

    def _controls(self, session: str | None, names: list[str], is_answered: bool) -> Update:
        return {
            self.last: session,
            self.sessions: gr.Radio([(_title_of(name), name) for name in names], value=session),
            self.text: gr.Textbox(interactive=True),
            self.send: gr.Button(interactive=not is_answered),
            self.stop: gr.Button(interactive=is_answered),
            self.delete: gr.Button(interactive=session is not None and not is_answered),
        }

    def _view(self, stand: Stand, tokens_per_second: float = 0.0) -> Update:
        turns = sum(message["role"] == "user" for message in stand.messages)
        picture = CachePicture(
            self._conversations.pool.sizes, stand.tokens_seen, stand.nbytes, tokens_per_second, stand.whole_turns, turns
        )
        shown = [part for message in stand.messages[-MOST_SHOWN:] for part in _parts_of(message)]
        return {self.chat: shown, self.picture: picture.html}

    async def _names(self, owner: str, new: str | None = None) -> list[str]:
        """Return the names of the sessions of a reader, a new one and those used last first."""
        names = [name for name, _, _ in await run_in_threadpool(self._conversations.named, owner, ON_PAGE)]
        return names if new is None or new in names else [new, *names]


def _parts_of(message: Message) -> list[dict[str, Any]]:
    """Return a message as the chat shows it, with its thoughts before it."""
    thoughts = message.get(THOUGHTS)
    before = [{"role": "assistant", "content": thoughts, "metadata": {"title": "Thoughts"}}] if thoughts else []
    return [*before, {"role": message["role"], "content": message.get("content") or ""}]


def _title(text: str) -> str:
    """Return what a session is called that begins with `text`."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= LONGEST_TITLE else f"{words[: LONGEST_TITLE - 1]}…"


def _title_of(session: str) -> str:
    return session.partition(" ")[2] or session


def _owner(request: gr.Request) -> str:
    return str(request.username)


def _told(error: Exception) -> gr.Error:
    """Return how the page tells of an error."""
    return gr.Error(html.escape(str(failure_of(error))), duration=None, print_exception=False)


def mount_page(app: FastAPI, conversations: Conversations, keys: Keys, model: str, settings: ServerSettings) -> None:
    """Add the page to `app`, at every path that it has not; where there are keys, a browser asks for one."""

    def reader(request: Request) -> str:
        try:
            return keys.owner_at_page(request.headers.get("Authorization"))
        except RequestError as error:
            header = {"WWW-Authenticate": 'Basic realm="API key as password", charset="UTF-8"'}
            raise HTTPException(error.status, "The API key is missing or wrong; give it as password.", header) from None

    app.add_middleware(Guarded)
    gr.mount_gradio_app(
        app,
        Page(conversations, model, settings).blocks,
        path="",
        auth_dependency=reader,
        css=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=1,
    )
