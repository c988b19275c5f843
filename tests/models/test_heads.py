"""Every model class: the exported ones of each architecture, and every head behind the Auto classes."""

import pytest
import torch
import transformers
from torch import nn

import attention_sinks
from references.replay import replay_logits
from support.helpers import assert_close, random_ids, stream
from support.zoo import animal_of

S, W = 4, 12
SINKS = {"attention_sink_size": S, "attention_sink_window_size": W}
IDS = random_ids(70)
SHORT = random_ids(S + W + 1).clamp(min=1)  # 0 is the padding token

FAMILIES = {
    "falcon": "Falcon",
    "gpt_neox": "GPTNeoX",
    "gptj": "GPTJ",
    "llama": "Llama",
    "mistral": "Mistral",
    "mpt": "Mpt",
}
HEADS = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
WITHOUT = {("gptj", "ForTokenClassification"), ("stablelm", "ForQuestionAnswering")}  # not in Transformers either

AUTOMATIC = [(t, h) for t in [*FAMILIES, "qwen2", "stablelm"] for h in HEADS if (t, h) not in WITHOUT]
EXPORTED = [(t, h) for t, h in AUTOMATIC if t in FAMILIES]


def config_of(model_type):
    config = animal_of(model_type).build().config
    config.num_labels, config.pad_token_id = 2, 0  # GPT-J finds answers by as many scores as there are labels
    return config


def with_head(model_type, head):
    """A plain model around the decoder of the zoo, its head large enough to show what it reads."""
    model = getattr(transformers, f"AutoModel{head}").from_config(config_of(model_type)).eval()
    model.base_model.load_state_dict(animal_of(model_type).build().base_model.state_dict())
    weight = head_of(model).weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / weight.shape[1] ** 0.5
    return model


def head_of(model):
    return next(child for child in model.children() if isinstance(child, nn.Linear))


def scores(outputs):
    """What a head says about each token, or about each text."""
    return outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)


def assert_decoder_streams(model_type, decoder):
    """Its hidden states, through the language head of the plain model, are the reference's logits."""
    plain = animal_of(model_type).build()
    with torch.no_grad():
        hidden = decoder(IDS[None]).last_hidden_state
        assert_close(plain.get_output_embeddings()(hidden)[0], replay_logits(plain, IDS, S, W))
    return hidden[0]


def assert_head_reads_the_streamed_states(model_type, model):
    hidden = assert_decoder_streams(model_type, model.base_model)
    with torch.no_grad():
        outputs, expected = model(IDS[None]), head_of(model)(hidden)
    if "ForSequenceClassification" in type(model).__name__:
        expected = expected[IDS.ne(0).nonzero()[-1]]  # Transformers reads the last token that is not padding
        assert_close(outputs.logits, expected)
    else:
        assert_close(scores(outputs)[0], expected)


# --- the classes of each architecture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("made", ["directly", "from_pretrained"])
def test_a_language_model_class_streams(tmp_path, model_type, made):
    plain = animal_of(model_type).build()
    model = make(f"{FAMILIES[model_type]}ForCausalLM", plain, made, tmp_path)
    expected = replay_logits(plain, IDS, S, W)
    assert_close(stream(model, IDS[None], [20, 1, 1, 18, 30])[0][0], expected)
    sequence = model.generate(IDS[None, :20], max_new_tokens=20, do_sample=False, use_cache=True)
    with torch.no_grad():
        assert torch.equal(model(sequence[:, :-1]).logits[0, 19:].argmax(-1), sequence[0, 20:])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_saved_language_model_is_a_plain_checkpoint(tmp_path, model_type):
    plain = animal_of(model_type).build()
    make(f"{FAMILIES[model_type]}ForCausalLM", plain, "directly", tmp_path).save_pretrained(tmp_path / "ours")
    plain.save_pretrained(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("made", ["directly", "from_pretrained"])
def test_a_decoder_class_streams(tmp_path, model_type, made):
    plain = animal_of(model_type).build().base_model
    assert_decoder_streams(model_type, make(f"{FAMILIES[model_type]}Model", plain, made, tmp_path))


@pytest.mark.parametrize("model_type, head", EXPORTED)
@pytest.mark.parametrize("made", ["directly", "from_pretrained"])
def test_a_class_with_another_head_reads_the_streamed_states(tmp_path, model_type, head, made):
    model = make(FAMILIES[model_type] + head, with_head(model_type, head), made, tmp_path)
    assert_head_reads_the_streamed_states(model_type, model)


def make(name, plain, made, folder):
    """The exported class `name` with the weights of `plain`."""
    kind = getattr(attention_sinks, name)
    assert issubclass(kind, getattr(transformers, name))
    if made == "directly":
        model = kind(plain.config, **SINKS)
        model.load_state_dict(plain.state_dict())
        return model.eval()
    plain.save_pretrained(folder)
    return kind.from_pretrained(folder, **SINKS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_base_class_is_transformers_own(model_type):
    name = f"{FAMILIES[model_type]}PreTrainedModel"
    assert getattr(attention_sinks, name) is getattr(transformers, name)


# --- the heads behind the Auto classes --------------------------------------------------------------------------------


def automatic(model_type, head, folder):
    with_head(model_type, head).save_pretrained(folder)
    return getattr(attention_sinks, f"AutoModel{head}").from_pretrained(folder, **SINKS)


@pytest.mark.parametrize("model_type, head", AUTOMATIC)
def test_a_text_of_many_windows(tmp_path, model_type, head):
    assert_head_reads_the_streamed_states(model_type, automatic(model_type, head, tmp_path))


@pytest.mark.parametrize("model_type, head", AUTOMATIC)
def test_short_texts_are_plain_transformers(tmp_path, model_type, head):
    """The second text is padded on the left."""
    model, plain = automatic(model_type, head, tmp_path), with_head(model_type, head)
    ids, mask = torch.stack([SHORT, SHORT]), torch.ones(2, len(SHORT), dtype=torch.long)
    ids[1, :5] = mask[1, :5] = 0
    with torch.no_grad():
        streamed, right = scores(model(ids, attention_mask=mask)), scores(plain(ids, attention_mask=mask))
        alone = scores(plain(ids[1:, 5:]))
    if head == "ForSequenceClassification":
        assert_close(streamed, right)
        assert_close(streamed[1:], alone)
    else:
        assert_close(streamed[mask.bool()], right[mask.bool()])
        assert_close(streamed[1:, 5:], alone)
    assert right.std() > 0.1
