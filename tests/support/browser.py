"""A real browser without a screen."""

import os
import shutil
from contextlib import contextmanager

from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHOUT = "no Chromium is installed: apt-get install chromium"


@contextmanager
def browser():
    """A Chromium. As root it runs without its sandbox, which it refuses there."""
    with sync_playwright() as playwright:
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield running
        running.close()


class ChatPage:
    """The page of a server, as somebody sees it who looks at it.

    Attributes
    ----------
    asked_for : list of str
        All addresses that the page has loaded, or tried to.
    """

    def __init__(self, page, url):
        self.page, self.asked_for = page, []
        page.set_default_timeout(20_000)
        page.on("request", lambda request: self.asked_for.append(request.url))
        page.goto(url)
        expect(self.text).to_be_visible(timeout=120_000)  # its scripts go through two replicas on a busy machine
        self.is_ready()

    @property
    def text(self):
        return self.page.locator("#text textarea")

    @property
    def said(self):
        """The messages on the page."""
        return [" ".join(text.split()) for text in self.page.locator("#chat .message .prose").all_inner_texts()]

    @property
    def sessions(self):
        return self.page.locator("#sessions label")

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def is_ready(self):
        """Wait until the page can send."""
        expect(self.button("Stop")).to_be_disabled(timeout=20_000)
        expect(self.button("Send")).to_be_enabled(timeout=20_000)

    def send(self, text):
        self.text.fill(text)
        self.text.press("Enter")
        expect(self.text).to_have_value("", timeout=20_000)

    def begin(self, text):
        """Send the first message of a conversation, and wait until its answer begins."""
        self.send(text)
        expect(self.page.locator("#chat .message .prose")).to_have_count(2)

    def ask(self, text):
        """Send a message, wait for the whole answer, and return it."""
        self.send(text)
        expect(self.page.locator("#chat .message .prose", has_text=text).last).to_be_visible()
        self.is_ready()
        return self.said[-1]

    def number(self, name):
        """A number beside the picture of the cache."""
        return self.page.locator(f".cache-numbers .{name} dd").inner_text()

    def grows(self):
        """Wait until the last message has become longer."""
        length, longer = (
            len(self.said[-1]),
            "length => [...document.querySelectorAll('#chat .message .prose')].pop().innerText.length > length + 5",
        )
        self.page.wait_for_function(longer, arg=length)

    def reload(self):
        self.page.reload()
        expect(self.text).to_be_enabled(timeout=30_000)
