"""Whatever the first process does with the model and its caches, the others do too. Here one follower has it whole."""

import copy
import gc
import inspect
import multiprocessing
import pickle
import threading
import time

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, StreamPool, inject_attention_sinks
from attention_sinks.tensor_parallel import following
from attention_sinks.tensor_parallel.commands import Command, Outcome
from attention_sinks.tensor_parallel.follower import Follower
from attention_sinks.tensor_parallel.following import Inbox
from attention_sinks.tensor_parallel.leader import Leader
from attention_sinks.tensor_parallel.led_cache import LedCache
from attention_sinks.tensor_parallel.shards import as_bytes, cut_layers, from_bytes, joined, part_of
from support.helpers import random_ids, refused, stream, tiny_llama
from support.pools import END, S, W, config
from support.toy_tokenizers import DEFAULT_SYSTEM, thinking_tokenizer, word_tokenizer
from support.zoo import animal_of

KEYS = "layers.1.0"
"""The name of a tensor in a snapshot."""


class Wire:
    """Stands for the connection to a process that follows: that does at once what it is told."""

    def __init__(self):
        self.replies = []
        self.follower, self.sent, self.own = Follower(streaming(), self.replies.append), [], None

    def send_bytes(self, data):
        message = pickle.loads(data)
        if isinstance(message, Command):
            self.sent.append(message)
            self.own = self.follower.obey(message)
        else:
            assert self.own.difference(message) is None

    def recv_bytes(self):
        return self.replies.pop(0)

    def assert_alike(self, *caches):
        """Both have the same streams; of a model that is not cut, the same numbers."""
        for cache in caches:
            theirs = self.follower.caches[cache.number]
            assert theirs is not cache and theirs.streams.now() == cache.streams.now()
            tensors = cache.layer_stack.tensors
            assert tensors and all(map(torch.equal, tensors, theirs.layer_stack.tensors))


def streaming():
    return inject_attention_sinks(tiny_llama(), S, W)


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def leader(wire):
    return Leader([wire])


@pytest.fixture
def model(leader):
    model = streaming()
    leader.lead(model)
    return model


@pytest.fixture
def new(leader, model):
    """`new(2, 20)`: a cache whose 2 rows have seen 20 tokens."""

    def make(rows, tokens):
        cache = leader.cache_class(model)
        with torch.no_grad():
            stream(model, random_ids(rows, tokens), cache=cache)
        return cache

    return make


CONVERSATIONS = {
    "joins_and_leaves": {},
    "a_shared_beginning": {"tokenizer": word_tokenizer(DEFAULT_SYSTEM.replace("w1 ", "w1 " * 20))},
    "thoughts_forgotten": {"tokenizer": thinking_tokenizer(), "thoughts": "forget"},
}


