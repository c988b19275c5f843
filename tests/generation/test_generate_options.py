"""Options of generate(): processors, criteria, streamers, outputs, constant cost; and what cannot work is refused."""

from threading import Thread

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits, naive_stream
from support.helpers import (
    S,
    W,
    assert_same_state,
    assert_tokens_follow,
    random_ids,
    refused,
    state_of,
    stream,
    tiny_llama,
)
from support.toy_tokenizers import number_tokenizer

pytestmark = pytest.mark.each_release

ROOM = S + W + 1


def greedy(model, prompt, new=40, **options):
    return model.generate(prompt, max_new_tokens=new, do_sample=False, **options)


# ---- what a caller hooks in


class OnlyEven(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores.masked_fill(torch.arange(64) % 2 == 1, -torch.inf)


class AfterThree(StoppingCriteria):
    """Row r is done once it has seen 10 (r + 1) columns more."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= 20 + 10 * (row + 1) for row in range(len(input_ids))])


def test_logits_processors(model):
    sequence = greedy(model, random_ids(1, 20), logits_processor=LogitsProcessorList([OnlyEven()]))[0]
    logits = naive_logits(tiny_llama(), sequence, S, W)
    assert sequence[20:].remainder(2).eq(0).all()
    assert_tokens_follow(logits.masked_fill(torch.arange(64) % 2 == 1, -torch.inf), sequence, 20)


def test_stopping_criteria_end_streams_row_by_row(model):
    """A row that a criterion has ended feeds nothing more, as with the end-of-text token."""
    outputs = greedy(
        model,
        random_ids(3, 20),
        stopping_criteria=StoppingCriteriaList([AfterThree()]),
        return_dict_in_generate=True,
    )
    assert outputs.sequences.shape == (3, 50)
    assert outputs.cache.tokens_seen.tolist() == [29, 39, 49]


def test_text_streamers(model):
    tokenizer, prompt = number_tokenizer(), random_ids(1, 20)
    expected = tokenizer.decode(greedy(model, prompt)[0, 20:])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=greedy, args=(model, prompt), kwargs={"streamer": streamer})
    thread.start()
    assert "".join(streamer).split() == expected.split()
    thread.join()


def test_a_printing_streamer(model, capsys):
    sequence = greedy(model, random_ids(1, 20), streamer=TextStreamer(number_tokenizer()))
    assert capsys.readouterr().out.split() == number_tokenizer().decode(sequence[0]).split()


def test_the_pipeline(model):
    generate = pipeline("text-generation", model=model, tokenizer=number_tokenizer())
    texts = ["t5 t9 t33 t12 t7", "t1 t2"]
    for batch_size in (1, 2):
        made = generate(texts, max_new_tokens=30, do_sample=False, batch_size=batch_size)
        for text, (result,) in zip(texts, made, strict=True):
            ids = torch.tensor([[int(word[1:]) for word in text.split()]])
            expected = number_tokenizer().decode(greedy(model, ids, new=30)[0])
            assert result["generated_text"].replace(" ", "") == expected.replace(" ", "")


# ---- what it returns


def test_scores_and_logits(model):
    outputs = greedy(model, random_ids(1, 20), return_dict_in_generate=True, output_scores=True, output_logits=True)
    expected = naive_logits(tiny_llama(), outputs.sequences[0], S, W)[19:-1]
    for name in ("scores", "logits"):
        assert (torch.cat(outputs[name]) - expected).abs().max() < 2e-4


@pytest.mark.parametrize("prompt_length, chunks", [(10, None), (30, 10)])
def test_attentions_in_the_order_of_the_cache(prompt_length, chunks):
    """Sinks, window from old to new, the token itself; of a long prompt chunk by chunk, the last chunk's come back."""
    plain = tiny_llama()
    model = inject_attention_sinks(tiny_llama(), S, W)
    model.set_attn_implementation("eager")
    options = {"output_attentions": True, "return_dict_in_generate": True, "prefill_chunk_size": chunks}
    outputs = greedy(model, random_ids(1, prompt_length), new=20, **options)
    with torch.no_grad():
        expected = naive_stream(plain, outputs.sequences[0], S, W).attentions
    for step, weights in enumerate(outputs.attentions[1:], start=prompt_length):
        assert (torch.stack(weights)[:, 0, :, -1] - expected[step]).abs().max() < 1e-4


def test_attentions_of_a_prompt_longer_than_the_cache(model):
    model.set_attn_implementation("eager")
    options = {"output_attentions": True, "return_dict_in_generate": True}
    refused(ValueError, lambda: greedy(model, random_ids(1, ROOM + 1), **options), "output_attentions", ROOM)


# ---- constant cost


class SizesFed:
    """The largest number of columns of any tensor that the base model is handed, call by call."""

    def __init__(self, model):
        self.columns = []
        self.hook = model.model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        self.columns.append(max(tensor.shape[1] for tensor in tensors if tensor.dim() > 1))

    def __enter__(self):
        return self.columns

    def __exit__(self, *error):
        self.hook.remove()


@pytest.mark.parametrize("search", ["greedy", "sampling", "beams", "padded", "ended", "second turn"])
def test_no_tensor_grows_with_the_stream(model, search):
    """After the prompt every step is handed one column: no mask, no positions of what came before."""
    prompt = random_ids(2, 20)
    mask, cache = torch.ones_like(prompt), None
    options = {"do_sample": search == "sampling", "num_beams": 2 if search == "beams" else 1}
    if search == "padded":
        mask[0, :7] = 0
    if search == "ended":
        options["stopping_criteria"] = StoppingCriteriaList([AfterThree()])
    if search == "second turn":
        cache = stream(model, prompt[:, :15])[1]
    with SizesFed(model) as columns:
        model.generate(prompt, attention_mask=mask, cache=cache, max_new_tokens=20, **options)
    assert columns[0] <= 20 and columns[1:] == [1] * 19


def test_no_warning_about_the_trained_length(messages):
    model = inject_attention_sinks(tiny_llama(max_position_embeddings=32), S, W)
    greedy(model, random_ids(1, 40), new=60)
    greedy(model, random_ids(1, 20), new=60)
    assert not messages.about("maximum length") and not messages.about("32")


# ---- adapters


def test_an_adapter_around_the_model_generates_the_same():
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    inject_attention_sinks(adapted, S, W)
    assert torch.equal(greedy(adapted, random_ids(1, 20)), greedy(adapted.get_base_model(), random_ids(1, 20)))


def test_prompt_tuning_generates():
    """Learned virtual tokens are tokens of the stream like others."""
    torch.manual_seed(0)
    model = inject_attention_sinks(tiny_llama(), S, W)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    prompt = random_ids(1, 20)
    made = tuned.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
    virtual = tuned.get_prompt(batch_size=1)[0].detach()
    embeds = torch.cat([virtual, model.get_input_embeddings()(made[0])]).detach()
    ids = torch.cat([torch.zeros(3, dtype=torch.long), made[0]])
    with torch.no_grad():
        logits = naive_stream(tiny_llama(), ids, S, W, embeds=embeds).logits
    assert_tokens_follow(logits, ids, 23)


# ---- what is refused


def test_prefix_tuning_is_refused():
    tuned = get_peft_model(tiny_llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inject_attention_sinks(tuned, S, W)
    prompt = random_ids(1, 20)
    refused(NotImplementedError, lambda: tuned.generate(input_ids=prompt, max_new_tokens=5), "PREFIX_TUNING")
    refused(TypeError, lambda: tuned(input_ids=prompt), "cache", "prefix tuning")


def test_prompt_learning_around_a_model_that_was_injected_later_is_refused():
    """It would call the plain model's methods, which know nothing of rows that have finished."""
    tuned = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inject_attention_sinks(tuned, S, W)
    generate = {"input_ids": random_ids(1, 20), "max_new_tokens": 5}
    refused(NotImplementedError, lambda: tuned.generate(**generate), "before get_peft_model", "inject_attention_sinks")


@pytest.mark.parametrize("name", ["static", "quantized", "offloaded", "dynamic", "paged"])
def test_other_caches_by_name(model, name):
    kind = NotImplementedError if name == "paged" else ValueError
    refused(kind, lambda: greedy(model, random_ids(1, 5), cache_implementation=name), "remove_attention_sinks")


def test_a_cache_without_use_of_it(model):
    _, cache = stream(model, random_ids(1, 30))
    before, ids = state_of(cache), random_ids(1, 35)
    options = {"attention_mask": torch.ones_like(ids), "cache": cache, "use_cache": False}
    refused(ValueError, lambda: greedy(model, ids, **options), "use_cache=False", "cache")
    assert_same_state(cache, before)


@pytest.mark.parametrize("masked", [True, False])
def test_padding_on_the_right(model, masked):
    """What follows a prompt follows its last token, not its padding; the pad id alone says so, too."""
    prompt, mask = random_ids(2, 20).clamp(min=1), torch.ones(2, 20, dtype=torch.long)
    mask[1, 15:] = 0
    prompt = prompt.masked_fill(mask == 0, 0)
    options = {"attention_mask": mask} if masked else {}
    message = refused(ValueError, lambda: greedy(model, prompt, pad_token_id=0, **options), "attention_mask", "[1]")
    assert "left" in message


def test_a_row_without_a_new_token(model):
    _, cache = stream(model, random_ids(2, 30))
    mask = torch.ones(2, 34, dtype=torch.long)
    mask[0, 30:] = 0
    before = state_of(cache)
    refused(ValueError, lambda: greedy(model, random_ids(2, 4), attention_mask=mask, cache=cache), "rows [0]")
    assert_same_state(cache, before)


def test_an_empty_prompt(model):
    empty = torch.zeros(1, 0, dtype=torch.long)
    refused(ValueError, lambda: greedy(model, empty), "input_ids", "(1, 0)")
    _, cache = stream(model, random_ids(1, 30))
    before = state_of(cache)
    refused(ValueError, lambda: greedy(model, empty, cache=cache), "input_ids")
    assert_same_state(cache, before)


def test_a_history_without_a_new_token(model):
    ids = random_ids(1, 30)
    _, cache = stream(model, ids)
    before = state_of(cache)
    options = {"attention_mask": torch.ones_like(ids), "cache": cache}
    refused(ValueError, lambda: greedy(model, ids, **options), "30", "new token")
    assert_same_state(cache, before)


def test_another_batch_than_the_cache_has(model):
    cache = AttentionSinkKVCache(model)
    stream(model, random_ids(2, 30), cache=cache)
    refused(ValueError, lambda: greedy(model, random_ids(1, 4), cache=cache), "cache", "2 rows")
