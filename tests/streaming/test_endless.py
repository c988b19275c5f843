"""What must not depend on how long a stream has run: cost, working memory, precision (contract 5, 6 and 8)."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_sinks import inject_attention_sinks
from references.naive import naive_logits, naive_stream
from support.contract import left_padded, stream_rows
from support.helpers import assert_close, cut, random_ids, stream, tiny_llama

S, W = 4, 12
ROOM = S + W + 1


# --- calls of thousands of tokens -------------------------------------------------------------------------------------

LONG = 3_000


@pytest.fixture(scope="module")
def long_ids():
    return random_ids(LONG)


@pytest.fixture(scope="module")
def long_reference(long_ids):
    with torch.no_grad():
        return naive_stream(tiny_llama(), long_ids, S, W)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_long_call(long_ids, long_reference, use_cache):
    model = inject_attention_sinks(tiny_llama(), S, W)
    with torch.no_grad():
        outputs = model(long_ids[None], use_cache=use_cache, output_hidden_states=True)
    assert_close(outputs.logits[0], long_reference.logits)
    assert_close(torch.cat(outputs.hidden_states), long_reference.hidden_states, tolerance=2e-3)


def test_a_long_call_behind_a_short_one_and_before_single_tokens(long_ids, long_reference):
    model = inject_attention_sinks(tiny_llama(), S, W)
    logits, cache = stream(model, long_ids[None], [3, 2_500, *[1] * 40, 457])
    assert_close(logits[0], long_reference.logits)
    assert cache.get_seq_length() == LONG


def test_a_long_call_with_gradients(long_ids, long_reference):
    model = inject_attention_sinks(tiny_llama(), S, W)
    logits = model(long_ids[None], use_cache=True).logits
    assert_close(logits[0].detach(), long_reference.logits)
    logits.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_long_calls_of_a_padded_batch(long_ids, long_reference):
    """Rows of different lengths, zeros in the middle, and whole stretches of thousands of columns of padding."""
    shape = torch.zeros(3, LONG + 500, dtype=torch.bool)
    shape[0, 500:] = True
    shape[1, 1_700:3_300] = True
    shape[2, ::7] = True
    counts = shape.sum(dim=1).tolist()
    later = left_padded([0, LONG - counts[1], 1], LONG)
    rows = [long_ids, long_ids, long_ids[: counts[2] + 1]]
    logits, cache = stream_rows(inject_attention_sinks(tiny_llama(), S, W), rows, [shape, later])
    assert cache.tokens_seen.tolist() == [LONG, LONG, counts[2] + 1]
    for row in logits:
        assert_close(row, long_reference.logits[: len(row)])


def test_the_default_sizes_past_their_window():
    """S = 4 and W = 1020, as users have them."""
    model, ids = inject_attention_sinks(tiny_llama(max_position_embeddings=2048)), random_ids(2_300)
    expected = naive_logits(tiny_llama(max_position_embeddings=2048), ids, 4, 1020)
    logits, cache = stream(model, ids[None], [1_500, *[1] * 30, 770])
    assert_close(logits[0], expected)
    assert cache.tokens_cached.tolist() == [1_024]


# --- cost -------------------------------------------------------------------------------------------------------------


class Work(TorchDispatchMode):
    """Counts operations, the numbers they produce, and the largest tensor among them."""

    def __init__(self):
        super().__init__()
        self.operations = self.numbers = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numbers += leaf.numel()
                self.largest = max(self.largest, leaf.numel())
        self.operations += 1
        return result


def work_of_steps(model, cache, steps, rows=1, **options):
    work = Work()
    with torch.no_grad(), work:
        for _ in range(steps):
            model(torch.ones(rows, 1, dtype=torch.long), cache=cache, **options)
    return work


def test_a_step_costs_the_same_at_any_age():
    model = inject_attention_sinks(tiny_llama(), S, W)
    _, cache = stream(model, random_ids(1, 50))
    young = work_of_steps(model, cache, 200)
    stream(model, random_ids(1, 50_000), cut(50_000, [5_000]), cache)
    old = work_of_steps(model, cache, 200)
    assert 0.95 < old.operations / young.operations < 1.05
    assert 0.95 < old.numbers / young.numbers < 1.05


def test_a_step_of_generate_costs_the_same_at_any_age():
    """Operations; Transformers' own concatenation of ids makes the tensors longer but not more."""
    model = inject_attention_sinks(tiny_llama(), S, W)

    def operations(prompt_length):
        prompt, counts = random_ids(1, prompt_length), []
        for new_tokens in (10, 60):
            with Work() as work:
                model.generate(prompt, max_new_tokens=new_tokens, do_sample=False)
            counts.append(work.operations)
        return counts[1] - counts[0]

    assert 0.9 < operations(3_000) / operations(60) < 1.1


