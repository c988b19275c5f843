"""PyTorch's default dtype and default device change nothing, since every tensor of the library names its own."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

import attention_sinks
from attention_sinks import AttentionSinkKVCache, StreamingChat, inject_attention_sinks
from support.helpers import S, W, assert_close, random_ids, stream, tiny_llama
from support.toy_tokenizers import word_tokenizer
from support.zoo import animal_of

PACKAGE = Path(attention_sinks.__file__).parent
IDS = random_ids(2, 60).clamp(min=1)
MASK = torch.ones_like(IDS)
MASK[1, :20] = 0
DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {str(dtype): lambda dtype=dtype: default_dtype(dtype) for dtype in DTYPES}
DEFAULTS |= {"set_default_device": lambda: default_device("meta"), "with device": lambda: torch.device("meta")}


@torch.no_grad()
def plain_call(model, folder):
    return model(IDS).logits


@torch.no_grad()
def padded_call(model, folder):
    return model(IDS, attention_mask=MASK).logits[MASK.bool()]


@torch.no_grad()
def with_position_ids(model, folder):
    positions = torch.arange(IDS.shape[1], dtype=torch.long, device="cpu")[None]
    return model(IDS, position_ids=positions).logits


def steps(model, folder):
    return stream(model, IDS, [20] + [1] * 40)[0]


def taken_back(model, folder):
    _, cache = stream(model, IDS[:, :30])
    if cache.layer_stack.keeps_states:
        return None
    cache.activate_past_recording()
    stream(model, IDS[:, :9], cache=cache)
    cache.crop(-9)
    return stream(model, IDS[:, 30:], cache=cache)[0]


def saved(model, folder):
    _, cache = stream(model, IDS[:, :30])
    if cache.layer_stack.keeps_states:
        return None
    cache.save(folder / "cache")
    return stream(model, IDS[:, 30:], cache=AttentionSinkKVCache.load(folder / "cache", model))[0]


def generated(model, folder):
    return model.generate(IDS, attention_mask=MASK, max_new_tokens=12, do_sample=False)


USES = [plain_call, padded_call, with_position_ids, steps, taken_back, saved, generated]


def found(call):
    """What a call gives, or the error that it raises."""
    try:
        return call()
    except Exception as error:
        return error


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("model_type", ["llama", "bamba", "bloom"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_default_changes_nothing(use, model_type, default, tmp_path):
    animal = animal_of(model_type)
    expected = use(inject_attention_sinks(animal.build(), S, W), tmp_path)
    if expected is None:
        pytest.skip(f"{model_type} keeps states, which can be neither taken back nor saved")
    model, plain = animal.build(), animal.build()
    with DEFAULTS[default]():
        got = found(lambda: use(inject_attention_sinks(model, S, W), tmp_path))
        if use in (taken_back, saved):  # plain Transformers has neither; both begin with calls
            own = found(lambda: steps(plain, tmp_path))
        else:
            own = found(lambda: use(plain, tmp_path))
    if isinstance(own, Exception):
        pytest.skip(f"plain Transformers fails, too: {type(own).__name__}: {own!s:.80}")
    if isinstance(got, Exception):
        raise got
    assert_close(got, expected)


@pytest.mark.parametrize("default", DEFAULTS)
def test_a_chat(default):
    answers, config = [], GenerationConfig(max_new_tokens=6, do_sample=False)
    prompt = IDS[:1, :5]
    for setting in (None, DEFAULTS[default]):
        model, plain = tiny_llama(), tiny_llama()
        if setting is None:
            chat = StreamingChat(inject_attention_sinks(model, S, W), word_tokenizer(), generation_config=config)
            answers.append(["".join(chat.send(text)) for text in ("w1 w2", "w3")])
            continue
        with setting():
            own = found(lambda plain=plain: plain.generate(prompt, attention_mask=MASK[:1, :5], max_new_tokens=3))
            if isinstance(own, Exception):
                pytest.skip(f"plain Transformers cannot generate: {type(own).__name__}: {own!s:.80}")
            chat = StreamingChat(inject_attention_sinks(model, S, W), word_tokenizer(), generation_config=config)
            answers.append(["".join(chat.send(text)) for text in ("w1 w2", "w3")])
    assert answers[0] == answers[1]


# ---- every tensor that is made

MAKERS = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn"}
MAKERS |= {"randperm", "scalar_tensor", "tensor", "zeros"}


def makers_in(file):
    """The calls of `torch.<maker>` in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in MAKERS and ast.unparse(called.value) == "torch":
            yield node


def test_every_tensor_names_its_dtype_and_its_device():
    calls, wrong = 0, []
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in makers_in(file):
            calls += 1
            missing = {"dtype", "device"} - {keyword.arg for keyword in call.keywords}
            if missing:
                wrong.append(f"{file.relative_to(PACKAGE)}:{call.lineno} names no {' and no '.join(sorted(missing))}")
    assert calls > 30
    assert not wrong, "\n".join(wrong)
