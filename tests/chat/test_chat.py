"""`StreamingChat`: what it feeds, what it says, and how it stops."""

import re
import signal
import threading
from itertools import islice

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from transformers import GenerationConfig

from attention_sinks import AttentionSinkKVCache, StreamingChat, inject_attention_sinks
from attention_sinks.chat import decoding
from references.naive import naive_logits
from support.helpers import (
    BAD,
    assert_close,
    assert_same_state,
    assert_tokens_follow,
    random_ids,
    refused,
    state_of,
    stream,
    tiny_llama,
)
from support.pages import run_block, save_tiny_checkpoint
from support.toy_tokenizers import (
    BOS_ONCE,
    CHATML,
    DEFAULT_SYSTEM,
    NO_SYSTEM,
    NUMBERS_THE_LAST,
    WORDS,
    byte_tokenizer,
    word_tokenizer,
)

pytestmark = pytest.mark.each_release

S, W = 4, 12
QUESTIONS = ["w1 w2", "w3", "w4 w5 w6 w7 w8", "w9 w10", "w11"]
END = WORDS.index("<end>")
ENDS = [END, *range(30, 50)]  # a third of what the model says ends its turn
SPEAKS = {"suppress_tokens": [0, 2, 3, 4, 5], "max_new_tokens": 9}  # words without a meaning to the template


def chat_with(template=CHATML, seed=0, tokenizer=None, model=None, **options):
    model = model or inject_attention_sinks(tiny_llama(seed), S, W)
    options.setdefault("generation_config", GenerationConfig(eos_token_id=END, **SPEAKS))
    return StreamingChat(model, tokenizer or word_tokenizer(template), **options)


class Fed:
    """Every token that the model reads, by row, and how many columns each call has."""

    def __init__(self, model):
        self.rows, self.calls, self.lengths = [], [], []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        ids, mask = args[0] if args else kwargs["input_ids"], kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        self.rows = self.rows or [[] for _ in ids]
        self.calls.append(ids.shape[1])
        for row, new, real in zip(self.rows, ids, mask.bool(), strict=True):
            row += new[real].tolist()
        self.lengths.append(len(self.rows[0]))


def say(chat, text):
    """The whole answer; for several conversations a list."""
    pieces = list(chat.send(text))
    return "".join(pieces) if isinstance(text, str) else ["".join(parts) for parts in zip(*pieces, strict=True)]


def assert_right_answer(chat, fed, text):
    """The chat says what a model says that reads all that was fed from the start, at every step."""
    calls, settings = len(fed.calls), chat.cache.settings
    answer = chat.tokenizer(say(chat, text)).input_ids
    start = fed.lengths[calls]  # of the stream before the answer
    sequence = torch.tensor(fed.rows[0][:start] + answer)
    logits = naive_logits(tiny_llama(), sequence, settings.sink_size, settings.window_size)
    logits[:, SPEAKS["suppress_tokens"]] = -torch.inf
    assert_tokens_follow(logits, sequence, start)
    assert fed.rows[0][start:] == answer[: len(fed.rows[0]) - start]
    assert chat.cache.tokens_seen.tolist() == [len(fed.rows[0])]


def conversation(tokenizer, questions, answers, **system):
    """Ids of the whole conversation as the template renders it at once."""
    messages = [{"role": "system", "content": system["system"]}] if system else []
    for question, answer in zip(questions, answers, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids


# ---- what is fed


@pytest.mark.parametrize("ends", [END, ENDS], ids=["cut_off", "ended_by_any_of_a_list"])
@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, BOS_ONCE])
def test_the_stream_is_the_conversation_as_the_template_writes_it(template, ends):
    chat = chat_with(template, generation_config=GenerationConfig(eos_token_id=ends, **SPEAKS))
    fed = Fed(chat.model)
    answers = [say(chat, question) for question in QUESTIONS]
    expected = conversation(chat.tokenizer, QUESTIONS, answers)
    assert fed.rows[0] == expected[: len(fed.rows[0])]
    assert len(expected) - len(fed.rows[0]) <= 2  # the last token said and the end of its turn
    assert len({len(answer.split()) for answer in answers}) > (ends is ENDS)


def test_a_given_system_prompt_comes_first():
    chat = chat_with(DEFAULT_SYSTEM, system="w20 w21")
    fed = Fed(chat.model)
    answers = [say(chat, question) for question in QUESTIONS]
    assert fed.rows[0] == conversation(chat.tokenizer, QUESTIONS, answers, system="w20 w21")[: len(fed.rows[0])]


