"""Contrastive search: the score of Su et al. (2022), written out over the naive reference."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from attention_sinks import contrastive_search, inject_attention_sinks
from references.naive import naive_stream
from support.contract import left_padded
from support.helpers import random_ids, refused, stream, tiny_llama

S, W = 2, 12


@pytest.fixture
def model():
    return inject_attention_sinks(tiny_llama(), S, W)


def search(model, prompt, alpha=0.6, top_k=3, **options):
    return model.generate(prompt, penalty_alpha=alpha, top_k=top_k, custom_generate=contrastive_search, **options)


def naive_search(ids, new_tokens, alpha, top_k):
    """Every candidate's hidden state from the whole text afresh; the most recent S+W+1 states are compared with."""
    plain, visible = tiny_llama(), S + W + 1
    with torch.no_grad():
        for _ in range(new_tokens):
            outputs = naive_stream(plain, ids, S, W)
            context = outputs.hidden_states[-1][-visible:]
            likely, candidates = outputs.logits[-1].softmax(-1).topk(top_k)
            scores = []
            for probability, candidate in zip(likely, candidates, strict=True):
                hidden = naive_stream(plain, torch.cat([ids, candidate[None]]), S, W).hidden_states[-1][-1]
                penalty = torch.cosine_similarity(hidden[None], context, dim=-1).max()
                scores.append((1 - alpha) * probability - alpha * penalty)
            ids = torch.cat([ids, candidates[torch.stack(scores).argmax()][None]])
    return ids


@pytest.mark.parametrize("prompt_length, alpha", [(4, 0.6), (30, 0.8)])
def test_it_is_the_formula(model, prompt_length, alpha):
    prompt = random_ids(1, prompt_length)
    found = search(model, prompt, alpha, max_new_tokens=15)
    assert torch.equal(found[0], naive_search(prompt[0], 15, alpha, 3))


def test_without_penalty_it_is_greedy(model):
    prompt = random_ids(1, 20)
    greedy = model.generate(prompt, max_new_tokens=50, do_sample=False)
    assert torch.equal(search(model, prompt, alpha=1e-9, max_new_tokens=50), greedy)
    assert not torch.equal(search(model, prompt, max_new_tokens=50), greedy)


def test_padded_rows_find_what_they_find_alone(model):
    counts = [25, 9]
    mask = left_padded(counts).long()
    prompt = random_ids(*mask.shape)
    found = search(model, prompt, attention_mask=mask, max_new_tokens=40)
    for row, count, sequence in zip(prompt, counts, found, strict=True):
        assert torch.equal(sequence[25 - count :], search(model, row[None, 25 - count :], max_new_tokens=40)[0])


def test_rows_end_one_by_one(model):
    prompt = random_ids(2, 20).clamp(min=1)
    free = search(model, prompt, max_new_tokens=30)
    eos = next(int(t) for t in free[0, 24:] if t not in free[1, 20:] and t not in free[0, 20:24] and t)
    made = (free[0, 20:] == eos).nonzero()[0].item() + 1
    ended = search(model, prompt, max_new_tokens=30, eos_token_id=eos, pad_token_id=0, return_dict_in_generate=True)
    assert torch.equal(ended.sequences[1], free[1])
    assert torch.equal(ended.sequences[0, : 20 + made], free[0, : 20 + made])
    assert ended.sequences[0, 20 + made :].eq(0).all()
    assert ended.cache.tokens_seen.tolist() == [20 + made, 50]


def test_a_row_that_ends_without_a_padding_token_goes_on_beside_the_others(model):
    """As in the loops of Transformers, a row is padded only when there is a token to pad with."""
    prompt = random_ids(2, 20)
    free = search(model, prompt, max_new_tokens=10)

    class FirstRow(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= 24, False])

    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    ended = search(model, prompt, max_new_tokens=10, stopping_criteria=StoppingCriteriaList([FirstRow()]))
    assert ended.shape == free.shape
    assert torch.equal(ended[0, :24], free[0, :24]) and torch.equal(ended[1], free[1])


def test_the_returned_cache_holds_every_token(model):
    outputs = search(model, random_ids(1, 20), max_new_tokens=30, return_dict_in_generate=True, output_scores=True)
    assert outputs.cache.tokens_seen.tolist() == [50] and len(outputs.scores) == 30
    turn = torch.cat([outputs.sequences, random_ids(1, 6, seed=1)], dim=1)
    options = {"attention_mask": torch.ones_like(turn), "max_new_tokens": 20, "do_sample": False}
    again = model.generate(turn, cache=outputs.cache, **options)
    assert torch.equal(again, model.generate(turn, **options))


def test_a_second_turn_over_a_cache(model):
    past, turn = random_ids(1, 40), random_ids(1, 20, seed=1)
    _, cache = stream(model, past)
    found = search(model, turn, cache=cache, max_new_tokens=20)
    # Of the first turn no hidden states are known; this one is longer than what is compared with.
    assert torch.equal(found[0], search(model, torch.cat([past, turn], dim=1), max_new_tokens=20)[0, 40:])


def test_logits_processors_have_their_say(model):
    found = search(model, random_ids(1, 20), max_new_tokens=30, suppress_tokens=list(range(32)))
    assert found[0, 20:].min() >= 32


def test_what_it_needs(model):
    options = {"max_new_tokens": 5, "do_sample": False}
    refused(
        ValueError,
        lambda: model.generate(random_ids(1, 5), custom_generate=contrastive_search, **options),
        "penalty_alpha=None",
    )
    refused(ValueError, lambda: search(tiny_llama(), random_ids(1, 5), max_new_tokens=5), "inject_attention_sinks")
