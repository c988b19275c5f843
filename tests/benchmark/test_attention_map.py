"""benchmark/quality/attention_map.py: the shares are those of the attention weights themselves."""

import pandas as pd
import pytest
import torch

from support.benchmark_helpers import random_text, refused, run_script, save_tiny_model
from support.helpers import random_ids, tiny_llama


@pytest.fixture
def attention_map(tmp_path):
    save_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(random_text(300))

    def run(**changes):
        named = {"model_name_or_path": tmp_path / "model", "dataset_name": tmp_path / "text.txt", "device": "cpu"}
        named |= {"num_tokens": 300, "output": tmp_path / "new" / "map.png", **changes}
        return run_script("quality/attention_map", *(str(x) for k, v in named.items() for x in (f"--{k}", v)))

    return run


@pytest.mark.parametrize("first_tokens", [1, 4])
def test_shares_are_the_mean_weights_of_the_second_half_on_the_first_tokens(attention_map, tmp_path, first_tokens):
    done = attention_map(first_tokens=first_tokens)
    assert done.code == 0 and "mean" in done.output
    model = tiny_llama(attn_implementation="eager")
    with torch.no_grad():
        attentions = model(random_ids(300)[None], output_attentions=True).attentions
    expected = torch.stack([weights[0, :, 150:, :first_tokens].sum(-1).mean(-1) for weights in attentions])
    frame = pd.read_csv(tmp_path / "new" / "map.csv")
    assert list(frame) == ["layer", "head", "share"]
    actual = torch.tensor(frame["share"].to_numpy()).reshape(expected.shape)
    assert (actual - expected).abs().max() < 1e-4
    assert (tmp_path / "new" / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_tokens": 301}, ["--num_tokens 301", "300 tokens"]),
        ({"num_tokens": 10}, ["--first_tokens 4", "--num_tokens 10"]),
        ({"output": "map.csv"}, ["map.csv", "picture"]),
        ({"output": "map.docx"}, ["docx"]),
        ({"model_name_or_path": "no/such-model"}, ["no/such-model"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(attention_map, tmp_path, changes, words):
    done = attention_map(**changes)
    assert done.code == 2
    for word in words:
        assert word in done.errors.splitlines()[-1]
    assert not (tmp_path / "new" / "map.csv").exists()


def test_a_text_that_cannot_be_read_is_refused(attention_map):
    refused(attention_map(dataset_name="no_such.txt"), "no_such.txt")