def test_generate_hands_the_model_one_token_at_a_time():
    model, lengths = inject_attention_sinks(tiny_llama(), S, W), []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    model.generate(random_ids(1, 10), max_new_tokens=100, do_sample=False)
    assert sum(lengths[:1]) == 10 and lengths[1:] == [1] * 99


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_long_call_needs_bounded_working_memory(use_cache):
    """No tensor but the outputs and the inputs grows with the call: nothing of size tokens x tokens or x vocabulary."""
    model, largest = inject_attention_sinks(tiny_llama(), S, W), {}
    for length in (4_000, 16_000):
        ids = random_ids(1, length)
        with torch.no_grad(), Work() as work:
            model(ids, logits_to_keep=1, use_cache=use_cache)
        largest[length] = work.largest
    assert largest[16_000] <= 16_000 * 64  # the hidden states the base model returns


def peak_bytes(call):
    """Largest sum of what is allocated at one time during the call, from the profiler's record of every allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_peak_of_a_long_call_is_its_output(use_cache):
    model = inject_attention_sinks(tiny_llama(), S, W)
    model = model.model  # returns the hidden states of all tokens, 256 bytes each
    peaks = {}
    for length in (2_000, 12_000):
        with torch.no_grad():
            peaks[length] = peak_bytes(partial(model, random_ids(1, length), use_cache=use_cache))
    per_token = (peaks[12_000] - peaks[2_000]) / 10_000
    assert per_token <= 2.5 * 256 + 64, (
        f"{per_token:.0f} bytes a token"
    )  # the outputs of chunks, joined, and some counters


# --- precision --------------------------------------------------------------------------------------------------------


def receptive_tail(ids, layers, sinks, window, extra):
    """A short stream with the same last logits: the sinks, and as far back as the last tokens can see in any layer."""
    return torch.cat([ids[:sinks], ids[-(layers * (window + 1) + extra) :]])


def test_a_quarter_of_a_million_tokens_later():
    """Angles of stream positions would be off by 1e-3 here; keys rotated again and again by more."""
    plain, ids = tiny_llama(), random_ids(250_000)
    model = inject_attention_sinks(tiny_llama(), S, W)
    cache, start = None, 0
    for length in cut(len(ids) - 60, [16_384, 1, 7]):
        with torch.no_grad():
            call = ids[None, start : start + length]
            cache = model(call, cache=cache, use_cache=True, logits_to_keep=1).cache
        start += length
    logits, _ = stream(model, ids[None, -60:], cut(60, [1, 1, 9]), cache)
    short = receptive_tail(ids, 2, S, W, extra=60)
    assert_close(logits[0], naive_logits(plain, short, S, W)[-60:])


@pytest.mark.parametrize("lengths", [[1], [5], [400]], ids=str)
def test_rounding_errors_do_not_grow(lengths):
    """bfloat16 against float32: keys that were moved within the cache are as exact as keys that never were.

    The window is wide, so that a key rotated at every step would be rotated two hundred times.
    """
    config, window, ids = {"num_hidden_layers": 1}, 200, random_ids(1_200)
    exact, _ = stream(inject_attention_sinks(tiny_llama(**config).bfloat16().float(), S, window), ids[None])
    rounded, _ = stream(
        inject_attention_sinks(tiny_llama(**config).bfloat16(), S, window), ids[None], cut(1_200, lengths)
    )
    errors = (rounded.float() - exact)[0].norm(dim=-1)
    fresh, aged = errors[: S + window].mean(), errors[-400:].mean()
    assert aged < 1.3 * fresh, f"{fresh:.4f} before anything is evicted, {aged:.4f} late"