def test_only_new_tokens_are_fed_however_long_the_conversation():
    chat = chat_with()
    fed = Fed(chat.model)
    for _ in range(12):
        say(chat, "w1 w2")
    sizes = {size for size in fed.calls if size > 1}
    assert sizes <= {7, 8, 9}  # the first turn, later ones with or without the last word said
    assert chat.cache.tokens_seen.tolist() == [len(fed.rows[0])] and chat.cache.nbytes == chat_with_full_cache()


def chat_with_full_cache():
    chat = chat_with()
    say(chat, " ".join(["w1"] * 40))
    return chat.cache.nbytes


def test_a_message_longer_than_any_window_streams():
    chat = chat_with()
    fed = Fed(chat.model)
    answers = [say(chat, text) for text in ("w1", " ".join(f"w{i % 50}" for i in range(1500)), "w2")]
    assert all(answers) and chat.cache.tokens_cached.tolist() == [S + W]
    assert chat.cache.tokens_seen.tolist() == [len(fed.rows[0])]


# ---- what is said


@pytest.mark.parametrize("pinned", [True, False])
def test_answers_are_those_of_a_model_that_reads_the_whole_stream(pinned):
    chat = chat_with(DEFAULT_SYSTEM, pin_system_prompt=pinned)
    fed = Fed(chat.model)
    assert chat.cache.settings.sink_size == (11 if pinned else S) and chat.cache.settings.window_size == W
    for question in QUESTIONS:
        assert_right_answer(chat, fed, question)


def test_the_pinned_prompt_is_what_precedes_the_first_message():
    chat = chat_with(DEFAULT_SYSTEM)
    pinned = chat.tokenizer("<start> system w1 w2 w3 w4 w5 w6 <end> <start> user").input_ids
    assert chat.template.prefix() == pinned and chat.cache.settings.sink_size == len(pinned)


def test_a_short_prefix_leaves_the_sinks_of_the_model():
    assert chat_with(CHATML).cache.settings.sink_size == S  # "<start> user" are two


def test_a_pinned_prompt_beyond_the_trained_length_is_warned_about(messages):
    model = inject_attention_sinks(tiny_llama(max_position_embeddings=64), S, W)
    chat_with(model=model, system=" ".join(["w1"] * 60))
    assert messages.about("trained on 64")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"repetition_penalty": 1.5},
        {"do_sample": True, "top_p": 0.9, "min_new_tokens": 5, "eos_token_id": ENDS},
    ],
)
def test_the_first_answer_is_what_generate_says(settings):
    config = GenerationConfig(**{"eos_token_id": END, **SPEAKS, **settings})
    chat = chat_with(generation_config=config)
    ids = torch.tensor([chat.template.first_turn("w1 w2").ids])
    torch.manual_seed(5)
    expected = chat.model.generate(ids, generation_config=config, pad_token_id=END)[0, ids.shape[1] :]
    torch.manual_seed(5)
    answer = say(chat, "w1 w2")
    ended = expected[-1] in torch.tensor(config.eos_token_id)
    assert answer == chat.tokenizer.decode(expected[:-1] if ended else expected)


def test_without_a_limit_an_answer_ends_all_the_same(monkeypatch):
    assert decoding.ANSWER_LENGTH == 1024
    monkeypatch.setattr(decoding, "ANSWER_LENGTH", 40)
    chat = chat_with(generation_config=GenerationConfig(suppress_tokens=[END]))
    assert chat.model.generation_config.max_new_tokens is None
    say(chat, "w1")
    assert chat.cache.tokens_seen.tolist() == [len(chat.template.first_turn("w1").ids) + 39]


@pytest.mark.parametrize(
    ("settings", "of_model", "words"),
    [
        ({"max_length": 6}, {}, 6),
        ({}, {"max_length": 6}, 6),
        ({"max_new_tokens": 4}, {"max_length": 6}, 4),
        ({"max_new_tokens": 4}, {"max_new_tokens": 6}, 4),
        ({"max_new_tokens": 4}, {"max_new_tokens": 6, "max_length": 9}, 4),
    ],
)
def test_a_limit_counts_the_words_of_an_answer(settings, of_model, words, messages):
    model = inject_attention_sinks(tiny_llama(), S, W)
    model.generation_config.update(**of_model)
    speaks = {"suppress_tokens": [*SPEAKS["suppress_tokens"], END]}
    chat = chat_with(model=model, generation_config=GenerationConfig(**speaks, **settings))
    assert [len(say(chat, text).split()) for text in ("w1 " * 50, "w2")] == [words, words]
    assert not messages.texts or len(of_model) == 2


