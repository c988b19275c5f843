"""What a call can return or take beside ids and logits, as in Transformers."""

import pytest
import torch
import torch.nn.functional as F

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.streaming import forward
from attention_sinks.versions import transformers_release
from references.naive import naive_logits, naive_stream
from support.contract import left_padded, pattern
from support.helpers import (
    S,
    W,
    assert_close,
    cut,
    largest_difference,
    plain_logits,
    random_ids,
    stream,
    streaming_llama,
    tiny_llama,
)

ROOM = S + W + 1


@pytest.fixture(scope="module")
def ids():
    return random_ids(90)


@pytest.fixture(scope="module")
def expected(ids):
    with torch.no_grad():
        return naive_stream(tiny_llama(), ids, S, W)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("keep", [1, 5, 60, torch.tensor([0, 17, 89])], ids=str)
def test_logits_to_keep(ids, expected, keep, use_cache):
    with torch.no_grad():
        logits = streaming_llama()(ids[None], logits_to_keep=keep, use_cache=use_cache).logits
    assert_close(logits[0], expected.logits[keep if isinstance(keep, torch.Tensor) else slice(-keep, None)])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("length", [10, ROOM, 90])
def test_hidden_states_of_a_call(ids, expected, length, use_cache):
    with torch.no_grad():
        states = streaming_llama()(ids[None, :length], output_hidden_states=True, use_cache=use_cache).hidden_states
    assert len(states) == 3 and all(state.shape == (1, length, 64) for state in states)
    assert_close(torch.cat(states), expected.hidden_states[:, :length], tolerance=2e-3)  # of magnitude 10


CHOSEN = [[0, 2], [1], [-1], 1]


@pytest.mark.skipif(transformers_release() < (5, 24), reason="this release cannot choose")
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_chosen_hidden_states_of_a_short_text_are_those_of_plain_transformers(chosen, padding):
    ids, mask = random_ids(2, 10), torch.ones(2, 10, dtype=torch.long)
    if padding != "none":
        mask[0, slice(0, 3) if padding == "left" else slice(7, None)] = 0
    options = {"attention_mask": mask, "output_hidden_states": chosen}
    with torch.no_grad():
        plain = tiny_llama()(ids, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **options).hidden_states
        states = streaming_llama()(ids, **options).hidden_states
    for own, theirs in zip(states, plain, strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            assert_close(own[mask.bool()], theirs[mask.bool()])


@pytest.mark.skipif(transformers_release() < (5, 24), reason="this release cannot choose")
@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_chosen_hidden_states_of_a_call_in_chunks(ids, expected, chosen, monkeypatch):
    monkeypatch.setattr(forward, "CHUNK_SIZE", 32)
    with torch.no_grad():
        states = streaming_llama()(ids[None], output_hidden_states=chosen).hidden_states
    indices = {index % 3 for index in ([chosen] if isinstance(chosen, int) else chosen)}
    assert len(states) == 3 and {index for index, state in enumerate(states) if state is not None} == indices
    for index in indices:
        assert_close(states[index][0], expected.hidden_states[index], tolerance=2e-3)


def test_hidden_states_token_by_token(ids, expected):
    model, cache, states = streaming_llama(), None, []
    for token in ids:
        with torch.no_grad():
            outputs = model(token[None, None], cache=cache, output_hidden_states=True)
        cache = outputs.cache
        states.append(torch.cat(outputs.hidden_states))
    assert_close(torch.cat(states, dim=1), expected.hidden_states, tolerance=2e-3)


def test_the_base_model_streams_too(ids, expected):
    model = streaming_llama()
    hidden, cache = [], None
    for length in cut(90, [1, 20]):
        with torch.no_grad():
            start = cache.get_seq_length() if cache else 0
            outputs = model.model(ids[None, start : start + length], cache=cache, use_cache=True)
        cache = outputs.cache
        hidden.append(outputs.last_hidden_state)
    assert_close(torch.cat(hidden, dim=1)[0], expected.hidden_states[-1], tolerance=2e-3)


def test_attentions_of_single_tokens_are_in_cache_order(ids, expected):
    model, cache = streaming_llama(attn_implementation="eager"), None
    for t, token in enumerate(ids):
        with torch.no_grad():
            outputs = model(token[None, None], cache=cache, output_attentions=True)
        cache = outputs.cache
        weights = torch.stack(outputs.attentions)[:, 0, :, 0]
        assert_close(weights, expected.attentions[t])
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), tolerance=1e-5)


def test_attentions_of_a_first_call_are_plain_transformers(ids):
    with torch.no_grad():
        plain = tiny_llama(attn_implementation="eager")(ids[None, :ROOM], output_attentions=True)
        outputs = streaming_llama(attn_implementation="eager")(ids[None, :ROOM], output_attentions=True)
    assert_close(torch.stack(outputs.attentions), torch.stack(plain.attentions))
    assert_close(outputs.logits, plain.logits)


