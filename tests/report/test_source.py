"""Where a model lies, and what is read there."""

import gguf
import pytest
from transformers import AutoConfig, LlamaConfig

from attention_sinks.report.source import Source, find_source, read_config
from support.helpers import tiny_config


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "owner/name.v2"])
def test_a_name_on_the_hub(name):
    assert find_source(name) == Source(name, name)


def test_a_folder_and_a_gguf_file(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "model.GGUF").write_bytes(b"GGUF")
    assert find_source(str(tmp_path)) == Source(str(tmp_path), str(tmp_path))
    found = find_source(str(tmp_path / "model.GGUF"))
    assert found.arguments == {"pretrained_model_name_or_path": str(tmp_path), "gguf_file": "model.GGUF"}


@pytest.mark.parametrize("name", ["./gpt2", "/models/gpt2", "~/gpt2", "models/new/gpt2", "models/", "..", ""])
def test_what_looks_like_a_path_is_no_name_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="; give"):
        find_source(name)


def test_a_gguf_config_read_without_its_vocabulary_is_the_same(tmp_path):
    """The length of the vocabulary counts where a file has no other number for it."""
    config = tiny_config()
    path = tmp_path / "words.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(2)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"word{index}" for index in range(1234)])
    writer.add_token_types([1] * 1234)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read, plain = read_config(find_source(str(path))), AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    assert isinstance(read, LlamaConfig) and read.vocab_size == 1234
    plain.name_or_path = read.name_or_path
    assert read.to_dict() == plain.to_dict()
