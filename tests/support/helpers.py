"""Tiny random models, streaming in calls of any length, and looking at what a cache holds."""

import json
import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from threading import Barrier

import pytest
import torch
from transformers import Cache, LlamaConfig, LlamaForCausalLM

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.versions import CACHE

TOLERANCE = 2e-4  # largest logit difference in float32, the logits' standard deviation being about 1
TEETH = 1e-2  # a wrong reference must differ by more than this
VOCABULARY = 64
THREADS = 6  # of `in_parallel`
S, W = 4, 12  # sinks and window of the fixture `model` and of most tests

# Rotary parameters of every type. `original_max_position_embeddings` and the factors are small enough to bend the
# frequencies of a 16-dimensional head within a few dozen tokens.
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.5 + 0.5 * i for i in range(8)],
    },
}

# Those whose frequencies depend on the length of the text, as arguments of `tiny_llama`.
LENGTH_DEPENDENT = {
    "dynamic": {"rope": "dynamic", "max_position_embeddings": 16},
    "longrope": {"rope": {**ROPES["longrope"], "original_max_position_embeddings": 16}, "max_position_embeddings": 64},
}


def tiny_config(rope="default", **changes):
    """A Llama of two layers; `rope` is a name in ROPES or the rope parameters themselves."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_theta": 10000.0, **(ROPES[rope] if isinstance(rope, str) else rope)},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return LlamaConfig(**{**values, **changes})


def randomise(model, seed=0):
    """Weights large enough to make the logits depend on every position; Transformers' own 0.02 is nearly blind."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed_tokens" in name or "lm_head" in name:
            parameter.data = noise if "embed_tokens" in name else noise / parameter.shape[1] ** 0.5
        else:
            parameter.data = 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model.eval()


def tiny_llama(seed=0, model_class=LlamaForCausalLM, **config):
    """The same plain model, with the same weights, at every call."""
    return randomise(model_class(tiny_config(**config)), seed)


def streaming_llama(**config):
    """The same model with S sinks and a window of W."""
    return inject_attention_sinks(tiny_llama(**config), S, W)


def plain_logits(model, ids, **options):
    """What one call of `model` gives, without gradients."""
    with torch.no_grad():
        return model(ids, **options).logits


def random_ids(*shape, seed=0):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1000 + seed))


def cut(total, lengths):
    """Call lengths that add up to `total`, taken from `lengths` in turn; the last call takes what is left."""
    calls, i = [], 0
    while sum(calls) < total:
        calls.append(min(lengths[i % len(lengths)], total - sum(calls)))
        i += 1
    return calls


def stream(model, ids, calls=None, cache=None, **options):
    """Feed ids [rows, tokens] in calls of the given lengths (default: one call).

    Returns
    -------
    logits : Tensor [rows, tokens, vocabulary]
    cache : Cache
    """
    logits, start = [], 0
    for length in calls or [ids.shape[1]]:
        with torch.no_grad():
            outputs = model(ids[:, start : start + length], **{CACHE: cache}, use_cache=True, **options)
        cache, start = outputs[CACHE], start + length
        logits.append(outputs.logits)
    assert start == ids.shape[1], f"the calls {calls} do not add up to {ids.shape[1]} tokens"
    return torch.cat(logits, dim=1), cache


def largest_difference(a, b):
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    return (a.float() - b.float()).abs().max().item() if a.numel() else 0.0


def assert_close(actual, expected, tolerance=TOLERANCE):
    difference = largest_difference(actual, expected)
    assert difference <= tolerance, f"differs by {difference:.2e}, allowed are {tolerance:.0e}"


def assert_tokens_follow(logits, sequence, prompt_length, tolerance=TOLERANCE):
    """Each generated token of `sequence` has, up to the tolerance, the highest of the reference logits before it."""
    chosen = sequence[prompt_length:]
    steps = logits[prompt_length - 1 : len(sequence) - 1]
    deficit = steps.max(dim=-1).values - steps.gather(-1, chosen[:, None])[:, 0]
    assert len(chosen) > 0 and deficit.max() <= tolerance, f"token {deficit.argmax()} is {deficit.max():.1e} below"


