"""The Auto classes and the Llama classes: loading, building, every head."""

import pytest
import torch
import transformers

import attention_sinks
from attention_sinks import AttentionSinkKVCache
from references.naive import naive_logits, naive_stream
from support.helpers import assert_close, assert_tokens_follow, random_ids, stream, tiny_config, tiny_llama

S, W = 4, 12
SINKS = {"attention_sink_size": S, "attention_sink_window_size": W}
IDS = random_ids(70)
HEADS = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]

PUBLIC_NAMES = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoTokenizer",
    "AttentionSinkKVCache",
    "Answer",
    "AnswerStream",
    "AnswerStreams",
    "Piece",
    "Usage",
    "inject_attention_sinks",
    "remove_attention_sinks",
    "attention_sinks_injected",
    "StreamingChat",
    "StreamPool",
    "Conversation",
    "ConversationMovedError",
    "PoolAnswerStream",
    "PoolFullError",
    "PoolNumbers",
    "SessionInUseError",
    "SessionInfo",
    "contrastive_search",
    "supported_model_types",
    "Verification",
    "verify_attention_sinks",
    "__version__",
]
FAMILIES = ["Falcon", "GPTJ", "GPTNeoX", "Llama", "Mistral", "Mpt"]
KINDS = ["PreTrainedModel", "Model", "ForCausalLM", *HEADS]
MODEL_CLASSES = {family + kind for family in FAMILIES for kind in KINDS} - {"GPTJForTokenClassification"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain_llama")
    tiny_llama().save_pretrained(folder)
    return folder


def assert_streams(model, sinks=S, window=W):
    logits, cache = stream(model, IDS[None], [20, 1, 1, 18, 30])
    assert isinstance(cache, AttentionSinkKVCache)
    assert_close(logits[0], naive_logits(tiny_llama(), IDS, sinks, window))


def test_public_names():
    names = {*PUBLIC_NAMES, *MODEL_CLASSES}
    assert names <= set(dir(attention_sinks))
    assert set(attention_sinks.__all__) | {"__version__"} == names
    assert attention_sinks.__all__ == sorted(attention_sinks.__all__)
    assert issubclass(attention_sinks.AutoTokenizer, transformers.AutoTokenizer)


def test_supported_model_types():
    names = attention_sinks.supported_model_types()
    assert isinstance(names, list) and names == sorted(names) and "llama" in names
    assert set(names) <= set(transformers.CONFIG_MAPPING)
    names.clear()
    assert "llama" in attention_sinks.supported_model_types()


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "LlamaForCausalLM"])
def test_from_pretrained(folder, name):
    model = getattr(attention_sinks, name).from_pretrained(folder, **SINKS)
    assert isinstance(model, transformers.LlamaForCausalLM) and not model.training
    assert_streams(model)
    sequence = model.generate(IDS[None, :20], max_new_tokens=30, do_sample=False)[0]
    assert_tokens_follow(naive_logits(tiny_llama(), sequence, S, W), sequence, 20)


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "LlamaForCausalLM"])
def test_settings_have_the_originals_defaults(folder, name):
    model = getattr(attention_sinks, name).from_pretrained(folder)
    assert_streams(model, 4, 1020)
    _, cache = stream(model, random_ids(1, 1100))
    assert cache.tokens_cached.tolist() == [1024]


def test_prefill_mode_reaches_the_model(folder):
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder, **SINKS, attention_sink_prefill="dense")
    logits, _ = stream(model, IDS[None], [40, 30])
    assert_close(logits[0], naive_logits(tiny_llama(), IDS, S, W, dense_calls=[40, 30]))


def test_dense_prefill_of_a_whole_text_is_plain_transformers(folder):
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder, **SINKS, attention_sink_prefill="dense")
    for use_cache in (True, False):
        with torch.no_grad():
            assert_close(model(IDS[None], use_cache=use_cache).logits, tiny_llama()(IDS[None]).logits)


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_dtype_in_either_spelling(folder, keyword):
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder, **SINKS, **{keyword: torch.bfloat16})
    logits, cache = stream(model, IDS[None])
    assert logits.dtype == torch.bfloat16 and not logits.isnan().any()


