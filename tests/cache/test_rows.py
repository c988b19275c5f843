"""Rows that come and go: taken out of a cache, put into another, stacked, cleared; each gives what it gives alone."""

import copy
import random
from functools import partial

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.streaming import forward
from references.naive import naive_logits
from support.contract import left_padded, stream_rows
from support.faults import interrupted
from support.helpers import (
    BAD,
    S,
    W,
    assert_close,
    assert_same_state,
    assert_tokens_follow,
    random_ids,
    refused,
    state_of,
    storages_of,
    stored_bytes,
    stream,
    tensors_of,
    tiny_llama,
)
from support.rows import Rows, are_streams_of, feed, streaming_model
from support.zoo import animal_of

# ---- any history


class ManyCaches:
    """Some caches of one model, and which tokens each of their rows has."""

    def __init__(self, seed, recording):
        self.chance = random.Random(seed)
        self.pool = [self.new(count, recording) for count in (1, 3, 2)]
        self.recording = recording

    def new(self, count, recording):
        cache = AttentionSinkKVCache(streaming_model())
        if recording:
            cache.activate_past_recording()
        return self.fed((cache, Rows(count)))

    def fed(self, pair, most=9):
        """Feed a call of columns with padding anywhere; the mask is that of the new columns or of all."""
        cache, rows = pair
        columns = self.chance.randint(1, most)
        ids = random_ids(rows.count, columns, seed=self.chance.randint(0, 10**6))
        real = torch.tensor([[self.chance.random() < 0.8 for _ in range(columns)] for _ in range(rows.count)])
        whole = torch.cat([rows.mask, real.long()], dim=1)
        feed(cache, ids, whole if self.chance.random() < 0.5 else real.long())
        new = torch.where(real, ids, -1).T.tolist()
        return cache, rows.feed(tuple(tuple(None if token < 0 else token for token in column) for column in new))

    def act(self):
        """Do one thing to one of the caches, and return the index of that one."""
        at = self.chance.randrange(len(self.pool))
        cache, rows = self.pool[at]
        row = self.chance.randrange(rows.count)
        match self.chance.choice(["feed"] * 4 + ["step"] * 4 + ["crop"] * 3 + ["put"] * 4 + ["clear", "stack", "save"]):
            case "feed":
                self.pool[at] = self.fed(self.pool[at])
            case "step":
                for _ in range(self.chance.randint(1, 4)):
                    self.pool[at] = self.fed(self.pool[at], most=1)
            case "crop" if cache.streams.returnable:
                columns = self.chance.randint(1, min(cache.streams.returnable, 12))
                cache.crop(-columns)
                self.pool[at] = cache, rows.crop(columns)
            case "put":
                other, other_rows = self.chance.choice(self.pool)
                which = self.chance.randrange(other_rows.count)
                cache.put(row, other.take(which))
                self.pool[at] = cache, rows.put(row, other_rows.take(which))
            case "clear":
                cache.clear_rows([row])
                self.pool[at] = cache, rows.clear([row])
            case "stack":
                other, other_rows = self.chance.choice(self.pool)
                stacked = AttentionSinkKVCache.stack([cache, other]), Rows.stack([rows, other_rows])
                if stacked[1].count > 5:
                    keep = [self.chance.randrange(stacked[1].count) for _ in range(3)]
                    stacked[0].batch_select_indices(torch.tensor(keep))
                    stacked = stacked[0], stacked[1].select(keep)
                self.pool[at] = stacked
            case "save" if not self.recording:
                self.pool[at] = AttentionSinkKVCache.from_snapshot(streaming_model(), *cache.snapshot()), rows
        return at


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_any_history_of_many_caches(seed, recording):
    caches = ManyCaches(seed, recording)
    for _ in range(60):
        assert are_streams_of(*caches.pool[caches.act()])
    assert all(are_streams_of(*pair) for pair in caches.pool)


# ---- what each of them does


@pytest.fixture
def three(model):
    """Streams of three lengths, each in a cache of its own, and their tokens."""
    texts = [random_ids(count, seed=count) for count in (3, 17, 90)]
    return texts, [stream(model, text[None])[1] for text in texts]


