"""What a chat says of what its window still holds, its transcript, and the file that it keeps by itself."""

import os

import hypothesis
import pytest
from hypothesis import strategies as st
from transformers import GenerationConfig

from attention_sinks import StreamingChat, inject_attention_sinks
from attention_sinks.chat.rows import TurnLog
from support.helpers import refused, tiny_llama
from support.toy_tokenizers import WORDS, thinking_tokenizer, word_tokenizer

pytestmark = pytest.mark.each_release

S, W = 4, 24
ANSWER = GenerationConfig(suppress_tokens=[0, 1, 2, 3, 4, 5], max_new_tokens=5)


def chat_with(window=W, tokenizer=None, **options):
    model = inject_attention_sinks(tiny_llama(), S, window)
    options.setdefault("generation_config", ANSWER)
    return StreamingChat(model, tokenizer or word_tokenizer(), **options)


class Gone:
    """What has left the window, by conversation: the number of its turn for each token, and the token."""

    def __init__(self):
        self.tokens = {}

    def __call__(self, turn, tokens, conversation=0):
        assert tokens
        self.tokens.setdefault(conversation, []).extend((turn, token) for token in tokens)


def fed_by(chat):
    """A list that grows by what the model reads, for a chat of one conversation."""
    fed = []
    chat.model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.extend(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    return fed


def test_every_token_leaves_once_in_order_and_sinks_never(says):
    gone = Gone()
    chat = chat_with(on_evict=gone)
    fed, starts = fed_by(chat), []
    for turn in range(8):
        unfed = chat._stream.rows[0].unfed if turn else ()
        starts.append(len(fed) + len(unfed))
        says(chat, f"w{turn} w30 w31")
        chat.ask("w20 " * (turn % 3 + 1))
        seen = chat.cache.tokens_seen.item()
        left = gone.tokens.get(0, [])
        assert [token for _, token in left] == fed[S : max(seen - W, S)]
        numbers = [
            max(number for number, start in enumerate(starts, 1) if start <= S + index) for index in range(len(left))
        ]
        assert [number for number, _ in left] == numbers


def test_turns_in_the_window_are_those_of_which_nothing_has_left(says):
    gone = Gone()
    chat = chat_with(on_evict=gone)
    assert chat.turns_in_window == []
    for turn in range(1, 7):
        says(chat, "w30 w31")
        chat.ask("w20 w21")
        touched = {number for number, _ in gone.tokens.get(0, [])}
        assert chat.turns_in_window == [number for number in range(1, turn + 1) if number not in touched]
    assert 6 in chat.turns_in_window and 1 not in chat.turns_in_window


def test_a_long_message_leaves_while_it_is_read(says):
    gone = Gone()
    chat = chat_with(on_evict=gone)
    says(chat, "w30")
    next(chat.send("w20 " * 900))
    assert 0 <= chat.cache.tokens_seen.item() - W - S - len(gone.tokens[0]) <= 2  # of the answer
    chat.stop()
    assert chat.turns_in_window == []


def test_conversations_are_told_apart(says):
    gone = Gone()
    chat = chat_with(on_evict=gone)
    for _ in range(4):
        says(chat, "w30 w31 w32", "w33")
        chat.ask(["w20", "w21 w22 w23"])
    for row, seen in enumerate(chat.cache.tokens_seen.tolist()):
        assert len(gone.tokens[row]) == seen - W - S
    assert [turns[-1] for turns in chat.turns_in_window] == [4, 4]


def test_forgotten_thoughts_have_not_left_the_window(says):
    gone = Gone()
    chat = chat_with(
        tokenizer=thinking_tokenizer(), on_evict=gone, thoughts="forget", generation_config=GenerationConfig()
    )
    for _ in range(3):
        says(chat, "<think> " + "w1 " * 60 + "</think> w7")
        chat.ask("w20")
    assert len(gone.tokens.get(0, [])) == max(chat.cache.tokens_seen.item() - W - S, 0)
    assert WORDS.index("w1") not in [token for _, token in gone.tokens.get(0, [])]


def test_an_error_of_the_callback_leaves_the_chat_right(says):
    def fail(turn, tokens):
        raise ZeroDivisionError

    chat, other = chat_with(on_evict=fail), chat_with()
    says(chat, "w30")
    with pytest.raises(ZeroDivisionError):
        chat.ask("w20 " * 60)
    chat.on_evict = None
    says(other, "")
    other.ask("w20 " * 60)
    said = []
    for each in (chat, other):
        says(each, "w31")
        each.ask("w21")
        said.append(each._stream.rows[0].turn)
    assert said == [2, 2]


@hypothesis.given(
    turns=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=12),
    sinks=st.integers(0, 6),
    window=st.integers(1, 15),
)
def test_a_log_of_turns_loses_no_token(turns, sinks, window):
    """Turns of so many tokens, of which some are taken back before they count."""
    log, stream, starts, left = TurnLog(), [], {}, []
    for number, (size, taken_back) in enumerate(turns, 1):
        tokens = [100 * number + index for index in range(size)]
        if taken_back:
            log.begin(number, len(stream))
            log.write(len(stream), [7] * size)
        log.begin(number, len(stream))
        log.write(len(stream), tokens)
        starts[number] = len(stream)
        stream += tokens
        left += [token for _, gone in log.evict(len(stream), sinks, window) for token in gone]
        oldest = max(len(stream) - window, 0)
        assert left == stream[sinks : max(oldest, sinks)]
        expected = [
            each
            for each, start in starts.items()
            if all(place < sinks or place >= oldest for place in range(start, starts.get(each + 1, len(stream))))
        ]
        assert log.whole(number, len(stream), sinks, window) == expected