@pytest.mark.parametrize("options", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_pool_says_what_it_says_alone(wire, leader, model, options):
    speaks = config(eos_token_id=END, max_new_tokens=40)
    options = {"tokenizer": word_tokenizer(), "generation_config": speaks, "chunk_size": 7, **options}

    def talked(model, **more):
        with StreamPool(model, rows=4, **options, **more) as pool:
            conversations, said = [pool.conversation() for _ in range(7)], []
            for turn in range(3):
                told = [f"w{number} w{turn}" + " w9" * 11 * (number % 3) for number in range(7 - 3 * (turn % 2))]
                answers = [each.send(text) for each, text in zip(conversations, told, strict=False)]
                said += ["".join(answer) for answer in answers]
            conversations[0].ask("w1 w2")  # the batch has become smaller
            if "cache_class" in more:
                wire.assert_alike(*(each._open().value.stream.cache for each in conversations))
        return said

    assert talked(model, cache_class=leader.cache_class) == talked(streaming())
    assert {command.action for command in wire.sent} > {"new", "call", "take", "put", "batch_select_indices"}
    assert "__deepcopy__" in {command.action for command in wire.sent} or not options.keys() & {"thoughts"}


def test_the_others_forget_what_nobody_has(wire, leader, model):
    options = {"generation_config": config(max_new_tokens=3), "cache_class": leader.cache_class}
    most = 0
    with StreamPool(model, word_tokenizer(), 3, **options) as pool:
        for round in range(12):
            answers = [pool.conversation().send(f"w{number} w{round}") for number in range(4)]
            for answer in answers:
                list(answer)
            most = max(most, len(wire.follower.caches))
    assert most < 25 < sum(command.action == "new" for command in wire.sent)
    del answers, answer, pool
    gc.collect()
    kept = leader.cache_class(model)
    assert list(wire.follower.caches) == [kept.number]


CHANGES = {
    "put": lambda cache, new: cache.put(1, new(1, 30)),
    "take": lambda cache, new: cache.take(1),
    "copy": lambda cache, new: copy.deepcopy(cache),
    "reorder": lambda cache, new: cache.reorder_cache(torch.tensor([1, 1, 0])),
    "repeat": lambda cache, new: cache.batch_repeat_interleave(2),
    "select": lambda cache, new: cache.batch_select_indices(torch.tensor([False, True])),
    "clear": lambda cache, new: cache.clear_rows(row for row in [0]),
    "crop": lambda cache, new: cache.crop(-1),
    "record": lambda cache, new: cache.activate_past_recording(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_cache(wire, new, model, change):
    cache = new(2, 20)
    made = change(cache, new)
    wire.assert_alike(cache, *([] if made is None else [made]))
    with torch.no_grad():
        stream(model, random_ids(cache.batch_size, 3, seed=2), [1, 2], cache)
    wire.assert_alike(cache)
    cache.deactivate_past_recording()
    cache.reset()
    assert not wire.follower.caches[cache.number].is_initialized


def test_a_snapshot_is_of_all_and_for_all(wire, leader, new, model):
    """Of a model that is not cut each process has all, so the snapshot is that of any of them."""
    cache = new(2, 20)
    known = leader.cache_class.fingerprint_of(model)
    tensors, state = cache.snapshot(known)
    expected, same = wire.follower.caches[cache.number].snapshot()
    assert state == same and not cut_layers(model)
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in tensors)
    wire.assert_alike(leader.cache_class.from_snapshot(model, tensors, state, known))
    tensors[KEYS] = tensors[KEYS][:, :1]
    refused(ValueError, lambda: leader.cache_class.from_snapshot(model, tensors, state, known), "layer 1")
    assert wire.own.error is not None, "it was refused by all alike"


def test_parts_and_wholes():
    tensors = {"layers.0.0": torch.rand(2, 4, 7, 8), "layers.1.0": torch.rand(2, 4, 7, 8)}
    parts = [part_of(tensors, {0}, rank, 2) for rank in range(2)]
    assert [part["layers.0.0"].shape[1] for part in parts] == [2, 2]
    assert all(torch.equal(part["layers.1.0"], tensors["layers.1.0"]) for part in parts)
    whole = joined([from_bytes(as_bytes(part)) for part in parts], {0})
    assert all(torch.equal(whole[name], tensors[name]) for name in tensors)
    refused(NotImplementedError, lambda: cut_layers(inject_attention_sinks(animal_of("gpt_neox").build(), S, W)))


def test_no_change_is_missed():
    """A method that somebody adds to caches is either led or reads only, or is made of some that are led."""
    reads = {"get_seq_length", "get_query_offset", "get_mask_sizes", "save", "load", "serves", "table", "was_made_for"}
    made_of_others = {"new_empty", "reorder_cache", "batch_repeat_interleave"}
    public = {name for name, _ in inspect.getmembers(AttentionSinkKVCache, callable) if not name.startswith("_")}
    own = public & {*vars(AttentionSinkKVCache)}
    assert own - {*vars(LedCache)} == reads | made_of_others


def test_what_is_refused_leaves_all_as_they_were(wire, new, model):
    cache = new(2, 30)
    refused(ValueError, lambda: cache.crop(-20), "crop(-20)")
    refused(ValueError, lambda: cache.put(5, new(1, 3)), "row 5")
    refused(ValueError, lambda: model(random_ids(3, 2), cache=cache), "cache")
    wire.assert_alike(cache)
    assert wire.own.error is not None


def test_what_cannot_be_sent_is_refused_here(wire, model):
    before = len(wire.sent)
    refused(TypeError, lambda: model(random_ids(1, 2), cache=AttentionSinkKVCache(model)), "Leader.cache_class")
    assert len(wire.sent) == before


@pytest.fixture
def inbox(monkeypatch):
    """A connection, and what reads from its other end: a process that follows, of which only the end is missing."""

    def end(code):
        raise SystemExit(code)  # in a thread it ends that

    monkeypatch.setattr(following.os, "_exit", end)
    monkeypatch.setattr(following, "PATIENCE", 0.5)
    here, there = multiprocessing.Pipe()
    yield here, Inbox(there, "process 2 of 2")
    here.close()
    for thread in threading.enumerate():
        if thread.name == "attention_sinks-inbox":
            thread.join(10)  # as long as nothing else can end
            assert not thread.is_alive()


ENDS_A_THREAD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

NEW, CALL = Command("new", [None, None], 0, []), Command("call", [], 1, [])


@pytest.mark.parametrize(
    ("own", "theirs", "word"),
    [
        (Outcome("OutOfMemoryError()", []), Outcome(None, []), "OutOfMemoryError"),
        (Outcome(None, []), Outcome("OutOfMemoryError()", []), "OutOfMemoryError"),
        (Outcome("OutOfMemoryError()", []), None, "goes on"),
        (Outcome(None, [(3,)]), Outcome(None, [(4,)]), "(4,)"),
    ],
    ids=["an_error_here", "an_error_there", "no_word", "other_streams"],
)
@ENDS_A_THREAD
def test_who_goes_another_way_ends(inbox, capsys, own, theirs, word):
    connection, inbox = inbox
    connection.send_bytes(pickle.dumps(CALL))
    assert inbox.command() == CALL
    if theirs is not None:
        connection.send_bytes(pickle.dumps(theirs))
    with pytest.raises(SystemExit, match="1"):
        inbox.compare(CALL, own)
    assert word in capsys.readouterr().err


@ENDS_A_THREAD
def test_who_is_stuck_ends(inbox, capsys):
    """The first process has broken off a call, in which this one waits for it."""
    connection, inbox = inbox
    for message in (CALL, Outcome("OutOfMemoryError()", [])):
        connection.send_bytes(pickle.dumps(message))
    assert inbox.command() == CALL
    deadline, told = time.monotonic() + 10, ""
    while "it has not done" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        told += capsys.readouterr().err


@ENDS_A_THREAD
def test_who_goes_the_same_way_goes_on(inbox):
    connection, inbox = inbox
    for command, error in ((NEW, None), (CALL, "ValueError()")):
        connection.send_bytes(pickle.dumps(command))
        connection.send_bytes(pickle.dumps(Outcome(error, [(3,)])))
        assert inbox.command() == command
        inbox.compare(command, Outcome(error, [(3,)]))
    connection.send_bytes(pickle.dumps(None))
    assert inbox.command() is None