def test_settings_may_change_between_turns():
    chat = chat_with()
    say(chat, "w1")
    chat.generation_config.max_new_tokens = 3
    assert len(say(chat, "w2").split()) == 3


class Script:
    """Makes a model say these tokens whatever it reads; the batch has one row."""

    def __init__(self, model, tokens):
        self.tokens = iter(tokens)
        model.lm_head.register_forward_hook(self.speak)

    def speak(self, module, args, logits):
        return torch.zeros_like(logits).index_fill_(-1, torch.tensor([next(self.tokens)]), 9.0)


def test_pieces_are_whole_words_even_where_a_letter_is_several_tokens():
    tokenizer = byte_tokenizer()
    model = inject_attention_sinks(tiny_llama(vocab_size=len(tokenizer)), S, W)
    text = "Ça va très bien 🙂 merci,\n数字 end"
    Script(model, [*tokenizer(text).input_ids, tokenizer.eos_token_id])
    chat = chat_with(tokenizer=tokenizer, model=model, generation_config=GenerationConfig(max_new_tokens=90))
    pieces = list(chat.send("Été"))
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert "très " in pieces and "🙂 " in pieces and all(pieces)


@pytest.mark.parametrize("of_model", [None, "never said"])
def test_stop_strings_end_an_answer(of_model):
    tokenizer = byte_tokenizer()
    model = inject_attention_sinks(tiny_llama(vocab_size=len(tokenizer)), S, W)
    Script(model, tokenizer("one two three four").input_ids)
    model.generation_config.stop_strings = of_model
    config = GenerationConfig(max_new_tokens=18, stop_strings=["two", "four"])
    answer = chat_with(tokenizer=tokenizer, model=model, generation_config=config).ask("w1")
    assert (answer.text, answer.finish_reason) == ("one two", "stop")


# ---- several conversations


@pytest.mark.parametrize("ends", [END, ENDS], ids=["cut_off", "ended_one_by_one"])
def test_conversations_side_by_side_are_what_each_is_alone(ends):
    questions = [["w1", "w2 w3 w4 w5 w6", "w7 w8"], ["w9 w10 w11", "w12", "w13"], ["w1 " * 40, "w2", "w3 w4"]]
    config = GenerationConfig(eos_token_id=ends, **SPEAKS, repetition_penalty=5.0, pad_token_id=60)
    together = chat_with(DEFAULT_SYSTEM, generation_config=config)
    fed = Fed(together.model)
    answers, waits = [], False
    for turn in questions:
        pieces = list(together.send(turn))
        assert all(len(step) == 3 and any(step) for step in pieces)
        waits = waits or any("" in step for step in pieces)
        answers.append(["".join(parts) for parts in zip(*pieces, strict=True)])
    for row in range(3):
        alone = chat_with(DEFAULT_SYSTEM, generation_config=config)
        fed_alone = Fed(alone.model)
        assert [say(alone, turn[row]) for turn in questions] == [turn[row] for turn in answers]
        assert fed.rows[row] == fed_alone.rows[0]
    lengths = {len(answer.split()) for turn in answers for answer in turn}
    assert (len(lengths) > 3) == waits == (ends is ENDS)


def test_chats_on_one_model_can_speak_in_turns():
    model = inject_attention_sinks(tiny_llama(), S, W)
    alone = [say(chat_with(model=model), question) for question in QUESTIONS[:2]]
    voices = [chat_with(model=model).send(question) for question in QUESTIONS[:2]]
    assert ["".join(pieces) for pieces in zip(*zip(*voices, strict=True), strict=True)] == alone


# ---- stopping


def assert_goes_on(chat, fed):
    for question in ("w20 w21", "w22"):
        assert_right_answer(chat, fed, question)