def test_gradients_reach_the_attentions(ids):
    """Weights that are read off beside the output would get none."""
    mask = torch.ones(2, ROOM, dtype=torch.long)
    mask[0, :5] = 0
    batch, gradients = ids[: 2 * ROOM].view(2, ROOM), []
    for model in (tiny_llama(attn_implementation="eager"), streaming_llama(attn_implementation="eager")):
        outputs = model(batch, attention_mask=mask, output_attentions=True, use_cache=False)
        for weights in outputs.attentions:
            weights.retain_grad()
        F.cross_entropy(outputs.logits[mask.bool()], batch[mask.bool()]).backward()
        gradients.append(torch.stack([weights.grad for weights in outputs.attentions]))
    seen = mask.bool()[:, None, :, None] & mask.bool()[:, None, None] & torch.ones(ROOM, ROOM).tril().bool()
    plain, own = (gradient.masked_fill(~seen, 0) for gradient in gradients)
    assert plain.abs().max() > 1e-2
    assert_close(own, plain, tolerance=1e-5)


def test_attentions_of_a_later_call(ids, expected):
    """Several new tokens behind a full cache: the row sums are 1 and the last token's weights are the reference's."""
    model = streaming_llama(attn_implementation="eager")
    _, cache = stream(model, ids[None, :50])
    with torch.no_grad():
        outputs = model(ids[None, 50:60], cache=cache, output_attentions=True)
    weights = torch.stack(outputs.attentions)[:, 0]
    assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), tolerance=1e-5)
    for i in range(10):
        seen, reference = weights[:, :, i], expected.attentions[50 + i]
        visible = seen.abs().amax(dim=(0, 1)) > 0
        assert visible.sum() == ROOM
        assert_close(seen[..., visible], reference)


def test_inputs_embeds(ids, expected):
    model, cache, logits = streaming_llama(), None, []
    for length, start in ((40, 0), (1, 40), (49, 41)):
        embeds = model.get_input_embeddings()(ids[None, start : start + length])
        with torch.no_grad():
            outputs = model(inputs_embeds=embeds, cache=cache, use_cache=True)
        cache = outputs.cache
        logits.append(outputs.logits)
    assert_close(torch.cat(logits, dim=1)[0], expected.logits)


@pytest.mark.parametrize("calls", [[40], [16, 24], [1] * 40], ids=["one", "two", "single"])
def test_loss_of_labels_with_a_cache(ids, expected, calls):
    model, cache, start = streaming_llama(), None, 0
    for length in calls:
        if length > 1:
            part = slice(start, start + length)
            outputs = model(ids[None, part], labels=ids[None, part], cache=cache, use_cache=True)
            loss = F.cross_entropy(expected.logits[part][:-1], ids[part][1:])
            assert_close(outputs.loss, loss)
        else:
            outputs = model(ids[None, start : start + 1], cache=cache, use_cache=True)
        cache, start = outputs.cache, start + length
    assert cache.tokens_seen.tolist() == [40]


def test_outputs_stand_where_their_columns_stand():
    """With padding in the middle and on the right too: hidden states, weights and logits keep the caller's columns."""
    shape = pattern("x.xx..xxxxx.x", "..xxx.xxxx...")
    ids = random_ids(2, 13)
    with torch.no_grad():
        model = streaming_llama(attn_implementation="eager")
        outputs = model(ids, attention_mask=shape.long(), output_hidden_states=True, output_attentions=True)
        for r in range(2):
            row = naive_stream(tiny_llama(), ids[r, shape[r]], S, W)
            assert_close(outputs.logits[r, shape[r]], row.logits)
            states = torch.stack([state[r, shape[r]] for state in outputs.hidden_states])
            assert_close(states, row.hidden_states, tolerance=2e-3)
            for i, column in enumerate(shape[r].nonzero()[:, 0]):
                weights = torch.stack([w[r, :, column] for w in outputs.attentions])
                seen = weights[..., weights.amax(dim=(0, 1)) > 0]
                assert_close(seen.sort().values, row.attentions[i].sort().values)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("prefill", ["streaming", "dense"])
def test_nan_in_padding_stays_there(with_gradients, prefill):
    """Padding on the left, in the middle and on the right, in one call of several and in a step."""
    model, plain = inject_attention_sinks(tiny_llama(), S, 30, prefill), tiny_llama()
    shape = pattern("..xxxx.xx.x", "xxxxxx...x.", "x.xxxx.....")
    embeds = plain.get_input_embeddings()(random_ids(3, 11)).detach()
    poisoned = embeds.masked_fill(~shape[..., None], float("nan")).requires_grad_(with_gradients)
    cache, calls = AttentionSinkKVCache(model), []
    with torch.set_grad_enabled(with_gradients):
        for columns in (slice(0, 6), slice(6, 10), slice(10, 11)):
            mask = shape[:, columns].long()
            calls.append(model(inputs_embeds=poisoned[:, columns], attention_mask=mask, cache=cache).logits)
    logits = torch.cat(calls, dim=1)
    for row, own in enumerate(shape):
        assert_close(logits[row, own], plain_logits(plain, None, inputs_embeds=embeds[row, own][None])[0])
    if with_gradients:
        logits[shape].square().sum().backward()
        assert poisoned.grad[shape].abs().max() > 0 and poisoned.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.int64, torch.float32], ids=str)
