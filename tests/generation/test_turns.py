"""Batches over several turns of generate(): every row goes on as it does alone, however rows are padded and end."""

import pytest
import torch

from attention_sinks import AttentionSinkKVCache
from support.contract import left_padded
from support.helpers import random_ids

PAD = 0
ENDS = [9, 21, 33, 45, 57]  # any of these ends an answer
TURNS = [[30, 7, 2], [2, 9, 25], [1, 1, 4]]  # new tokens of each row in each turn


def prompts(counts, seed):
    """ids and mask [rows, columns], padded on the left with an ordinary token."""
    mask = left_padded(counts)
    return random_ids(*mask.shape, seed=seed).clamp(min=1).masked_fill(~mask, PAD), mask.long()


def stopping(ends):
    return {"eos_token_id": ENDS, "pad_token_id": PAD} if ends else {}


def alone(model, row, ends, new=15):
    """The turns of one row by itself: what it says in each, and its stream as a list of tokens."""
    said, text = [], torch.zeros(1, 0, dtype=torch.long)
    for turn, counts in enumerate(TURNS):
        ids, mask = prompts(counts, turn)
        text = torch.cat([text, ids[row : row + 1, mask[row].bool()]], dim=1)
        made = model.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=new, do_sample=False, **stopping(ends)
        )[:, text.shape[1] :]
        said.append(made[0].tolist())
        if ends and made[0, -1] in ENDS:
            made = made[:, :-1]  # the end is no part of the stream
        text = torch.cat([text, made], dim=1)
    return said


def continued(mask, sequences, ends):
    """The mask of all columns so far: zeros from the end of a row's answer on."""
    columns = mask.shape[1]
    new = torch.ones(sequences.shape[0], sequences.shape[1] - columns, dtype=torch.long)
    if ends:
        new = (torch.isin(sequences[:, columns:], torch.tensor(ENDS)).cumsum(1) == 0).long()
    return torch.cat([mask, new], dim=1)


@pytest.mark.parametrize("convention", ["full history", "new tokens"])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("given", ["own", "returned"])
def test_three_turns_of_padded_rows(model, convention, ends, given):
    expected = [alone(model, row, ends) for row in range(3)]
    if ends:
        lengths = {len(said) for row in expected for said in row}
        assert len(lengths) > 2, "rows should end at different lengths, some early"
    cache = AttentionSinkKVCache(model) if given == "own" else None
    history, mask = torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0, dtype=torch.long)
    for turn, counts in enumerate(TURNS):
        ids, new_mask = prompts(counts, turn)
        past = history.shape[1]
        history, mask = torch.cat([history, ids], dim=1), torch.cat([mask, new_mask], dim=1)
        if convention == "full history" or not past:
            fed, start = history, 0
        else:  # all columns the cache has not seen: the last token made, and the new ones
            start = cache.get_seq_length()
            fed = history[:, start:]
        outputs = model.generate(
            fed,
            attention_mask=mask,
            cache=cache,
            max_new_tokens=15,
            do_sample=False,
            return_dict_in_generate=True,
            **stopping(ends),
        )
        cache, columns = outputs.cache, history.shape[1]
        history = torch.cat([history, outputs.sequences[:, columns - start :]], dim=1)
        for row in range(3):
            assert history[row, columns:][: len(expected[row][turn])].tolist() == expected[row][turn]
        mask = continued(mask, history, ends)
        # All columns but the last; of a row that ended neither the end nor what was fed after it.
        assert cache.get_seq_length() == history.shape[1] - 1
        assert cache.tokens_seen.tolist() == mask[:, :-1].sum(1).tolist()


def test_zeros_in_the_middle_are_not_part_of_the_stream(model):
    ids, mask = random_ids(2, 30), torch.ones(2, 30, dtype=torch.long)
    mask[0, 5:12] = 0
    mask[1, ::3] = 0
    mask[:, -1] = 1
    made = model.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)[:, 30:]
    for row, keep, new in zip(ids, mask.bool(), made, strict=True):
        expected = model.generate(row[None, keep], max_new_tokens=30, do_sample=False)[0, int(keep.sum()) :]
        assert torch.equal(new, expected)


def test_a_returned_cache_goes_on_under_another_search(model):
    """Greedy, sampling and assisted decoding leave the same cache: all but the last token."""
    outputs = model.generate(random_ids(1, 20), max_new_tokens=30, do_sample=False, return_dict_in_generate=True)
    turn = torch.cat([outputs.sequences, random_ids(1, 4, seed=1)], dim=1)
    options = {"attention_mask": torch.ones_like(turn), "max_new_tokens": 30, "do_sample": False}
    expected = model.generate(turn, **options)
    made = model.generate(turn, cache=outputs.cache, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(made, expected)
