"""Gradients: without a cache, with one, and through gradient checkpointing."""

import pytest
import torch
import torch.nn.functional as F

from attention_sinks import inject_attention_sinks
from references.naive import naive_stream
from support.helpers import assert_close, random_ids, stream, tiny_llama
from support.zoo import MODELS, animal_of

S, W = 4, 12


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(model, reference):
    mine, theirs = gradients(model), gradients(reference)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name] is not None, f"no gradient for {name}"
        scale = theirs[name].abs().max()
        difference = (mine[name] - theirs[name]).abs().max()
        assert scale > 0 and difference <= 1e-3 * scale, f"{name}: off by {difference:.1e} of {scale:.1e}"


def reference_gradients(ids, first=0, dense=False):
    """Gradients of the loss over the tokens from `first` on; those before are an earlier call."""
    model, calls = tiny_llama(), [first, len(ids) - first] if first else [len(ids)]
    logits = naive_stream(model, ids, S, W, detach_before=first, dense_calls=calls if dense else None).logits
    loss = F.cross_entropy(logits[first:-1], ids[first + 1 :])
    loss.backward()
    return model, loss


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("length", [10, 60])
def test_gradients_of_one_call(length, use_cache, implementation):
    ids = random_ids(length)
    reference, loss = reference_gradients(ids)
    model = inject_attention_sinks(tiny_llama(attn_implementation=implementation), S, W)
    outputs = model(ids[None], labels=ids[None], use_cache=use_cache)
    assert_close(outputs.loss, loss)
    outputs.loss.backward()
    assert_same_gradients(model, reference)


def test_gradients_of_dense_prefill():
    ids = random_ids(60)
    reference, loss = reference_gradients(ids, dense=True)
    model = inject_attention_sinks(tiny_llama(), S, W, "dense")
    outputs = model(ids[None], labels=ids[None])
    assert_close(outputs.loss, loss)
    outputs.loss.backward()
    assert_same_gradients(model, reference)


@pytest.mark.parametrize("prefill", ["streaming", "dense"])
@pytest.mark.parametrize("first", [5, 40])
def test_a_later_call_trains_its_own_tokens(first, prefill):
    """What lies in the cache is a constant, so a second call's loss can be taken back without the first's graph."""
    ids = random_ids(first + 30)
    reference, loss = reference_gradients(ids, first, dense=prefill == "dense")
    model = inject_attention_sinks(tiny_llama(), S, W, prefill)
    outputs = model(ids[None, :first], labels=ids[None, :first], use_cache=True)
    outputs.loss.backward()
    model.zero_grad()
    outputs = model(ids[None, first:], labels=ids[None, first:], cache=outputs.cache)
    assert_close(outputs.loss, loss)
    outputs.loss.backward()
    assert_same_gradients(model, reference)


def test_gradients_of_single_tokens_with_a_cache():
    """Each step's graph stands alone: no in-place write spoils what backward needs."""
    model, ids, cache = inject_attention_sinks(tiny_llama(), S, W), random_ids(1, 40), None
    for t in range(40):
        outputs = model(ids[:, t : t + 1], cache=cache, use_cache=True)
        cache = outputs.cache
        outputs.logits.square().mean().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("length", [1_030, 2_100])
def test_gradients_in_a_call_of_thousands_of_tokens(length, use_cache):
    """The last tokens' loss reaches the sinks and two windows back, wherever the library may cut the call."""
    ids, plain = random_ids(length), tiny_llama()
    tail = 2 * (W + 1) + 10  # as far back as ten last tokens can see through two layers
    short = torch.cat([ids[:S], ids[-tail:]])
    found = []
    for text, streams in ((ids, True), (short, False)):
        model = inject_attention_sinks(tiny_llama(), S, W) if streams else plain
        embeds = plain.get_input_embeddings().weight.detach()[text].requires_grad_()
        if streams:
            logits = model(inputs_embeds=embeds[None], use_cache=use_cache).logits[0]
        else:
            logits = naive_stream(model, text, S, W, embeds=embeds).logits
        logits[-10:].square().mean().backward()
        found.append(torch.cat([embeds.grad[:S], embeds.grad[-tail:]]))
    scale = found[1].abs().max()
    assert (found[1].abs().amax(dim=-1) > 1e-4 * scale).sum() > S + W + 10, "the loss must reach beyond one window"
    assert_close(found[0] / scale, found[1] / scale, tolerance=1e-3)


