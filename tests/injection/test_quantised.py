"""A model loaded in 8 bits by torchao, or from a GGUF file, streams like any other."""

import pytest
import torch
import transformers
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import TorchAoConfig

import attention_sinks
from attention_sinks import StreamingChat, inject_attention_sinks, remove_attention_sinks
from references.naive import naive_logits
from support.gguf_files import write_gguf
from support.helpers import (
    TEETH,
    assert_close,
    assert_tokens_follow,
    largest_difference,
    random_ids,
    stream,
    tiny_llama,
)
from support.toy_tokenizers import word_tokenizer

S, W = 4, 12
IDS = random_ids(1, 70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    return folder


def load(auto_class, folder, **sizes):
    quantised = TorchAoConfig(Int8WeightOnlyConfig())
    return auto_class.from_pretrained(folder, quantization_config=quantised, dtype=torch.float32, **sizes)


@pytest.fixture
def plain(folder):
    return load(transformers.AutoModelForCausalLM, folder)


@pytest.fixture
def model(folder):
    sizes = {"attention_sink_size": S, "attention_sink_window_size": W}
    return load(attention_sinks.AutoModelForCausalLM, folder, **sizes)


def test_the_weights_are_quantised(plain):
    assert type(plain.model.layers[0].self_attn.q_proj.weight).__name__ == "Int8Tensor"
    with torch.no_grad():
        assert largest_difference(plain(IDS).logits, tiny_llama()(IDS).logits) > TEETH


def test_a_short_text_is_plain_transformers(model, plain):
    short = IDS[:, : S + W + 1]
    with torch.no_grad():
        expected = plain(short).logits
    for calls in (None, [1] * short.shape[1], [3, 9, 1, 4]):
        assert_close(stream(model, short, calls)[0], expected)


def test_chunking_does_not_matter(model):
    whole, _ = stream(model, IDS)
    for calls in ([1] * 70, [20, 1, 1, 18, 30], [5, 65]):
        assert_close(stream(model, IDS, calls)[0], whole)


def test_a_long_text_streams(model, plain):
    assert_close(stream(model, IDS)[0][0], naive_logits(plain, IDS[0], S, W))


def test_generation_streams(model, plain):
    sequence = model.generate(IDS[:, :25], max_new_tokens=30, do_sample=False)[0]
    assert_tokens_follow(naive_logits(plain, sequence, S, W), sequence, 25)


def test_a_chat(model):
    chat = StreamingChat(model, word_tokenizer())
    chat.generation_config.max_new_tokens = 20
    assert all("".join(chat.send(text)) for text in ("w1 w2", "w3 w4", "w5"))
    assert chat.cache.tokens_cached.tolist() == [S + W]


def test_injecting_after_loading_and_removing(plain):
    with torch.no_grad():
        before = plain(IDS).logits
        after = stream(inject_attention_sinks(plain, S, W), IDS)[0]
        assert largest_difference(before, after) > TEETH
        assert_close(remove_attention_sinks(plain)(IDS).logits, before, 0)


def test_quantising_an_injected_model(plain):
    model = inject_attention_sinks(tiny_llama(), S, W)
    layers = [layer for name, layer in model.named_modules() if name.endswith("_proj")]
    for layer in layers:
        quantize_(layer, Int8WeightOnlyConfig())
    assert_close(stream(model, IDS)[0][0], naive_logits(plain, IDS[0], S, W))
    with torch.no_grad():
        assert_close(remove_attention_sinks(model)(IDS).logits, plain(IDS).logits)


def test_a_gguf_file(tmp_path):
    write_gguf(tiny_llama(), tmp_path / "model.gguf")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    with torch.no_grad():
        assert TEETH < largest_difference(plain(IDS).logits, tiny_llama()(IDS).logits) < 0.5  # 8 bits, the same model
    sizes = {"attention_sink_size": S, "attention_sink_window_size": W}
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", **sizes)
    assert_close(stream(model, IDS)[0][0], naive_logits(plain, IDS[0], S, W))
