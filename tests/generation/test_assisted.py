"""Assisted decoding and prompt lookup: the drafts change how fast the tokens come, never which."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from support.helpers import S, W, noted_crops, random_ids, stream, tiny_llama

NEW = 70  # four windows, several rebases


def draft_model(injected, noise=0.03, **config):
    """The same weights, a little off: its drafts are often right and often wrong."""
    draft, generator = tiny_llama(**config), torch.Generator().manual_seed(3)
    for parameter in draft.parameters():
        parameter.data += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    draft.generation_config.num_assistant_tokens = 8
    draft.generation_config.assistant_confidence_threshold = 0  # draft on, however unsure
    return inject_attention_sinks(draft, S, W) if injected else draft


def greedy(model, prompt, **options):
    return model.generate(prompt, max_new_tokens=NEW, do_sample=False, **options)


@pytest.fixture
def crops(monkeypatch):
    """(cache, columns taken back) of every crop."""
    return noted_crops(monkeypatch)


@pytest.mark.parametrize("injected", [True, False], ids=["injected", "plain"])
@pytest.mark.parametrize("prompt_length", [1, 30])
def test_an_assistant_changes_nothing(model, crops, injected, prompt_length):
    prompt = random_ids(1, prompt_length)
    expected = greedy(model, prompt)
    outputs = greedy(model, prompt, assistant_model=draft_model(injected), return_dict_in_generate=True)
    assert torch.equal(outputs.sequences, expected)
    cache = outputs.cache
    taken = [columns for other, columns in crops if other is cache]
    assert len(taken) > 5 and 0 in taken and max(taken) > 3, "drafts were neither all right nor all wrong"
    assert len({id(other) for other, _ in crops}) == 1 + injected


@pytest.mark.parametrize("schedule, drafted", [("heuristic", 12), ("constant", 20)])
def test_drafts_longer_than_the_window(model, crops, schedule, drafted):
    """The heuristic schedule drafts two tokens more after every round that was right."""
    prompt = random_ids(1, 30)
    expected = greedy(model, prompt)
    for noise in (0, 0.03):
        draft = draft_model(True, noise)
        draft.generation_config.num_assistant_tokens = drafted
        draft.generation_config.num_assistant_tokens_schedule = schedule
        assert torch.equal(greedy(model, prompt, assistant_model=draft), expected)
        if schedule == "heuristic" and not noise:
            assert draft.generation_config.num_assistant_tokens > S + W + 1
    assert max(columns for _, columns in crops) > S + W + 1 or schedule == "heuristic"


@pytest.mark.parametrize("sizes", [(0, 16), (1, 7), (9, 3)], ids=str)
def test_other_sizes(sizes):
    model = inject_attention_sinks(tiny_llama(), *sizes)
    prompt = random_ids(1, 20)
    assert torch.equal(greedy(model, prompt, assistant_model=draft_model(True)), greedy(model, prompt))


@pytest.mark.parametrize("tokens", [2, 10, 30])
def test_prompt_lookup_changes_nothing(model, crops, tokens):
    prompt = random_ids(1, 8).repeat(1, 6)  # repetitions to be found
    assert torch.equal(greedy(model, prompt, prompt_lookup_num_tokens=tokens), greedy(model, prompt))
    assert any(columns for _, columns in crops)


def test_early_exit_drafts_with_the_models_own_first_layers(model):
    prompt = random_ids(1, 30)
    assert torch.equal(greedy(model, prompt, assistant_early_exit=1), greedy(model, prompt))


def test_with_length_dependent_rotary_embeddings():
    model = inject_attention_sinks(tiny_llama(rope="dynamic"), S, W)
    prompt, draft = random_ids(1, 30), draft_model(True, rope="dynamic")
    assert torch.equal(greedy(model, prompt, assistant_model=draft), greedy(model, prompt))


def test_a_left_padded_prompt(model):
    prompt, mask = random_ids(1, 30), torch.ones(1, 30, dtype=torch.long)
    mask[:, :9] = 0
    expected = greedy(model, prompt[:, 9:])
    for options in ({"assistant_model": draft_model(True)}, {"prompt_lookup_num_tokens": 4}):
        assert torch.equal(greedy(model, prompt, attention_mask=mask, **options)[:, 9:], expected)


def test_it_stops_at_the_end_of_the_text(model):
    prompt = random_ids(1, 30)
    free = greedy(model, prompt)
    eos = int(free[0, 60])
    options = {"eos_token_id": eos, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    stopped = greedy(model, prompt, **options)
    assert torch.equal(greedy(model, prompt, assistant_model=draft_model(True), **options), stopped)
    assert stopped.shape[1] < free.shape[1]


def test_sampling_with_an_assistant_runs_and_rolls_back(model, crops):
    torch.manual_seed(0)
    sampled = model.generate(random_ids(1, 20), max_new_tokens=60, do_sample=True, assistant_model=draft_model(True))
    assert sampled.shape == (1, 80) and any(columns for _, columns in crops)


@pytest.mark.parametrize("options", ["assistant", "lookup"])
def test_the_returned_cache_holds_all_but_the_last_token(model, options):
    """As after plain greedy decoding; and it records no more, so that nothing grows afterwards."""
    prompt = random_ids(1, 30)
    options = {"assistant": {"assistant_model": draft_model(True)}, "lookup": {"prompt_lookup_num_tokens": 3}}[options]
    outputs = greedy(model, prompt, return_dict_in_generate=True, **options)
    cache = outputs.cache
    assert cache.tokens_seen.tolist() == [30 + NEW - 1] == [cache.get_seq_length()]
    fresh = stream(model, outputs.sequences[:, :-1])[1]
    assert cache.nbytes == fresh.nbytes and not cache.is_recording
    turn = torch.cat([outputs.sequences, random_ids(1, 9, seed=2)], dim=1)
    mask = torch.ones_like(turn)
    again = greedy(model, turn, attention_mask=mask, cache=cache)
    assert torch.equal(again, greedy(model, turn))
    assert cache.nbytes == fresh.nbytes


def test_a_cache_that_recorded_before_goes_on_recording(model):
    cache = AttentionSinkKVCache(model)
    cache.activate_past_recording()
    outputs = greedy(model, random_ids(1, 30), cache=cache, assistant_model=draft_model(True))
    assert cache.is_recording
    sequences = greedy(model, outputs, attention_mask=torch.ones_like(outputs), cache=cache)
    cache.crop(-NEW)  # the whole second turn
    assert cache.tokens_seen.tolist() == [30 + NEW - 1]
    again = greedy(model, outputs, attention_mask=torch.ones_like(outputs), cache=cache)
    assert torch.equal(again, sequences)


def test_several_turns_with_an_assistant(model):
    cache, draft, turn = AttentionSinkKVCache(model), draft_model(True), random_ids(1, 20)
    for number in range(3):
        expected = greedy(model, turn)
        made = greedy(model, turn, attention_mask=torch.ones_like(turn), cache=cache, assistant_model=draft)
        assert torch.equal(made, expected)
        turn = torch.cat([made, random_ids(1, 5, seed=number)], dim=1)


def test_more_than_one_row_is_refused_by_transformers(model):
    with pytest.raises(ValueError, match="batch_size"):
        greedy(model, random_ids(2, 20), assistant_model=draft_model(True))


def test_scores_are_those_of_greedy_decoding(model):
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    plain = greedy(model, random_ids(1, 30), **options)
    assisted = greedy(model, random_ids(1, 30), assistant_model=draft_model(True), **options)
    for name in ("scores", "logits"):
        difference = (torch.cat(getattr(plain, name)) - torch.cat(getattr(assisted, name))).abs().max()
        assert difference < 2e-4


def pair_tokenizer(seed, size):
    """Letters, and some pairs of letters that differ from seed to seed."""
    letters, generator = [chr(97 + i) for i in range(26)], torch.Generator().manual_seed(seed)
    pairs = torch.randperm(26 * 26, generator=generator)[:30].tolist()
    pairs = [(letters[pair // 26], letters[pair % 26]) for pair in pairs]
    words = letters + [a + b for a, b in pairs]
    words += [f"<{i}>" for i in range(len(words), size)]
    bpe = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs, unk_token=words[-1])
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[-1], clean_up_tokenization_spaces=False)


def test_an_assistant_with_another_tokenizer(model, crops):
    """Its drafts are tokenised anew in every round, which takes back more than the round before had drafted."""
    own, other = pair_tokenizer(1, 64), pair_tokenizer(2, 72)
    draft = inject_attention_sinks(tiny_llama(vocab_size=72), S, W)
    for seed in (0, 5):
        letters = torch.randint(0, 26, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        prompt = own("".join(chr(97 + letter) for letter in letters), return_tensors="pt").input_ids
        expected = greedy(model, prompt)
        made = greedy(model, prompt, assistant_model=draft, tokenizer=own, assistant_tokenizer=other)
        assert torch.equal(made, expected)
    assert len({id(cache) for cache, _ in crops}) >= 2