def goes_on(model, cache, texts):
    """Every row of `cache` goes on as the stream of its text; None: as one that begins here."""
    rests = [random_ids(40, seed=10 + row) for row in range(len(texts))]
    logits, _ = stream(model, torch.stack(rests), [1, 1, 1, 20, 1, 16], cache)
    for text, rest, row in zip(texts, rests, logits, strict=True):
        whole = rest if text is None else torch.cat([text, rest])
        assert_close(row, naive_logits(tiny_llama(), whole, S, W)[-40:])


def test_stacked_caches_go_on(model, three):
    texts, caches = three
    before = [state_of(cache) for cache in caches]
    stacked = AttentionSinkKVCache.stack([caches[2], AttentionSinkKVCache(model), caches[0], caches[1]])
    assert stacked.tokens_seen.tolist() == [90, 0, 3, 17] and stacked.get_seq_length() == 90
    assert stacked.nbytes == stored_bytes(stacked)
    goes_on(model, stacked, [texts[2], None, texts[0], texts[1]])
    for cache, state in zip(caches, before, strict=True):
        assert_same_state(cache, state)


def test_a_row_that_was_taken_goes_on_and_so_does_the_batch(model, three):
    texts, caches = three
    batch = AttentionSinkKVCache.stack(caches)
    taken = batch.take(1)
    assert taken.batch_size == 1 and taken.tokens_seen.tolist() == [17] and taken.get_seq_length() == 90
    goes_on(model, taken, [texts[1]])
    goes_on(model, batch, texts)


def test_a_row_that_was_put_goes_on_and_so_do_the_others(model, three):
    texts, caches = three
    batch, other = AttentionSinkKVCache.stack(caches), state_of(caches[0])
    batch.put(2, caches[0])
    batch.put(0, caches[1])
    assert_same_state(caches[0], other)
    goes_on(model, batch, [texts[1], texts[1], texts[0]])


def test_a_cleared_row_begins_anew_with_sinks_of_its_own(model, three):
    texts, caches = three
    batch = AttentionSinkKVCache.stack(caches)
    batch.clear_rows([2, 0, 2])
    assert batch.tokens_seen.tolist() == [0, 17, 0] and batch.get_seq_length() == 90
    goes_on(model, batch, [None, texts[1], None])


