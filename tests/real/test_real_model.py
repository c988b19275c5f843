"""A pretrained model reads a real text: what the sinks are for, measured.

The model's folder is $ATTENTION_SINKS_MODEL, or models/SmolLM2-135M-Instruct beside this repository's README
(`python demo/fetch_model.py` puts it there).
"""

from pydoc_data import topics

import pytest
import torch
import torch.nn.functional as F
import transformers

from attention_sinks import AutoModelForCausalLM, inject_attention_sinks
from support.helpers import stream
from support.real_model import FOLDER, NEEDS_THE_MODEL

TOKENS, AFTER = 4_096, 256

pytestmark = NEEDS_THE_MODEL


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text():
    """The first tokens of Python's own language reference, which ships with Python."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("\n\n".join(topics.topics.values()), return_tensors="pt").input_ids
    return ids[:, :TOKENS]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def mean_nll(logits, ids):
    losses = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    return losses[AFTER - 1 :].mean().item()  # of the tokens after the 256th


@pytest.fixture(scope="module")
def losses(model, text):
    found = {}
    for sinks, window in ((4, 252), (0, 256)):
        inject_attention_sinks(model, sinks, window)
        found[sinks, window] = mean_nll(stream(model, text, [1_024] * 4)[0], text)
    plain = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.no_grad():
        found["dense"] = mean_nll(plain(text, use_cache=False).logits, text)
    print("\nmean NLL:", {key: round(loss, 3) for key, loss in found.items()})
    return found


def test_four_sinks_stay_close_to_dense_attention(losses):
    assert abs(losses[4, 252] - losses["dense"]) < 0.25


def test_without_sinks_the_text_is_much_harder(losses):
    assert losses[0, 256] - losses[4, 252] >= 0.3


def test_the_real_model_in_any_chunking(model, text):
    """Trained weights have the large outliers that random ones lack."""
    inject_attention_sinks(model, 4, 60)
    whole, _ = stream(model, text[:, :400])
    single, _ = stream(model, text[:, :400], [64, *[1] * 36, 250, *[1] * 50])
    difference = (torch.log_softmax(whole, -1) - torch.log_softmax(single, -1)).abs().max()
    assert difference < 2e-3 * whole.std()