def test_a_mask_of_any_number_type(ids, expected, kind):
    mask = left_padded([70, 40]).to(kind)
    batch = torch.stack([ids[:70], ids[:70]])
    batch[1, 30:] = ids[:40]
    with torch.no_grad():
        logits = streaming_llama()(batch, attention_mask=mask).logits
    assert_close(logits[0], expected.logits[:70])
    assert_close(logits[1, 30:], expected.logits[:40])


def test_arguments_by_position(ids, expected):
    with torch.no_grad():
        model = streaming_llama()
        assert_close(model(ids[None], torch.ones(1, 90)).logits[0], expected.logits)
        hidden = model.model(ids[None], torch.ones(1, 90)).last_hidden_state
    assert_close(hidden[0], expected.hidden_states[-1], tolerance=2e-3)


def test_a_single_token_without_a_cache(ids, expected):
    with torch.no_grad():
        outputs = streaming_llama()(ids[None, :1], use_cache=False)
    assert_close(outputs.logits[0], expected.logits[:1])


def test_a_cache_from_inference_mode_goes_on_outside(ids, expected):
    model = streaming_llama()
    with torch.inference_mode():
        outputs = model(ids[None, :30])
        outputs = model(ids[None, 30:31], cache=outputs.cache)
    outputs = model(ids[None, 31:32], cache=outputs.cache)
    outputs = model(ids[None, 32:60], cache=outputs.cache)
    outputs.logits.sum().backward()
    with torch.no_grad():
        outputs = model(ids[None, 60:], cache=outputs.cache)
    assert_close(outputs.logits[0], expected.logits[60:])


def test_a_tuple_where_no_dict_is_wanted(ids, expected):
    with torch.no_grad():
        logits, cache = streaming_llama()(ids[None], return_dict=False)[:2]
    assert_close(logits[0], expected.logits)
    assert cache.tokens_seen.tolist() == [90]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_implementations_give_the_same(ids, expected, implementation):
    logits, _ = stream(streaming_llama(attn_implementation=implementation), ids[None], cut(90, [1, 1, 1, 20, 40]))
    assert_close(logits[0], expected.logits)


@pytest.mark.parametrize("lengths", [[1], [90], [20, 1]], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.35), (torch.float16, 0.05)], ids=str)
def test_half_precision_is_near(ids, dtype, tolerance, lengths):
    """Compared with float32 logits of the same rounded weights; the teeth stay longer than the tolerance."""
    plain = tiny_llama().to(dtype).float()
    reference = naive_logits(plain, ids, S, W)
    model = inject_attention_sinks(tiny_llama().to(dtype), S, W)
    logits, cache = stream(model, ids[None], cut(90, lengths))
    assert logits.dtype == dtype and not logits.isnan().any()
    assert (logits[0].float() - reference).abs().mean() < tolerance / 5
    assert_close(logits[0], reference, tolerance)
    assert largest_difference(naive_logits(plain, ids, S, W + 1), reference) > 2 * tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.01)], ids=str)
def test_half_precision_of_a_short_text_is_plain_transformers(ids, dtype, tolerance):
    """Closer than to float32: a model cast as a whole has rounded rotary frequencies, and these are the ones to use."""
    plain = tiny_llama().to(dtype)
    with torch.no_grad():
        expected = plain(ids[None, :ROOM]).logits
    for lengths in ([ROOM], [1]):
        logits, _ = stream(inject_attention_sinks(tiny_llama().to(dtype), S, W), ids[None, :ROOM], cut(ROOM, lengths))
        assert (logits - expected).float().abs().mean() < tolerance


def test_half_precision_with_padding_has_no_nan():
    model = inject_attention_sinks(tiny_llama().bfloat16(), S, W)
    mask = left_padded([30, 1]).long()
    with torch.no_grad():
        outputs = model(random_ids(2, 30), attention_mask=mask)
        assert not outputs.logits.isnan().any()
        again = model(random_ids(2, 1), attention_mask=torch.tensor([[1], [0]]), cache=outputs.cache)
    assert not again.logits.isnan().any()


def test_scores_of_padding_are_finite(ids):
    """Nobody reads them, but a NaN would spread through a mean or a loss."""
    with torch.no_grad():
        outputs = streaming_llama()(random_ids(2, 40), attention_mask=left_padded([40, 0]).long())
    assert outputs.logits.isfinite().all()
