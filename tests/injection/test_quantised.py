"""A model loaded in 8 bits by torchao, or in 4 or 8 by bitsandbytes, streams like any other."""

from importlib.util import find_spec

import pytest
import torch
import transformers
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import BitsAndBytesConfig, TorchAoConfig

import attention_sinks
from attention_sinks import StreamingChat, inject_attention_sinks, remove_attention_sinks, verify_attention_sinks
from references.naive import naive_logits
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
SIZES = {"attention_sink_size": S, "attention_sink_window_size": W}

NEEDS_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")

TORCHAO = pytest.param(lambda: TorchAoConfig(Int8WeightOnlyConfig()), id="torchao")
FOUR_BITS = pytest.param(
    lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), id="nf4", marks=NEEDS_BITSANDBYTES
)
"""As in torchao, weights alone are rounded, so everything else is exact."""

EIGHT_BITS = pytest.param(lambda: BitsAndBytesConfig(load_in_8bit=True), id="int8", marks=NEEDS_BITSANDBYTES)
"""Activations are rounded too, and which of them are spared depends on the rest of the call."""

EIGHT_BITS_ALIKE = pytest.param(
    lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0), id="int8 alike", marks=NEEDS_BITSANDBYTES
)
"""No activation is spared, so that a token is rounded the same in every call."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture(params=[TORCHAO, FOUR_BITS])
def quantised(request):
    return request.param()


def load(auto_class, folder, quantised, **sizes):
    return auto_class.from_pretrained(folder, quantization_config=quantised, dtype=torch.float32, **sizes)


@pytest.fixture
def plain(folder, quantised):
    return load(transformers.AutoModelForCausalLM, folder, quantised)


@pytest.fixture
def model(folder, quantised):
    return load(attention_sinks.AutoModelForCausalLM, folder, quantised, **SIZES)


def test_the_weights_are_quantised(plain):
    assert type(plain.model.layers[0].self_attn.q_proj.weight).__name__ in ("Int8Tensor", "Params4bit")
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


def test_the_check_agrees(model):
    report = verify_attention_sinks(model)
    assert report.agrees and max(report.differences.values()) < 1e-3, report


@pytest.mark.parametrize("quantised", [TORCHAO], indirect=True)
def test_quantising_an_injected_model(plain):
    model = inject_attention_sinks(tiny_llama(), S, W)
    layers = [layer for name, layer in model.named_modules() if name.endswith("_proj")]
    for layer in layers:
        quantize_(layer, Int8WeightOnlyConfig())
    assert_close(stream(model, IDS)[0][0], naive_logits(plain, IDS[0], S, W))
    with torch.no_grad():
        assert_close(remove_attention_sinks(model)(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("quantised", [FOUR_BITS], indirect=True)
def test_a_checkpoint_that_was_saved_in_four_bits(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = attention_sinks.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **SIZES)
    assert_close(stream(again, IDS)[0], stream(model, IDS)[0])


# ---- the 8 bits of bitsandbytes


@pytest.mark.parametrize("quantised", [EIGHT_BITS], indirect=True)
def test_activations_in_eight_bits_are_near_the_reference(model, plain):
    """Rounding is far smaller than what attention sinks change."""
    assert type(plain.model.layers[0].self_attn.q_proj.weight).__name__ == "Int8Params"
    streamed, expected = stream(model, IDS)[0][0], naive_logits(tiny_llama(), IDS[0], S, W)
    with torch.no_grad():
        dense = plain(IDS).logits[0]
    assert TEETH < largest_difference(streamed, expected) < 0.5 < 2 < largest_difference(dense, expected)
    assert verify_attention_sinks(model).agrees


@pytest.mark.parametrize("quantised", [EIGHT_BITS_ALIKE], indirect=True)
def test_chunking_does_not_matter_where_activations_are_rounded_alike(model, plain):
    whole, _ = stream(model, IDS)
    for calls in ([1] * 70, [20, 1, 1, 18, 30], [5, 65]):
        assert_close(stream(model, IDS, calls)[0], whole)
    short = IDS[:, : S + W + 1]
    with torch.no_grad():
        assert_close(stream(model, short)[0], plain(short).logits)
