"""A chat saved and loaded goes on as if it had never stopped."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from attention_sinks import AttentionSinkKVCache, StreamingChat, inject_attention_sinks
from support.helpers import random_ids, refused, tiny_llama
from support.pages import CHAT, SAVING, run_block
from support.toy_tokenizers import CHATML, DEFAULT_SYSTEM, WORDS, byte_tokenizer, word_tokenizer

pytestmark = pytest.mark.each_release

S, W = 4, 12
TURNS = ["w1 w2", "w3 w4 w5", "w6", "w7 w8"]
BATCH = [["w1", "w2 w3 w4"], ["w5 w6 w7 w8", "w9"], ["w10", "w11"], ["w12", "w13 w14"]]
ENDS = [WORDS.index("<end>"), *range(30, 50)]
CONFIG = GenerationConfig(eos_token_id=ENDS, suppress_tokens=[0, 2, 3, 4, 5], max_new_tokens=9)


def new_model(seed=0, **config):
    return inject_attention_sinks(tiny_llama(seed, **config), S, W)


def new_chat(model=None, template=DEFAULT_SYSTEM, **options):
    return StreamingChat(model or new_model(), word_tokenizer(template), generation_config=CONFIG, **options)


def say(chat, text):
    return list(chat.send(text))


def loaded(path, model=None, template=DEFAULT_SYSTEM, **options):
    return StreamingChat.load(path, model or new_model(), word_tokenizer(template), **options)


def assert_go_on_alike(one, other, turns):
    for turn in turns:
        assert say(one, turn) == say(other, turn)
    assert one.cache.tokens_seen.tolist() == other.cache.tokens_seen.tolist()
    for layer, layer_of_other in zip(one.cache.layers, other.cache.layers, strict=True):
        assert all(map(torch.equal, layer.tensors, layer_of_other.tensors))


@pytest.mark.parametrize("turns", [TURNS, BATCH], ids=["one", "several"])
@pytest.mark.parametrize("when", range(4))
def test_a_loaded_chat_goes_on_as_if_it_had_never_stopped(tmp_path, turns, when):
    chat = new_chat(system="w20 w21")
    for turn in turns[:when]:
        say(chat, turn)
    chat.save(tmp_path / "chat.safetensors")
    other = loaded(tmp_path / "chat.safetensors")
    assert other.model is not chat.model and other.cache is not chat.cache
    assert_go_on_alike(other, chat, turns[when:])


def test_a_chat_saved_in_the_middle_of_an_answer(tmp_path):
    chat = new_chat()
    say(chat, "w1")
    answer = chat.send("w2 w3")
    next(answer)
    chat.save(tmp_path / "chat")
    chat.stop()
    assert_go_on_alike(loaded(tmp_path / "chat"), chat, TURNS)


def test_sizes_settings_and_template_come_back(tmp_path):
    model = new_model()
    chat = new_chat(model, None, chat_template=CHATML, system=" ".join(["w1"] * 20))
    say(chat, "w1")
    chat.save(tmp_path / "chat")
    inject_attention_sinks(model, 2, 30)
    other = loaded(tmp_path / "chat", model, None)
    assert (other.cache.settings.sink_size, other.cache.settings.window_size) == (25, W)
    assert other.generation_config.to_dict() == CONFIG.to_dict() and other.template.system == chat.template.system
    assert_go_on_alike(other, chat, TURNS)
    changed = GenerationConfig(max_new_tokens=2)
    assert loaded(tmp_path / "chat", model, None, generation_config=changed).generation_config.max_new_tokens == 2


def test_the_file_does_not_grow_with_the_conversation(tmp_path):
    chat, sizes = new_chat(), []
    for _ in range(4):
        for _ in range(3):
            say(chat, "w1 w2 w3")
        chat.save(tmp_path / "chat")
        sizes.append((tmp_path / "chat").stat().st_size)
    assert max(sizes) - min(sizes) < 100
    assert [file.name for file in tmp_path.iterdir()] == ["chat"]


def test_another_tokenizer_or_template_is_refused(tmp_path):
    new_chat().save(tmp_path / "chat")
    refused(ValueError, lambda: loaded(tmp_path / "chat", template=CHATML.replace(" <end>", "")), "template", "chat'")


def test_another_model_is_refused(tmp_path):
    new_chat().save(tmp_path / "chat")
    refused(ValueError, lambda: loaded(tmp_path / "chat", new_model(seed=1)), "another model", "chat'")


def test_a_saved_cache_is_no_chat_and_a_saved_chat_no_cache(tmp_path):
    chat = new_chat()
    say(chat, "w1")
    chat.save(tmp_path / "chat")
    chat.cache.save(tmp_path / "cache")
    refused(ValueError, lambda: loaded(tmp_path / "cache", chat.model), "StreamingChat")
    with pytest.raises(ValueError, match="StreamingChat"):
        AttentionSinkKVCache.load(tmp_path / "chat", chat.model)


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    chat, path = new_chat(), tmp_path / "chat"
    say(chat, "w1")
    chat.save(path)
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-5] ^= 1
    path.write_bytes({"truncated": content[:-50], "altered": content, "foreign": b"a letter"}[damage])
    refused(ValueError, lambda: loaded(path, chat.model), "chat")


def test_a_missing_file_says_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        loaded(tmp_path / "nowhere")


def test_a_chat_in_another_cache_is_not_saved(tmp_path):
    class Plain(StreamingChat):
        def make_cache(self, sink_size):
            return DynamicCache()

    chat = Plain(tiny_llama(), word_tokenizer(CHATML))
    refused(NotImplementedError, lambda: chat.save(tmp_path / "chat"), "DynamicCache")
    assert not list(tmp_path.iterdir())


def test_saving_and_restoring_as_the_guide_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    model = new_model(vocab_size=len(tokenizer))
    chat = StreamingChat(model, tokenizer, generation_config=GenerationConfig(max_new_tokens=6))
    say(chat, "Hello!")
    names = run_block(
        "chat.save(", "unused", CHAT, chat=chat, model=model, tokenizer=tokenizer, StreamingChat=StreamingChat
    )
    assert names["chat"] is not chat and capsys.readouterr().out
    assert names["chat"].cache.tokens_seen > chat.cache.tokens_seen


def test_saving_and_restoring_a_cache_as_the_guide_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = new_model()
    cache, ids = AttentionSinkKVCache(model), random_ids(1, 20)
    model(ids, cache=cache)
    names = run_block(
        "cache.save(", "unused", SAVING, cache=cache, model=model, ids=ids, AttentionSinkKVCache=AttentionSinkKVCache
    )
    assert names["cache"] is not cache
    assert torch.equal(names["outputs"].logits, model(ids, cache=cache).logits)