@pytest.mark.parametrize("how", ["close", "break", "send", "stop"])
def test_an_answer_can_be_left_in_the_middle(how):
    chat = chat_with(generation_config=GenerationConfig(eos_token_id=END, **{**SPEAKS, "max_new_tokens": 50}))
    fed, threads = Fed(chat.model), threading.active_count()
    say(chat, "w1 w2 w3")
    answer = chat.send("w4")
    pieces = [next(answer), next(answer)]
    if how == "close":
        answer.close()
    elif how == "stop":
        chat.stop()
    elif how == "break":
        for piece in answer:
            pieces.append(piece)
            break
        del answer
    assert threading.active_count() == threads
    said = len(fed.rows[0])
    say(chat, "w5")
    if how != "break":
        assert next(answer, None) is None
    # The turn is closed as the template closes it; the word that was chosen last is part of what was said.
    assert fed.rows[0][said + 1 : said + 4] == chat.tokenizer("<end> <start> user").input_ids
    assert_goes_on(chat, fed)


def test_an_answer_never_asked_for_is_not_read():
    chat = chat_with()
    fed = Fed(chat.model)
    chat.send("w1 w2 w3")
    assert say(chat, "w4") == say(chat_with(), "w4") and fed.rows[0][2] == WORDS.index("w4")


@pytest.mark.parametrize("at_call", [1, 2, 5])
def test_control_c_takes_effect_between_two_words(at_call):
    chat = chat_with()
    fed = Fed(chat.model)
    say(chat, "w1 w2 w3")
    calls = iter(range(1, 100))
    handle = chat.model.model.layers[1].register_forward_pre_hook(
        lambda *_: signal.raise_signal(signal.SIGINT) if next(calls) == at_call else None
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        say(chat, "w4 w5")
    handle.remove()
    assert signal.getsignal(signal.SIGINT) is handler
    assert chat.cache.tokens_seen.tolist() == [len(fed.rows[0])]
    assert_goes_on(chat, fed)


def test_control_c_twice_takes_effect_at_once_and_the_message_is_unread():
    chat = chat_with()
    say(chat, "w1 w2 w3")
    before, calls = state_of(chat.cache), []
    handle = chat.model.model.layers[1].register_forward_pre_hook(lambda *_: press_twice(calls))
    with pytest.raises(KeyboardInterrupt):
        say(chat, "w4 w5")
    handle.remove()
    assert len(calls) == 1
    assert_same_state(chat.cache, before)
    untouched = chat_with()
    say(untouched, "w1 w2 w3")
    assert say(chat, "w6") == say(untouched, "w6")


def press_twice(calls):
    calls.append(1)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_handler_of_the_users_own_is_called_once_the_word_is_done():
    chat, seen = chat_with(), []
    previous = signal.signal(signal.SIGINT, lambda *arguments: seen.append(arguments))
    try:
        chat.model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT) if not seen else None)
        assert say(chat, "w1") == say(chat_with(), "w1") and len(seen) == 1
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_chat_in_another_thread():
    answers = []
    thread = threading.Thread(target=lambda: answers.append(say(chat_with(), "w1")))
    thread.start()
    thread.join()
    assert answers == [say(chat_with(), "w1")]


def test_gradients_are_as_the_caller_has_them():
    for _ in chat_with().send("w1"):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode():
        assert say(chat_with(), "w1")


def test_a_new_conversation_in_the_same_chat():
    chat = chat_with()
    first = say(chat, "w1")
    say(chat, "w2")
    chat.reset()
    assert say(chat, ["w1", "w1"]) == [first, first]


MESSAGE = st.lists(st.integers(0, 50).map("w{}".format), max_size=20).map(" ".join)


@hypothesis.settings(max_examples=12)
@hypothesis.given(turns=st.lists(st.tuples(MESSAGE, MESSAGE, st.integers(0, 12)), min_size=1, max_size=5))
def test_however_answers_are_stopped_the_streams_are_the_conversations(turns):
    """Two conversations; every answer is left after so many pieces."""
    model = inject_attention_sinks(tiny_llama(), S, W)
    chat = chat_with(model=model, generation_config=GenerationConfig(eos_token_id=ENDS, **SPEAKS))
    fed, patterns = Fed(model), ([], [])
    for *messages, pieces in turns:
        read = [["", ""], *islice(chat.send(messages), pieces)]
        for words, message, pattern in zip(zip(*read, strict=True), messages, patterns if pieces else (), strict=False):
            turn = ["<start> user", *message.split(), "<end> <start> assistant", *"".join(words).split()]
            pattern.append(" ".join(turn) + r"( w\d+)*")
    if fed.rows:
        said = [[*fed_row, *row.unfed] for fed_row, row in zip(fed.rows, chat._stream.rows, strict=True)]
        for row, turns in zip(said, patterns, strict=True):
            assert re.fullmatch(" <end> ".join(turns), " ".join(WORDS[token] for token in row))
        logits, _ = stream(model, random_ids(2, 3), cache=chat.cache)
        for row, row_logits in zip(fed.rows, logits, strict=True):
            assert_close(row_logits, naive_logits(tiny_llama(), torch.tensor(row), S, W)[-3:])


