"""Attention sinks go in and out between calls. While a call runs, that is refused, and the call is right."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from time import sleep

import pytest
import torch

from attention_sinks import (
    AttentionSinkKVCache,
    attention_sinks_injected,
    inject_attention_sinks,
    remove_attention_sinks,
    verify_attention_sinks,
)
from attention_sinks.architecture.calls import RunningCalls
from attention_sinks.architecture.setup import MARK
from attention_sinks.streaming.forward import _run_call, _stream
from references.naive import naive_logits
from support.helpers import (
    S,
    W,
    assert_close,
    assert_tokens_follow,
    random_ids,
    refused,
    stream,
    streaming_llama,
    tiny_llama,
)
from support.injected import assert_plain, assert_streams

IDS = random_ids(60)
WORDS = ["LlamaModel", "in use", "Wait"]


def pause(result=None):
    sleep(3e-3)
    return result


def leave_a_block(model):
    with attention_sinks_injected(model, 0, 9):
        pass


CHANGES = {
    "inject": lambda model: inject_attention_sinks(model, 0, 9),
    "remove": remove_attention_sinks,
    "block": leave_a_block,
    "verify": verify_attention_sinks,
}
CALLS = {
    "call": lambda model: model(IDS[None]).logits,
    "without a cache": lambda model: model(IDS[None], use_cache=False).logits,
    "step": lambda model: stream(model, IDS[None], [50] + [1] * 10)[0],
}


@contextmanager
def in_the_midst_of(model, work):
    """`work(model)` has begun in another thread, and ends with the block; yields its future."""
    inside, go_on = Event(), Event()

    def stop(*args):
        inside.set()
        assert go_on.wait(timeout=60)

    hook = model.model.layers[1].register_forward_pre_hook(stop)
    with ThreadPoolExecutor(1) as pool:
        with torch.no_grad():
            future = pool.submit(torch.no_grad()(work), model)
            assert inside.wait(timeout=60)
        try:
            yield future
        finally:
            go_on.set()
    hook.remove()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_a_call_runs(change, call):
    model, expected = streaming_llama(), naive_logits(tiny_llama(), IDS, S, W)
    with in_the_midst_of(model, CALLS[call]) as running:
        refused(RuntimeError, lambda: CHANGES[change](model), *WORDS)
    assert_close(running.result()[0], expected)
    assert_streams(model)
    CHANGES[change](model)
    assert_plain(remove_attention_sinks(model))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_generate_runs(change):
    """Also between two of its calls, where a streamer asks for it."""
    model, asked = streaming_llama(), []

    class Asking:
        def put(self, value):
            asked.append(refused(RuntimeError, lambda: CHANGES[change](model), *WORDS))

        def end(self):
            pass

    sequence = model.generate(IDS[None, :20], max_new_tokens=20, do_sample=False, streamer=Asking())[0]
    assert_tokens_follow(naive_logits(tiny_llama(), sequence, S, W), sequence, 20)
    assert len(asked) == 21
    CHANGES[change](model)


def test_the_end_of_a_block_while_a_call_runs():
    """The call is right, and the model keeps the settings of the block."""
    model = tiny_llama()
    with attention_sinks_injected(model, S, W), in_the_midst_of(model, CALLS["call"]) as running:
        pass
    assert_close(running.result()[0], naive_logits(tiny_llama(), IDS, S, W))
    assert_plain(model)
    block = attention_sinks_injected(model, S, W)
    block.__enter__()
    with in_the_midst_of(model, CALLS["call"]):
        refused(RuntimeError, lambda: block.__exit__(None, None, None), *WORDS)
    assert_streams(model)
    assert_plain(remove_attention_sinks(model))


def test_a_call_that_fails_is_over():
    model = streaming_llama()

    def fail(*args):
        raise OSError("a layer failed")

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    for call in (lambda: model(IDS[None]), lambda: model.generate(IDS[None], max_new_tokens=2)):
        with pytest.raises(OSError, match="a layer failed"):
            call()
    with pytest.raises(ValueError, match="attention_mask"):
        model(IDS[None], attention_mask=torch.ones(1, 3))
    hook.remove()
    assert_plain(remove_attention_sinks(model))


def struck_at(line, work):
    """Run `work` with Ctrl-C at a line of the functions that know of calls, counted from 1; whether it came there."""
    executed = 0

    def count(frame, event, arg):
        nonlocal executed
        executed += event == "line"
        if event == "line" and executed == line:
            raise KeyboardInterrupt
        return count

    codes = {
        _stream.__code__,
        _run_call.__code__,
        RunningCalls.begin.__code__,
        RunningCalls.one_more.__wrapped__.__code__,
    }
    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: count if frame.f_code in codes else None)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_of_a_call():
    """Whatever line it strikes, the call is over."""
    model, line = streaming_llama(num_hidden_layers=1), 1
    running = model.model.__dict__[MARK].calls.running
    while struck_at(line, lambda: model.generate(IDS[None, :6], max_new_tokens=2)):
        assert not len(running), f"struck at line {line}"
        line += 1
    assert line > 30
    remove_attention_sinks(model)


def test_changes_and_calls_at_once():
    """Every call is that of the settings before a change or after it."""
    model = streaming_llama()
    settings = [(S, W), (0, 9)]
    expected = [naive_logits(tiny_llama(), IDS, *each) for each in settings]

    @torch.no_grad()
    def call(number):
        calls = [pause(model(IDS[None]).logits[0]) for _ in range(25)]
        return [min((logits - each).abs().max().item() for each in expected) for logits in calls]

    def change(number):
        changed = 0
        for turn in range(100):
            try:
                inject_attention_sinks(model, *settings[turn % 2])
                changed += 1
            except RuntimeError as error:
                assert "in use" in str(error)
            pause()
        return changed

    with ThreadPoolExecutor(4) as pool:
        calling, changing = [pool.submit(call, 0)], [pool.submit(change, n) for n in range(2)]
        assert all(difference < 2e-4 for future in calling for difference in future.result(timeout=300))
        assert any(future.result(timeout=300) for future in changing)
    assert_plain(remove_attention_sinks(model))


def test_removal_while_calls_begin():
    """Every call is one with attention sinks or one without."""
    plain, model = tiny_llama(), streaming_llama()
    with torch.no_grad():
        expected = [naive_logits(plain, IDS, S, W), plain(IDS[None]).logits[0]]

    @torch.no_grad()
    def call(number):
        calls = [model(IDS[None]).logits[0] for _ in range(30)]
        return [min((logits - each).abs().max().item() for each in expected) for logits in calls]

    with ThreadPoolExecutor(2) as pool:
        calling, removed = [pool.submit(call, n) for n in range(2)], False
        while not removed:
            try:
                remove_attention_sinks(model)
                removed = True
            except RuntimeError as error:
                assert "in use" in str(error)
        assert all(difference < 2e-4 for future in calling for difference in future.result(timeout=300))
    assert_plain(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_not_in_use(copied):
    model = streaming_llama()
    running = model.model.__dict__[MARK].calls
    with running.one_more():
        twin = copied(model)
        assert_plain(remove_attention_sinks(twin))
        refused(RuntimeError, lambda: remove_attention_sinks(model), *WORDS)
    assert_streams(model)


def test_a_model_in_use_serves_other_calls():
    model = streaming_llama()
    with in_the_midst_of(model, CALLS["call"]):
        assert AttentionSinkKVCache(model).tokens_seen.tolist() == []
