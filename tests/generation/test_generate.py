"""generate(): greedy and sampling, prompts of any length, padded batches, several turns, rows that finish early."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.contract import left_padded
from support.helpers import S, W, assert_close, assert_tokens_follow, random_ids, stream, tiny_llama

pytestmark = pytest.mark.each_release


def assert_greedy(sequence, prompt_length):
    assert_tokens_follow(naive_logits(tiny_llama(), sequence, S, W), sequence, prompt_length)


def left_padded_prompts(counts, pad=0):
    """ids and mask [rows, columns]; the padding holds the given id."""
    mask = left_padded(counts)
    ids = random_ids(*mask.shape)
    return ids.masked_fill(~mask, pad), mask.long()


@pytest.mark.parametrize("prompt_length", [1, 5, 16, 17, 18, 60])
def test_greedy_is_the_reference_token_by_token(model, prompt_length):
    prompt = random_ids(1, prompt_length)
    sequence = model.generate(prompt, max_new_tokens=60, do_sample=False)
    assert sequence.shape == (1, prompt_length + 60) and torch.equal(sequence[:, :prompt_length], prompt)
    assert_greedy(sequence[0], prompt_length)


def test_greedy_is_the_hand_written_loop(model):
    prompt = random_ids(1, 30)
    logits, cache = stream(model, prompt)
    tokens = [logits[:, -1:].argmax(-1)]
    for _ in range(39):
        logits, cache = stream(model, tokens[-1], cache=cache)
        tokens.append(logits[:, -1:].argmax(-1))
    generated = model.generate(prompt, max_new_tokens=40, do_sample=False)
    assert torch.equal(generated[:, 30:], torch.cat(tokens, dim=1))


def test_a_prompt_shorter_than_the_sinks(model):
    sequence = model.generate(random_ids(1, 2), max_new_tokens=40, do_sample=False)
    assert_greedy(sequence[0], 2)


def test_without_a_prompt(model):
    sequence = model.generate(max_new_tokens=30, do_sample=False, bos_token_id=3)
    assert_greedy(sequence[0], 1)


@pytest.mark.parametrize("counts", [[30, 7], [3, 25, 12], [5, 4]], ids=str)
def test_padded_rows_continue_like_rows_alone(model, counts):
    ids, mask = left_padded_prompts(counts)
    sequences = model.generate(ids, attention_mask=mask, max_new_tokens=50, do_sample=False)
    for sequence, count in zip(sequences, counts, strict=True):
        row = sequence[max(counts) - count :]
        assert_greedy(row, count)


def test_sampling_draws_from_the_streamed_logits(model):
    prompt = random_ids(2, 20)
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "max_new_tokens": 40}
    torch.manual_seed(5)
    sampled = model.generate(prompt, **settings)
    torch.manual_seed(5)
    logits, cache = stream(model, prompt)
    tokens = []
    for _ in range(40):
        tokens.append(torch.multinomial(torch.softmax(logits[:, -1] / 0.7, dim=-1), 1))
        logits, cache = stream(model, tokens[-1], cache=cache)
    assert torch.equal(sampled[:, 20:], torch.cat(tokens, dim=1))
    assert not torch.equal(sampled, model.generate(prompt, **settings))


def test_the_cache_comes_back(model):
    outputs = model.generate(random_ids(1, 20), max_new_tokens=30, do_sample=False, return_dict_in_generate=True)
    cache = outputs.cache
    assert isinstance(cache, AttentionSinkKVCache)
    assert cache.tokens_seen.tolist() == [49]  # the last token was made, not read
    assert cache.get_seq_length() == 49 and cache.tokens_cached.tolist() == [S + W]


@pytest.mark.parametrize("own_cache", [False, True])
def test_turns_continue_one_stream(model, own_cache):
    cache = AttentionSinkKVCache(model) if own_cache else None
    sequence = random_ids(1, 25)
    for turn in range(4):
        prompt_length = sequence.shape[1]
        options = {"cache": cache} if cache is not None else {}
        outputs = model.generate(
            sequence,
            attention_mask=torch.ones_like(sequence),  # of all columns: the ids repeat the past
            max_new_tokens=20,
            do_sample=False,
            return_dict_in_generate=True,
            **options,
        )
        assert outputs.cache.tokens_seen.tolist() == [prompt_length + 19]
        assert cache is None or outputs.cache is cache
        cache = outputs.cache
        assert_greedy(outputs.sequences[0], prompt_length)
        sequence = torch.cat([outputs.sequences, random_ids(1, 1 + 9 * turn, seed=turn)], dim=1)


def test_a_turn_of_new_ids_alone(model):
    """No more ids than the cache has columns, and no mask that covers the past: all of them are new."""
    past, new = random_ids(1, 30), random_ids(1, 9, seed=1)
    _, cache = stream(model, past)
    sequence = model.generate(new, cache=cache, max_new_tokens=20, do_sample=False)
    assert torch.equal(sequence[:, :9], new) and sequence.shape == (1, 29)
    assert_greedy(torch.cat([past, sequence], dim=1)[0], 39)
    assert cache.tokens_seen.tolist() == [30 + 9 + 19]


def test_padded_turns_continue_every_stream(model):
    """Second turn of a left-padded batch: full ids and mask, the new prompts padded on the left again."""
    ids, mask = left_padded_prompts([30, 7])
    outputs = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    new_ids, new_mask = left_padded_prompts([2, 9])
    ids = torch.cat([outputs.sequences, new_ids], dim=1)
    mask = torch.cat([mask, torch.ones(2, 20, dtype=torch.long), new_mask], dim=1)
    sequences = model.generate(ids, attention_mask=mask, cache=outputs.cache, max_new_tokens=30, do_sample=False)
    for r in range(2):
        prompt = ids[r, mask[r].bool()]
        row = torch.cat([prompt, sequences[r, ids.shape[1] :]])
        assert_greedy(row, len(prompt))


def first_new_token(sequences, prompt_length, row, others):
    """Where `row` first makes a token that no other row makes: (how many new tokens until then, the token)."""
    taken = set(sequences[others, prompt_length:].flatten().tolist())
    new = sequences[row, prompt_length:].tolist()
    return next((i + 1, token) for i, token in enumerate(new) if i > 2 and token not in taken | set(new[:i]))


def test_a_finished_row_stops_feeding_its_stream(model):
    prompt = random_ids(2, 20)
    free = model.generate(prompt, max_new_tokens=30, do_sample=False)
    made, eos = first_new_token(free, 20, row=0, others=[1])
    assert made < 28
    outputs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),  # the pad id is an ordinary word of the prompt
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
        return_dict_in_generate=True,
    )
    assert outputs.sequences[0, 20 + made :].eq(0).all() and outputs.sequences.shape == (2, 50)
    cache = outputs.cache
    assert cache.tokens_seen.tolist() == [20 + made - 1, 49]  # neither eos nor anything after it
    assert cache.get_seq_length() == 49
    # Both streams go on where they stopped.
    rests = random_ids(2, 30, seed=3)
    logits, _ = stream(model, rests, [1] * 30, cache)
    for r, seen in enumerate(cache.tokens_seen.tolist()):
        seen -= 30
        whole = torch.cat([outputs.sequences[r, :seen], rests[r]])
        difference = (logits[r] - naive_logits(tiny_llama(), whole, S, W)[seen:]).abs().max()
        assert difference < 2e-4


def test_a_second_turn_after_a_row_has_finished(model):
    """In the mask of the next turn, eos and what follows it in a finished row are no tokens of its stream."""
    prompt = random_ids(2, 20)
    free = model.generate(prompt, max_new_tokens=30, do_sample=False)
    made, eos = first_new_token(free, 20, row=0, others=[1])
    settings = {"do_sample": False, "eos_token_id": eos, "pad_token_id": 0, "return_dict_in_generate": True}
    outputs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, **settings)
    mask = torch.ones_like(outputs.sequences)
    mask[0, 20 + made - 1 :] = 0
    ids = torch.cat([outputs.sequences, random_ids(2, 8, seed=4)], dim=1)
    mask = torch.cat([mask, torch.ones(2, 8, dtype=torch.long)], dim=1)
    sequences = model.generate(ids, attention_mask=mask, cache=outputs.cache, max_new_tokens=20, do_sample=False)
    for r in range(2):
        stream_so_far = ids[r, mask[r].bool()]
        assert_greedy(torch.cat([stream_so_far, sequences[r, ids.shape[1] :]]), len(stream_so_far))


def test_several_answers_to_one_prompt(model):
    outputs = model.generate(
        random_ids(2, 20),
        num_return_sequences=3,
        do_sample=True,
        max_new_tokens=30,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(outputs.logits, dim=1)
    assert outputs.sequences.shape == (6, 50)
    for sequence, row in zip(outputs.sequences, logits, strict=True):
        assert_close(row, naive_logits(tiny_llama(), sequence, S, W)[19:-1])


def test_a_finished_row_does_not_disturb_the_others(model):
    prompt = random_ids(2, 20)
    free = model.generate(prompt, max_new_tokens=40, do_sample=False)
    _, eos = first_new_token(free, 20, row=0, others=[1])
    mask = torch.ones_like(prompt)
    stopped = model.generate(
        prompt, attention_mask=mask, max_new_tokens=40, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    assert torch.equal(stopped[1], free[1])


def test_generate_without_a_cache(model):
    prompt = random_ids(1, 20)
    sequence = model.generate(prompt, max_new_tokens=10, do_sample=False, use_cache=False)
    assert_greedy(sequence[0], 20)


def test_a_streamer_gets_every_token(model):
    class Collector(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    collector = Collector()
    sequence = model.generate(random_ids(1, 5), max_new_tokens=30, do_sample=False, streamer=collector)
    assert collector.ended and collector.tokens == sequence[0].tolist()


def test_inputs_embeds_as_prompt(model):
    prompt = random_ids(1, 25)
    embeds = model.get_input_embeddings()(prompt).detach()
    new = model.generate(inputs_embeds=embeds, max_new_tokens=20, do_sample=False)
    assert_greedy(torch.cat([prompt, new], dim=1)[0], 25)


def test_prefill_in_chunks(model):
    prompt = random_ids(1, 50)
    sequence = model.generate(prompt, max_new_tokens=20, do_sample=False, prefill_chunk_size=7)
    assert_greedy(sequence[0], 50)


def test_return_of_scores_and_states(model):
    outputs = model.generate(
        random_ids(1, 30),
        generation_config=GenerationConfig(max_new_tokens=20, do_sample=False),
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
    )
    expected = naive_logits(tiny_llama(), outputs.sequences[0], S, W)[29:-1]
    assert (torch.cat(outputs.logits) - expected).abs().max() < 2e-4
    assert len(outputs.hidden_states) == 20


def test_continuous_batching_is_refused():
    model = inject_attention_sinks(tiny_llama(), S, W)
    for start in (model.generate_batch, model.init_continuous_batching):
        with pytest.raises(NotImplementedError, match="remove_attention_sinks"):
            start([[1, 2, 3]])