# ---- errors


@pytest.mark.parametrize(
    ("text", "kind"),
    [(3, TypeError), (None, TypeError), ([1], TypeError), ([], ValueError), (["w1", "w2"], ValueError)],
)
def test_a_bad_message_leaves_the_chat_as_it_was(text, kind):
    chat, untouched = chat_with(), chat_with()
    for each in (chat, untouched):
        say(each, "w1 w2")
    before = state_of(chat.cache)
    refused(kind, lambda: chat.send(text), "message")
    assert_same_state(chat.cache, before)
    assert say(chat, "w3") == say(untouched, "w3")


def test_an_error_while_a_message_is_read_leaves_the_chat_as_it_was():
    chat, untouched = chat_with(), chat_with()
    for each in (chat, untouched):
        say(each, "w1 w2")
    before, broken = state_of(chat.cache), chat.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        say(chat, "w3 w4")
    broken.remove()
    assert_same_state(chat.cache, before)
    assert say(chat, "w5") == say(untouched, "w5")


def fail(*_):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
    ],
)
def test_answers_that_cannot_be_read_word_by_word_are_refused(settings):
    chat = chat_with(generation_config=GenerationConfig(**settings))
    refused(BAD, lambda: say(chat, "w1"), "generation_config")
    assert chat.cache.tokens_seen.tolist() == []


def test_a_model_without_sinks_is_refused():
    refused(ValueError, lambda: chat_with(model=tiny_llama()), "attention sinks")


def test_a_model_without_head_is_refused():
    refused(ValueError, lambda: chat_with(model=inject_attention_sinks(tiny_llama().model, S, W)), "LlamaModel")


def test_a_system_prompt_that_is_no_text_is_refused():
    refused(TypeError, lambda: chat_with(system=["w1"]), "system", "w1")


# ---- templates


def test_a_tokenizer_without_template_needs_one():
    refused(ValueError, lambda: chat_with(None), "chat template", "chat_template")
    assert say(chat_with(None, chat_template=CHATML), "w1") == say(chat_with(CHATML), "w1")


@pytest.mark.parametrize(
    ("template", "system"),
    [(NUMBERS_THE_LAST, None), (NO_SYSTEM, "w1")],
)
def test_a_template_that_cannot_stream_is_refused_and_another_one_helps(template, system):
    message = refused(ValueError, lambda: chat_with(template, system=system), "chat template", "pass")
    assert ("leave system out" in message) == (system is not None)
    assert say(chat_with(template, system=system, chat_template=CHATML), "w1")
    if system is not None:
        assert say(chat_with(template), "w1")


def test_a_cache_of_ones_own():
    """Subclasses choose what is kept."""

    class Short(StreamingChat):
        def make_cache(self, sink_size):
            return AttentionSinkKVCache(self.model, 1, 5)

    model = inject_attention_sinks(tiny_llama(), S, W)
    chat = Short(model, word_tokenizer(), generation_config=GenerationConfig(eos_token_id=END, **SPEAKS))
    fed = Fed(model)
    for question in QUESTIONS:
        assert_right_answer(chat, fed, question)
    assert (chat.cache.settings.sink_size, chat.cache.settings.window_size) == (1, 5)


# ---- the README


@pytest.fixture
def folder(tmp_path):
    save_tiny_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def test_the_chat_of_the_readme(folder):
    typed = iter(["Hello!", "And then?", ""])
    names = run_block("StreamingChat(", folder, input=lambda prompt: next(typed))
    fed = conversation(names["tokenizer"], ["Hello!", "And then?"], [""] * 2, system="You answer in one sentence.")
    assert 0 < names["chat"].cache.tokens_seen.item() - len(fed) + 1 <= 10 and names["message"] == ""