# ---- transcripts


def test_a_transcript_is_what_was_said_and_is_saved(says, tmp_path):
    chat = chat_with(keep_transcript=True)
    says(chat, "w30 w31")
    chat.ask("w20")
    answer = chat.send([{"role": "system", "content": "w1"}, {"role": "user", "content": "w21"}])
    says(chat, "w32 w33 w34")
    next(answer)
    chat.save(tmp_path / "amid")
    answer.close()
    expected = [
        {"role": "user", "content": "w20"},
        {"role": "assistant", "content": "w30 w31"},
        {"role": "system", "content": "w1"},
        {"role": "user", "content": "w21"},
        {"role": "assistant", "content": answer.text},
    ]
    assert chat.transcript == expected
    chat.save(tmp_path / "chat")
    assert StreamingChat.load(tmp_path / "chat", chat.model, chat.tokenizer).transcript == expected
    amid = StreamingChat.load(tmp_path / "amid", chat.model, chat.tokenizer).transcript
    assert amid[:-1] == expected[:-1] and answer.text.startswith(amid[-1]["content"].strip())
    assert chat_with().transcript is None


# ---- saving by itself


def test_a_chat_saves_itself_after_every_turn(says, tmp_path):
    path = tmp_path / "chat"
    chat = chat_with(autosave=path)
    assert not path.exists()
    for turn in range(1, 4):
        says(chat, "w30")
        chat.ask("w20")
        other = StreamingChat.load(path, chat.model, chat.tokenizer)
        assert repr(other) == repr(chat) and f"turns={turn}" in repr(chat)
    answer = chat.send("w21")
    says(chat, "w31 w32 w33")
    next(answer)
    chat.stop()
    assert repr(StreamingChat.load(path, chat.model, chat.tokenizer)) == repr(chat)
    assert [file.name for file in tmp_path.iterdir()] == ["chat"]


def test_an_unwritable_file_is_refused_before_the_chat_begins(tmp_path):
    refused(OSError, lambda: chat_with(autosave=tmp_path / "nowhere" / "chat"), "autosave", "nowhere")
    refused(OSError, lambda: chat_with(autosave=tmp_path), "autosave")


def test_a_chat_goes_on_where_its_file_cannot_be_written(says, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    chat = chat_with(autosave=folder / "chat")
    os.rmdir(folder)
    says(chat, "w30")
    with pytest.raises(OSError):
        chat.ask("w20")
    folder.mkdir()
    says(chat, "w31")
    assert chat.ask("w21").text == "w31"
    assert "turns=2" in repr(StreamingChat.load(folder / "chat", chat.model, chat.tokenizer))
