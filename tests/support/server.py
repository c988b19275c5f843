"""A server in a thread of this process, and what clients send to it and read of its streams."""

import threading
import time
from contextlib import contextmanager

from openai import OpenAI

from attention_sinks.server.app import create_app
from attention_sinks.server.histories import Histories
from attention_sinks.server.running import server_of
from attention_sinks.server.settings import ServerSettings

MODEL = "tiny"


class Served:
    """A running server, its pool, and clients."""

    def __init__(self, server, pool, histories):
        self.pool, self.histories, self.port = pool, histories, server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, key="none"):
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(self, messages, client=None, **options):
        options = {"temperature": 0, "model": MODEL, **options}
        return (client or self.client()).chat.completions.create(messages=messages, **options)

    @contextmanager
    def tokens_read(self):
        """A list that then holds how many tokens of messages were fed meanwhile."""
        before, read = self.pool.numbers.tokens_read, []
        yield read
        read.append(self.pool.numbers.tokens_read - before)


@contextmanager
def serving(pool, folder=None, model=MODEL, page=False, **settings):
    """Serve a pool, which is closed at the end, in a thread; without the page, which takes a second to make."""
    histories = Histories(None if folder is None else str(folder / "histories"))
    app = create_app(pool, histories, model, ServerSettings(page=page, **settings))
    server = server_of(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Served(server, pool, histories)
    finally:
        server.should_exit = True
        thread.join(30)
        histories.close()
        pool.close()
        assert not thread.is_alive()


def user(text):
    return {"role": "user", "content": text}


def history_of(chunks):
    """The text of a stream."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def wait_until_free(served):
    """Wait until no answer is being made."""
    deadline = time.monotonic() + 20
    while served.pool.numbers.rows_in_use:
        assert time.monotonic() < deadline, "a row is still in use"
        time.sleep(0.02)