def tensors_of(cache):
    """Every tensor reachable from a cache, one per storage: the model it may point to and its weights are not its."""
    found, seen, todo = {}, set(), [cache]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, torch.nn.Module)) or thing is None:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found.setdefault(thing.untyped_storage().data_ptr(), thing)
        elif isinstance(thing, dict):
            todo += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            todo += list(thing)
        elif is_dataclass(thing):
            todo += [getattr(thing, field.name) for field in fields(thing)]
        elif type(thing).__module__.partition(".")[0] == "attention_sinks" or isinstance(thing, Cache):
            slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
            todo += list(getattr(thing, "__dict__", {}).values())
            todo += [getattr(thing, name) for name in slots if hasattr(thing, name)]
    return list(found.values())


def storage_bytes(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def stored_bytes(cache):
    """The bytes of all memory that a cache holds on to."""
    return storage_bytes(tensors_of(cache))


def storages_of(cache):
    """Address and size of each tensor of a cache, to see that none is allocated again."""
    return sorted((tensor.data_ptr(), tensor.untyped_storage().nbytes()) for tensor in tensors_of(cache))


def state_of(cache):
    """What a stream consists of, to see that a failed call left no trace."""
    tensors = [tensor.detach().clone() for tensor in tensors_of(cache)]
    return (cache.get_seq_length(), cache.nbytes, cache.tokens_seen.tolist(), cache.tokens_cached.tolist()), tensors


def assert_same_state(cache, before):
    numbers, tensors = state_of(cache)
    assert numbers == before[0]
    assert len(tensors) == len(before[1]) and all(map(torch.equal, tensors, before[1]))


def everything_of(model):
    """Every attribute of every module, and the configuration: to see that a failed call changed nothing."""
    return [dict(vars(module)) for module in model.modules()], model.config.to_dict()


@contextmanager
def interrupted_in(model, layer, after=0):
    """The body ends in Ctrl-C, once the attention of this layer has worked off more than `after` columns."""
    columns, projection = [], model.model.layers[layer].self_attn.o_proj
    forward = projection.forward

    def interrupt(states):
        columns.append(states.shape[1])
        if sum(columns) > after:
            raise KeyboardInterrupt
        return forward(states)

    projection.forward = interrupt  # no hook: a long call is not cut where there is one
    with pytest.raises(KeyboardInterrupt):
        yield
    del projection.forward


def noted_crops(monkeypatch):
    """A list to which every later crop adds its cache and how many columns it took back."""
    seen, crop = [], AttentionSinkKVCache.crop

    def spy(cache, tokens_to_remove):
        seen.append((cache, -int(tokens_to_remove)))
        return crop(cache, tokens_to_remove)

    monkeypatch.setattr(AttentionSinkKVCache, "crop", spy)
    return seen


BAD = (TypeError, ValueError)
CURE = r"(?i)\b(pass|use|give|set|must|make|create|call|choose|instead|expected|leave|one of|at least|reset)"


def refused(kind, call, *words):
    """The call raises this kind of error; its message has all the words and says what to do."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    assert re.search(CURE, message), f"no cure in {message!r}"
    return message


class MessageLog(logging.Handler):
    """Collects warnings and log records, whichever way the library speaks."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []
        self._loggers = [logging.getLogger(name) for name in ("attention_sinks", "transformers")]

    def emit(self, record):
        self.texts.append(record.getMessage())

    def __enter__(self):
        for logger in self._loggers:
            logger.addHandler(self)
        self._catcher = warnings.catch_warnings()
        self._catcher.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: self.texts.append(str(message))
        return self

    def __exit__(self, *error):
        self._catcher.__exit__(*error)
        for logger in self._loggers:
            logger.removeHandler(self)

    def about(self, *words):
        return [text for text in self.texts if all(word in text for word in words)]


def in_parallel(work):
    """work(number of the thread) in every thread, all starting together; results in order."""
    barrier = Barrier(THREADS)

    def run(number):
        barrier.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result(timeout=300) for future in [pool.submit(run, number) for number in range(THREADS)]]


def largest_allocation(action, folder):
    """The most bytes that one tensor takes that `action` makes; the profiler writes its trace into `folder`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return max(event["args"]["Bytes"] for event in events if event["name"] == "[memory]")
