"""The page, in a real browser: what somebody sees who types, waits, stops, leaves and comes back."""

import base64
import time
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import expect

from attention_sinks.server.running import GRACE_SECONDS
from support.browser import CHROMIUM, WITHOUT, ChatPage, browser
from support.pools import S, W
from support.server import user

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT)


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def look(chromium):
    """`look(served)` opens the page in a browser of its own, that no other knows."""
    contexts = []

    def open_page(served, **options):
        contexts.append(chromium.new_context(**options))
        return ChatPage(contexts[-1].new_page(), served.url)

    yield open_page
    for context in contexts:
        context.close()


def test_a_conversation_that_passes_the_window(serve, look, alone, tmp_path):
    chat, told = alone(max_new_tokens=20), []
    with serve(tmp_path, page=True, usual_tokens=20) as served:
        page = look(served)
        assert page.number("tokens-seen") == "0" and page.number("memory") == "–"
        for text in ("w7 w8 w9", "w10", "w11 w12", "w13"):
            told += [text, str(chat.ask(text))]
            assert page.ask(text) == told[-1]
        assert page.said == told
        seen = int(chat.cache.tokens_seen)
        assert seen > S + W and page.number("tokens-seen") == f"{seen}"
        assert page.number("forgotten") == f"{seen - S - W}"
        assert page.number("sinks") == f"{S} of {S}" and page.number("window") == f"{W} of {W}"
        assert page.number("memory") == f"{chat.cache.nbytes / 1024:.1f} KiB"
        assert "tokens/s" in page.number("speed")

        page.reload()
        expect(page.page.locator("#chat .message .prose")).to_have_count(len(told))
        assert page.said == told and page.sessions.all_inner_texts() == ["w7 w8 w9"]
        assert page.number("tokens-seen") == f"{seen}"
        assert page.ask("w14") == str(chat.ask("w14"))
        assert not [url for url in page.asked_for if not url.startswith(served.url)]


def test_an_answer_streams_and_is_stopped(serve, look, endless_model):
    with serve(pool={"model": endless_model}, page=True, usual_tokens=8192) as served:
        page = look(served)
        page.begin("w7")
        for _ in range(3):
            page.grows()
        expect(page.button("Send")).to_be_disabled()
        so_far = page.said[1]
        page.button("Stop").click()
        page.is_ready()
        text, seen = page.said[1], page.number("tokens-seen")
        assert text.startswith(so_far) and served.pool.numbers.turns_stopped == 1
        page.reload()
        expect(page.page.locator("#chat .message .prose")).to_have_count(2)
        assert page.said[1] == text and page.number("tokens-seen") == seen
        assert int(page.number("forgotten").replace(",", "")) > 0


def test_an_answer_goes_on_while_nobody_looks(serve, look, endless_model):
    with serve(pool={"model": endless_model}, page=True, usual_tokens=8192) as served:
        page = look(served)
        page.begin("w7")
        page.reload()
        expect(page.page.locator("#chat .message .prose")).to_have_count(2)
        page.grows()
        page.button("Stop").click()
        page.is_ready()


def test_sessions_are_chosen_and_deleted(serve, look, tmp_path):
    with serve(tmp_path, page=True, usual_tokens=5) as served:
        page = look(served)
        expect(page.button("Delete this conversation")).to_be_disabled()
        first = ["w7 w8", page.ask("w7 w8")]
        page.button("New conversation").click()
        expect(page.page.locator("#chat .message .prose")).to_have_count(0)
        second = ["w9", page.ask("w9")]
        assert page.said == second
        assert page.sessions.all_inner_texts() == ["w9", "w7 w8"]
        page.sessions.nth(1).click()
        expect(page.page.locator("#chat .message .prose").first).to_have_text("w7 w8")
        assert page.said == first
        page.button("Delete this conversation").click()
        expect(page.sessions).to_have_count(1)
        expect(page.page.locator("#chat .message .prose")).to_have_count(0)
        assert page.sessions.all_inner_texts() == ["w9"] and len(served.pool.sessions()) == 1
        assert served.client().get("/sessions", cast_to=object)["data"] == []  # these are the page's own


def test_a_session_that_cannot_be_read(serve, look, tmp_path):
    with serve(tmp_path, page=True, usual_tokens=5, pool={"max_session_bytes": 1}) as served:
        page = look(served)
        page.ask("w7 w8")
        for file in (tmp_path / "conversations").rglob("*.safetensors"):
            file.write_bytes(file.read_bytes()[:100])
        page.text.fill("w9")
        page.text.press("Enter")
        expect(page.page.get_by_test_id("toast-body")).to_be_visible()
        assert page.text.input_value() == "w9"  # nothing that was typed is lost


def test_messages_are_text(serve, look):
    evil = '<img src="/x" onerror="window.done=1"> <script>window.done=1</script> ![x](http://127.0.0.1:9/x.png)'
    with serve(page=True, usual_tokens=3) as served:
        page = look(served)
        loaded = []
        page.page.on("requestfinished", lambda request: loaded.append(request.url))
        page.send(evil)
        page.is_ready()
        assert page.page.evaluate("window.done") is None
        assert not [url for url in loaded if not url.startswith(served.url)]


def test_keys(serve, look):
    with serve(page=True, usual_tokens=3, api_keys=["one", "two"]) as served:
        for given in ("", "Basic !", f"Basic {basic('three')}", "Bearer one"):
            for path in ("/", "/config", "/gradio_api/info"):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(
                        urllib.request.Request(served.url + path, headers={"Authorization": given} if given else {})
                    )
                assert refused.value.code == 401 and "Basic" in refused.value.headers["WWW-Authenticate"]
        owner = look(served, http_credentials={"username": "anybody", "password": "one"})
        owner.ask("w7 w8")
        assert owner.sessions.count() == 1
        other = look(served, http_credentials={"username": "anybody", "password": "two"})
        other.ask("w9")
        assert other.sessions.all_inner_texts() == ["w9"]


def test_the_server_ends_while_somebody_looks(serve, look, endless_model):
    with serve(pool={"model": endless_model}, page=True, usual_tokens=8192) as served:
        page = look(served)
        page.begin("w7")
        page.grows()
        began = time.monotonic()
    assert time.monotonic() - began < GRACE_SECONDS


def basic(key):
    return base64.b64encode(f"me:{key}".encode()).decode()


def test_the_interface_for_programs_is_as_without_the_page(serve):
    with serve(page=True) as served:
        assert served.ask([user("w7")], max_tokens=2).choices[0].finish_reason
        for path in ("/v1/nothing", "/v1/chat/completions"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(served.url + path)
            assert refused.value.code == 404 and b'"error"' in refused.value.read()