def test_a_cleared_row_leaves_nothing_in_memory(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack(caches)
    for layer in batch.layers:
        for buffer in layer.buffers:
            buffer[1] = torch.nan
    batch.clear_rows([1])
    assert all(tensor.isfinite().all() for tensor in tensors_of(batch))
    assert all(not buffer[1].any() for layer in batch.layers for buffer in layer.buffers)


def test_nothing_is_allocated_again_or_shared(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack([*caches, caches[0]])
    places, nbytes = storages_of(batch), batch.nbytes
    taken = batch.take(1)
    batch.put(2, taken)
    batch.put(3, AttentionSinkKVCache(model))
    batch.clear_rows([0, 2])
    batch.put(0, batch.take(1))
    assert storages_of(batch) == places and batch.nbytes == nbytes == stored_bytes(batch)
    used = [{tensor.untyped_storage().data_ptr() for tensor in tensors_of(cache)} for cache in (batch, taken, *caches)]
    assert len(set.union(*used)) == sum(map(len, used))


def test_rows_without_tokens_are_empty_caches(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack(caches)
    batch.clear_rows([0])
    taken = batch.take(0)
    assert not taken.is_initialized and taken.get_seq_length() == 0 and taken.nbytes == 0
    batch.put(1, taken)
    batch.put(2, AttentionSinkKVCache(model))
    assert batch.tokens_seen.tolist() == [0, 0, 0]
    goes_on(model, AttentionSinkKVCache.stack([batch, taken]), [None] * 4)
    assert not AttentionSinkKVCache.stack([AttentionSinkKVCache(model), taken]).is_initialized
    batch.clear_rows([])
    AttentionSinkKVCache(model).clear_rows([])


def test_a_cache_is_put_into_itself(model, three):
    texts, caches = three
    caches[2].put(0, caches[2])
    goes_on(model, caches[2], [texts[2]])


def test_idle_rows_wait(model, three):
    """Cleared rows that no step feeds: the others take their steps in place, as if these rows were not there."""
    texts, caches = three
    batch = AttentionSinkKVCache.stack([caches[1], AttentionSinkKVCache(model), caches[2]])
    rest, calls = random_ids(2, 60), []
    plan_block = forward.plan_block
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(forward, "plan_block", lambda *args: calls.append(args) or plan_block(*args))
        steps = [
            model(
                torch.stack([rest[0, t : t + 1], random_ids(1, seed=t), rest[1, t : t + 1]]),
                attention_mask=torch.tensor([[1], [0], [1]]),
                cache=batch,
            ).logits
            for t in range(60)
        ]
    assert not calls, "a step was a block"
    assert batch.tokens_seen.tolist() == [77, 0, 150]
    logits = torch.cat(steps, dim=1)
    for row, (text, new) in zip((0, 2), zip(texts[1:], rest, strict=True), strict=True):
        assert_close(logits[row], naive_logits(tiny_llama(), torch.cat([text, new]), S, W)[-60:])
    batch.put(1, caches[0])
    goes_on(model, batch, [torch.cat([texts[1], rest[0]]), texts[0], torch.cat([texts[2], rest[1]])])


def test_rows_of_other_ages_move_no_origin_that_has_room(model):
    """An old row beside a young one: keys are rotated back as seldom as in a batch of one age."""
    old, young = stream(model, random_ids(1, 1000))[1], stream(model, random_ids(1, 5, seed=1))[1]
    batch, moves = AttentionSinkKVCache.stack([old, young]), []
    with pytest.MonkeyPatch.context() as patch:
        commit = type(batch.layer_stack).commit_rebase
        patch.setattr(type(batch.layer_stack), "commit_rebase", lambda *args: moves.append(1) or commit(*args))
        stream(model, random_ids(2, 100, seed=2), [1] * 100, batch)
    assert 1 < len(moves) <= 100 / (W + 1) + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_exact(dtype):
    model = inject_attention_sinks(tiny_llama().to(dtype), S, W)
    _, cache = stream(model, random_ids(1, 50))
    taken = AttentionSinkKVCache.stack([cache, cache]).take(1)
    assert taken.dtype == dtype
    ids = random_ids(1, 30, seed=1)
    assert torch.equal(stream(model, ids, [1, 28, 1], taken)[0], stream(model, ids, [1, 28, 1], cache)[0])


def test_dense_prefill():
    model = inject_attention_sinks(tiny_llama(), S, W, attention_sink_prefill="dense")
    caches = [stream(model, random_ids(1, count, seed=count), [9, 1, count - 10])[1] for count in (12, 60)]
    rest = random_ids(3, 24)
    starts = [*map(copy.deepcopy, caches), None]
    alone = [stream(model, row[None], [1, 20, 1, 2], start)[0] for row, start in zip(rest, starts, strict=True)]
    batch = AttentionSinkKVCache.stack([*caches, caches[0]])
    batch.clear_rows([2])
    assert_close(stream(model, rest, [1, 20, 1, 2], batch)[0], torch.cat(alone))


# ---- columns


def test_stacked_rows_are_a_batch_padded_on_the_left(model):
    """Masks of all columns, positions and `generate` go on from there."""
    texts = [random_ids(count, seed=count) for count in (5, 30, 12)]
    mask = left_padded([5, 30, 12]).long()
    ids = torch.zeros_like(mask)
    for row, text in enumerate(texts):
        ids[row, -len(text) :] = text
    stacked = AttentionSinkKVCache.stack([stream(model, text[None, :-1])[1] for text in texts])
    padded = stream_rows(model, [text[:-1] for text in texts], [mask.bool()[:, :-1]])[1]
    assert stacked.get_seq_length() == padded.get_seq_length() == 29
    options = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    sequences = model.generate(ids, cache=stacked, **options)
    assert torch.equal(sequences, model.generate(ids, cache=padded, **options))
    for text, sequence in zip(texts, sequences, strict=True):
        whole = torch.cat([text, sequence[30:]])
        assert_tokens_follow(naive_logits(tiny_llama(), whole, S, W), whole, len(text))


def test_a_mask_says_of_a_cleared_row_that_it_was_padding(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack(caches[:2])
    batch.clear_rows([1])
    ids, mask = random_ids(2, 1), left_padded([3, 17], 17).long()
    with torch.no_grad():
        with pytest.raises(ValueError, match="marks 17 tokens|marks \\[3, 17\\] tokens"):
            model(ids, attention_mask=torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1), cache=batch)
        mask[1] = 0
        model(ids, attention_mask=torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1), cache=batch)
    assert batch.tokens_seen.tolist() == [4, 1]


def test_the_longer_history_says_how_many_columns_there_are(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack(caches[:2])
    batch.put(0, caches[2])
    assert batch.get_seq_length() == 90 and batch.streams.returnable == 1
    batch.put(0, caches[0])
    assert batch.get_seq_length() == 90 and batch.streams.returnable == 90
    batch.crop(-3)
    assert batch.tokens_seen.tolist() == [0, 14]


# ---- models with states


@pytest.mark.parametrize("model_type", ["falcon_h1", "bamba", "jamba", "lfm2"])
def test_rows_of_a_model_with_states_idle_on_any_token(model_type):
    """They take no padding after the first call: an idle row is fed anything, and what it became is replaced."""
    model = inject_attention_sinks(animal_of(model_type).build(), S, W)
    text = random_ids(50)
    expected = stream(model, text[None], [20, 10, 1, 19])[0][0]
    other, batch = stream(model, text[None, :20])[1], stream(model, random_ids(2, 40, seed=1))[1]
    batch.put(1, other)
    later = torch.stack([random_ids(30, seed=2), text[20:]])
    assert_close(stream(model, later, [10, 1, 19], batch)[0][1], expected[20:])
    batch.clear_rows([0])
    again = torch.stack([text, random_ids(50, seed=3)])
    assert_close(stream(model, again, [20, 10, 1, 19], batch)[0][0], expected)


def test_a_state_that_has_no_rows_is_refused():
    model = inject_attention_sinks(animal_of("bamba").build(), S, W)
    _, cache = stream(model, random_ids(2, 20))
    states = next(layer for layer in cache.layers if layer.keeps_states).conv_states
    states[0] = states[0].transpose(0, 1).contiguous()
    for act in (lambda: cache.take(0), lambda: cache.clear_rows([0]), lambda: AttentionSinkKVCache.stack([cache])):
        refused(NotImplementedError, act, "layer 0", "first dimension", "copy.deepcopy")
    assert cache.tokens_seen.tolist() == [20, 20]


# ---- exceptions


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("act", ["take", "stack", "put", "clear"])
def test_an_exception_at_any_line(act, recording):
    """The cache is as before or as after, its neighbour as it was, also where that goes on before the rest is done."""

    def begin():
        caches = [AttentionSinkKVCache(streaming_model()) for _ in range(2)]
        for cache, count in zip(caches, (2, 1), strict=True):
            if recording:
                cache.activate_past_recording()
            feed(cache, random_ids(count, 11, seed=count))
        return caches

    rows, other_rows = (Rows(count).feed(columns_of(random_ids(count, 11, seed=count))) for count in (2, 1))
    actions = {
        "take": (lambda cache, other: cache.take(1), rows),
        "stack": (lambda cache, other: AttentionSinkKVCache.stack([cache, other]), rows),
        "put": (lambda cache, other: cache.put(1, other), rows.put(1, other_rows)),
        "clear": (lambda cache, other: cache.clear_rows([1]), rows.clear([1])),
    }
    action, after = actions[act]
    stride = 1 if (act, recording) == ("put", False) else 3 if act in ("put", "clear") else 11
    start, found, line = begin(), [0, 0], 1
    while True:
        cache, other = copy.deepcopy(start[0]), copy.deepcopy(start[1])
        if not interrupted(partial(action, cache, other), line):
            break
        feed(other, random_ids(1, 9, seed=3))
        if are_streams_of(cache, rows):
            found[0] += 1
        else:
            assert are_streams_of(cache, after), f"interrupted at line {line}"
            found[1] += 1
        if line % 7 == 0:
            assert are_streams_of(other, other_rows.feed(columns_of(random_ids(1, 9, seed=3))))
        line += stride
    assert line > 50 and found[0] and (after is rows or found[1])


def columns_of(ids):
    return tuple(tuple(column) for column in ids.T.tolist())


# ---- what is refused


def test_bad_rows(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack(caches)
    before = state_of(batch)
    for row in (3, -1, 10**9):
        for act in (batch.take, lambda row: batch.put(row, caches[0]), lambda row: batch.clear_rows([0, row])):
            refused(ValueError, partial(act, row), row, "3 rows", "0 to 2")
    for row in (1.0, "1", None, True, torch.tensor(True)):
        for act in (batch.take, lambda row: batch.put(row, caches[0]), lambda row: batch.clear_rows([row])):
            refused(TypeError, partial(act, row), "row")
    refused(TypeError, lambda: batch.clear_rows(1), "rows=1", "[0, 2]")
    empty = AttentionSinkKVCache(model)
    for act in (lambda: empty.take(0), lambda: empty.put(0, caches[0]), lambda: empty.clear_rows([0])):
        refused(ValueError, act, "no rows", "first call")
    assert_same_state(batch, before)
    batch.clear_rows(torch.tensor([0, 1]))
    assert batch.tokens_seen.tolist() == [0, 0, 90]


def test_caches_that_do_not_fit(model, three):
    _, caches = three
    batch, stack = AttentionSinkKVCache.stack(caches), AttentionSinkKVCache.stack
    before = state_of(batch)
    stranger = stream(inject_attention_sinks(tiny_llama(seed=1), S, W), random_ids(1, 20))[1]
    smaller = stream(model, random_ids(1, 20), cache=AttentionSinkKVCache(model, S, W - 1))[1]
    recording = copy.deepcopy(caches[0])
    recording.activate_past_recording()
    cases = [
        (ValueError, stranger, "another model"),
        (ValueError, smaller, f"W={W - 1}"),
        (ValueError, AttentionSinkKVCache(model, S + 1, W), f"S={S + 1}"),
        (ValueError, recording, "records"),
        (TypeError, "a cache", "str"),
        (TypeError, None, "NoneType"),
    ]
    for kind, other, *words in cases:
        refused(kind, partial(batch.put, 0, other), "other", *words)
        refused(kind, partial(stack, [batch, other]), "caches[1]", *words)
    refused(ValueError, partial(batch.put, 0, batch), "3 rows", "take(row)")
    refused(ValueError, partial(stack, []), "caches")
    refused(BAD, partial(stack, batch), "list")
    assert_same_state(batch, before)


def test_rows_are_not_converted():
    """Autocast makes keys and values of another dtype, where nothing rotates them in float32."""
    model = inject_attention_sinks(animal_of("bloom").build(), S, W)
    _, cache = stream(model, random_ids(1, 20))
    with torch.autocast("cpu", torch.bfloat16):
        _, half = stream(model, random_ids(1, 20))
    assert (cache.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    refused(ValueError, partial(cache.put, 0, half), "layer 0", "other", "bfloat16", "float32", "autocast")
    refused(ValueError, partial(AttentionSinkKVCache.stack, [half, cache]), "caches[1]", "bfloat16", "float32")


def test_caches_from_before_a_change_of_the_model(three, model):
    _, caches = three
    inject_attention_sinks(model, S, W, attention_sink_prefill="dense")
    new = stream(model, random_ids(1, 9))[1]
    refused(ValueError, partial(new.put, 0, caches[0]), "prefill")
    inject_attention_sinks(model, S, W)
    before = stream(model, random_ids(1, 20))[1]
    model.model.rotary_emb.inv_freq *= 2
    now = stream(model, random_ids(1, 20))[1]
    refused(ValueError, partial(now.put, 0, before), "positions")
    refused(ValueError, partial(AttentionSinkKVCache.stack, [now, before]), "positions")


def test_a_cache_in_use_is_refused(model, three):
    _, caches = three
    batch = AttentionSinkKVCache.stack(caches)
    acts = [
        (batch, lambda: batch.take(0)),
        (batch, lambda: batch.put(0, caches[0])),
        (caches[0], lambda: batch.put(0, caches[0])),
        (batch, lambda: batch.clear_rows([0])),
        (caches[0], lambda: AttentionSinkKVCache.stack([caches[1], caches[0]])),
    ]
    errors = []
    projection = model.model.layers[1].self_attn.o_proj

    def disturb(module, args, act):
        with pytest.raises(RuntimeError, match="in use") as caught:
            act()
        errors.append(caught)

    for fed, act in acts:
        hook = projection.register_forward_pre_hook(partial(disturb, act=act))
        stream(model, random_ids(len(fed.streams.seen), 1), cache=fed)
        hook.remove()
    assert len(errors) == len(acts)
    assert batch.tokens_seen.tolist() == [6, 20, 93]
