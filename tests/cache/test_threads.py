"""One model in several threads, each with a stream of its own: nothing about a stream lives on the model."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.helpers import (
    LENGTH_DEPENDENT,
    THREADS,
    assert_close,
    assert_tokens_follow,
    cut,
    in_parallel,
    random_ids,
    refused,
    stream,
    tiny_llama,
)

SETTINGS = [(4, 12), (4, 20), (0, 9), (1, 30), (2, 11), (8, 5)]
MODELS = {"default": {}, **LENGTH_DEPENDENT}


@pytest.mark.parametrize("kind", MODELS)
def test_streams_in_threads(kind):
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]))
    ids = [random_ids(100 + 7 * number, seed=number) for number in range(THREADS)]

    def work(number):
        cache = AttentionSinkKVCache(model, *SETTINGS[number])
        return stream(model, ids[number][None], cut(len(ids[number]), [1, 1, 1 + number]), cache)[0][0]

    for number, logits in enumerate(in_parallel(work)):
        assert_close(logits, naive_logits(plain, ids[number], *SETTINGS[number]))


@pytest.mark.parametrize("kind", MODELS)
def test_stateless_calls_in_threads(kind):
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]), 4, 12)
    ids = [random_ids(30 + 20 * number, seed=number) for number in range(THREADS)]

    def work(number):
        with torch.no_grad():
            return [model(ids[number][None], use_cache=False).logits[0] for _ in range(15)]

    for number, calls in enumerate(in_parallel(work)):
        expected = naive_logits(plain, ids[number], 4, 12)
        for logits in calls:
            assert_close(logits, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_generate_in_threads(kind):
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]), 4, 12)

    def work(number):
        return model.generate(random_ids(1, 5 + 6 * number, seed=number), max_new_tokens=40, do_sample=False)[0]

    for number, sequence in enumerate(in_parallel(work)):
        assert_tokens_follow(naive_logits(plain, sequence, 4, 12), sequence, 5 + 6 * number)


@pytest.mark.parametrize("kind", MODELS)
def test_forks_and_rollbacks_in_threads(kind):
    """Forks of one stream, each taken back and fed on by its own thread."""
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]), 4, 12)
    start = random_ids(60)
    _, cache = stream(model, start[None])
    cache.activate_past_recording()
    stream(model, random_ids(1, 30, seed=1), [1] * 10 + [20], cache)
    forks = [copy.deepcopy(cache) for _ in range(THREADS)]
    rests = [random_ids(60, seed=10 + number) for number in range(THREADS)]

    def work(number):
        fork, parts = forks[number], []
        fork.crop(-30)
        for part in rests[number].split(20):
            stream(model, random_ids(1, 9, seed=number), [1, 8], fork)
            fork.crop(-9)
            parts.append(stream(model, part[None], [1, 1, 18], fork)[0][0])
        return torch.cat(parts)

    for number, logits in enumerate(in_parallel(work)):
        assert_close(logits, naive_logits(plain, torch.cat([start, rests[number]]), 4, 12)[60:])


@pytest.mark.parametrize("kind", MODELS)
def test_all_kinds_of_generate_in_threads(kind):
    """Greedy, assisted by one shared model, beams, padded rows: each gives what it gives when nothing else runs."""
    model = inject_attention_sinks(tiny_llama(**MODELS[kind]), 4, 12)
    draft = inject_attention_sinks(tiny_llama(**MODELS[kind], num_hidden_layers=1), 2, 9)
    draft.generation_config.num_assistant_tokens_schedule = "constant"  # the others write into the shared model
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :11] = 0
    searches = [
        {"assistant_model": draft},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 4},
        {"attention_mask": mask},
        {},
        {"num_return_sequences": 2, "num_beams": 2},
    ]

    def work(number):
        rows = 2 if number == 3 else 1
        prompt = random_ids(rows, 20, seed=number)
        return model.generate(prompt, max_new_tokens=40, do_sample=False, **searches[number])

    expected = [work(number) for number in range(THREADS)]
    for sequences, alone in zip(in_parallel(work), expected, strict=True):
        assert torch.equal(sequences, alone)


@pytest.mark.parametrize("kind", MODELS)
def test_interleaved_generate_calls(kind):
    """Turns of several streams taken one after the other, with caches of different sizes."""
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]))
    caches = [AttentionSinkKVCache(model, *setting) for setting in SETTINGS[:4]]
    texts = [random_ids(1, 10 + 9 * number, seed=number) for number in range(4)]
    for turn in range(3):
        for number, cache in enumerate(caches):
            prompt = texts[number]
            made = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), cache=cache, max_new_tokens=8, do_sample=False
            )
            assert_tokens_follow(naive_logits(plain, made[0], *SETTINGS[number]), made[0], prompt.shape[1])
            texts[number] = torch.cat([made, random_ids(1, 5, seed=turn)], dim=1)


# ---- one cache in two threads


def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=60)


DISTURBANCES = {
    "feed": lambda model, cache, path: stream(model, random_ids(1, 2), cache=cache),
    "copy": lambda model, cache, path: copy.deepcopy(cache),
    "save": lambda model, cache, path: cache.save(path),
    "crop": lambda model, cache, path: cache.crop(-1),
    "reorder": lambda model, cache, path: cache.reorder_cache(torch.tensor([0])),
    "record": lambda model, cache, path: cache.activate_past_recording(),
}


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("what", DISTURBANCES)
def test_a_cache_that_is_being_fed_is_left_alone(model, what, columns, tmp_path):
    """The other thread is refused, and the call goes on as if nothing had been."""
    _, cache = stream(model, random_ids(1, 20))
    untouched, messages = copy.deepcopy(cache), []

    def disturb(*_):
        def attempt():
            messages.append(
                refused(RuntimeError, lambda: DISTURBANCES[what](model, cache, tmp_path / "cache"), "cache", "in use")
            )

        in_another_thread(attempt)

    hook = model.model.layers[1].register_forward_pre_hook(disturb)
    logits, _ = stream(model, random_ids(1, columns, seed=1), cache=cache)
    hook.remove()
    assert len(messages) == 1 and not list(tmp_path.iterdir())
    assert torch.equal(logits, stream(model, random_ids(1, columns, seed=1), cache=untouched)[0])
    assert cache.tokens_seen.tolist() == [20 + columns]


@pytest.mark.parametrize("columns", [1, 3])
def test_a_cache_that_is_reset_while_it_is_fed(model, columns):
    _, cache = stream(model, random_ids(1, 20))
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: in_another_thread(cache.reset))
    with pytest.raises(RuntimeError, match="reset"):
        stream(model, random_ids(1, columns, seed=1), cache=cache)
    hook.remove()
    assert cache.tokens_seen.tolist() == [] and cache.nbytes == 0
    expected, _ = stream(model, random_ids(1, 9))
    assert torch.equal(stream(model, random_ids(1, 9), cache=cache)[0], expected)


def test_of_calls_that_begin_at_once_one_is_refused(model):
    """What was not refused is in the stream."""
    _, cache = stream(model, random_ids(1, 20))

    def work(number):
        done = 0
        for _ in range(40):
            try:
                stream(model, random_ids(1, 1, seed=number), cache=cache)
                done += 1
            except RuntimeError as error:
                assert "in use" in str(error)
        return done

    done = sum(in_parallel(work))
    assert done and cache.tokens_seen.tolist() == [20 + done]