def test_gradients_of_padded_rows():
    """A padded row trains like the row alone; what stands in the padding has no part in it."""
    rows = [random_ids(60), random_ids(25, seed=1)]
    reference = tiny_llama()
    sum(F.cross_entropy(naive_stream(reference, r, S, W).logits[:-1], r[1:], reduction="sum") for r in rows).backward()
    ids = random_ids(2, 60, seed=9)
    ids[0], ids[1, 35:] = rows[0], rows[1]
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :35] = 0
    model = inject_attention_sinks(tiny_llama(), S, W)
    logits = model(ids, attention_mask=mask, use_cache=False).logits
    losses = [F.cross_entropy(logits[0, :-1], rows[0][1:], reduction="sum")]
    losses += [F.cross_entropy(logits[1, 35:-1], rows[1][1:], reduction="sum")]
    sum(losses).backward()
    assert_same_gradients(model, reference)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("length", [10, 60])
def test_gradient_checkpointing(length, reentrant):
    ids = random_ids(length)
    reference, loss = reference_gradients(ids)
    model = inject_attention_sinks(tiny_llama(), S, W)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    if reentrant:
        model.enable_input_require_grads()
    outputs = model(ids[None], labels=ids[None])
    assert_close(outputs.loss, loss)
    outputs.loss.backward()
    assert_same_gradients(model, reference)


@pytest.mark.parametrize("animal", MODELS)
def test_gradient_checkpointing_of_every_architecture(animal):
    """The call reaches attention through the cache's argument, which Transformers empties while it checkpoints."""
    if not animal.build().supports_gradient_checkpointing:
        pytest.skip(f"{animal}: Transformers itself does not checkpoint it")
    ids = random_ids(1, 60).clamp(max=50)  # some have fewer words to say than to read
    models = [inject_attention_sinks(animal.build(), S, W).train() for _ in range(2)]
    models[1].gradient_checkpointing_enable()
    for model in models:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model(ids, labels=ids, use_cache=False).loss.backward()
    reference, found = ({name: grad for name, grad in gradients(m).items() if grad is not None} for m in models)
    assert found.keys() == reference.keys() and len(found) > 5
    for name, gradient in found.items():
        assert_close(gradient, reference[name], 1e-5 + 1e-3 * reference[name].abs().max().item())


@pytest.mark.parametrize("model_type", ["llama", "falcon"])
def test_checkpointing_does_not_keep_a_cache_from_calls_without_gradients(model_type):
    """As in Transformers 5.24: generating from a model that is being trained, say."""
    animal, ids = animal_of(model_type), random_ids(1, 60)
    model = inject_attention_sinks(animal.build(), S, W)
    expected, _ = stream(model, ids, [30, 1, 29])
    model.train().gradient_checkpointing_enable()
    logits, cache = stream(model, ids, [30, 1, 29])
    assert cache.tokens_seen.tolist() == [60]
    assert_close(logits, expected)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(ids, cache=cache)


def test_training_mode_drops_attention_as_configured():
    model = inject_attention_sinks(tiny_llama(attention_dropout=0.5), S, W).train()
    ids = random_ids(1, 50)
    torch.manual_seed(0)
    first = model(ids, use_cache=False).logits
    second = model(ids, use_cache=False).logits
    assert (first - second).abs().max() > 0.01
    model.eval()
    assert torch.equal(model(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