def test_other_arguments_pass_through(folder):
    model, info = attention_sinks.AutoModelForCausalLM.from_pretrained(
        folder, **SINKS, output_loading_info=True, attn_implementation="eager"
    )
    assert info["missing_keys"] == set() or not info["missing_keys"]
    assert model.config._attn_implementation == "eager"
    assert_streams(model)


def test_a_config_passed_along(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder, config=config, **SINKS)
    assert_streams(model)
    assert not any("sink" in key for key in config.to_dict())


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "LlamaForCausalLM"])
def test_built_from_a_config(name):
    kind = getattr(attention_sinks, name)
    model = kind.from_config(tiny_config(), **SINKS) if name.startswith("Auto") else kind(tiny_config(), **SINKS)
    model.load_state_dict(tiny_llama().state_dict())
    assert_streams(model.eval())


def test_the_config_carries_no_trace():
    config = tiny_config()
    before = config.to_dict()
    model = attention_sinks.AutoModelForCausalLM.from_config(config, **SINKS)
    assert config.to_dict() == before
    assert not any("sink" in key for key in model.config.to_dict())


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "LlamaForCausalLM"])
def test_a_saved_model_carries_no_trace(folder, tmp_path, name):
    getattr(attention_sinks, name).from_pretrained(folder, **SINKS).save_pretrained(tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is transformers.LlamaForCausalLM
    with torch.no_grad():
        assert torch.equal(plain(IDS[None]).logits, tiny_llama()(IDS[None]).logits)


@pytest.mark.parametrize("name", ["AutoModel", "LlamaModel"])
def test_the_bare_decoder(folder, name):
    model = getattr(attention_sinks, name).from_pretrained(folder, **SINKS)
    with torch.no_grad():
        hidden = model(IDS[None]).last_hidden_state
    assert_close(tiny_llama().lm_head(hidden)[0], naive_logits(tiny_llama(), IDS, S, W))


def plain_with_head(head):
    return tiny_llama(model_class=getattr(transformers, f"Llama{head}"), num_labels=3, pad_token_id=0)


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_other_heads_read_the_streamed_states(tmp_path, head, automatic):
    """A text of many windows; the head is applied to the reference's last hidden states."""
    plain = plain_with_head(head)
    plain.save_pretrained(tmp_path)
    name = f"AutoModel{head}" if automatic else f"Llama{head}"
    model = getattr(attention_sinks, name).from_pretrained(tmp_path, **SINKS)
    with torch.no_grad():
        outputs = model(IDS[None])
        hidden = naive_stream(ReferenceDecoder(plain), IDS, S, W).hidden_states[-1]
        if head == "ForSequenceClassification":
            last = int(IDS.ne(0).nonzero()[-1])  # Transformers pools the last token that is not padding
            assert_close(outputs.logits[0], plain.score(hidden[last]))
        elif head == "ForTokenClassification":
            assert_close(outputs.logits[0], plain.score(hidden))
        else:
            scores = torch.stack([outputs.start_logits[0], outputs.end_logits[0]], dim=-1)
            assert_close(scores, plain.qa_outputs(hidden))


class ReferenceDecoder:
    """What `naive_stream` needs of a model with another head: the config and the decoder."""

    def __init__(self, model):
        self.config, self.model = model.config, model.base_model


@pytest.mark.parametrize("head", HEADS)
def test_other_heads_from_config(head):
    model = getattr(attention_sinks, f"AutoModel{head}").from_config(tiny_config(num_labels=3, pad_token_id=0), **SINKS)
    assert isinstance(model, getattr(transformers, f"Llama{head}"))
    with torch.no_grad():
        model(IDS[None])


def test_pretrained_base_class_is_exported():
    assert issubclass(attention_sinks.LlamaForCausalLM, attention_sinks.LlamaPreTrainedModel)
    assert issubclass(attention_sinks.LlamaPreTrainedModel, transformers.PreTrainedModel)
