"""Where a model lies, and what is read there."""

from importlib import import_module

import gguf
import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from attention_sinks.report.gguf_header import strings_sliced_fast
from attention_sinks.report.source import Source, find_source, read_config, read_tokenizer
from attention_sinks.versions import tokenizers_read_gguf_themselves
from support.gguf_files import write_gguf
from support.helpers import tiny_config, tiny_llama
from support.toy_tokenizers import byte_tokenizer


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


@pytest.mark.skipif(not tokenizers_read_gguf_themselves(), reason="the package gguf reads the vocabulary")
def test_a_gguf_tokenizer_whose_strings_are_sliced_fast_is_the_same(tmp_path):
    write_gguf(tiny_llama(), tmp_path / "tiny.gguf", byte_tokenizer())
    read = read_tokenizer(find_source(str(tmp_path / "tiny.gguf")))
    plain = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert type(read) is type(plain) and read.get_vocab() == plain.get_vocab()
    assert read.backend_tokenizer.to_str() == plain.backend_tokenizer.to_str()
    assert read.special_tokens_map == plain.special_tokens_map and read.chat_template == plain.chat_template


@pytest.mark.skipif(not tokenizers_read_gguf_themselves(), reason="the package gguf reads the vocabulary")
def test_strings_are_sliced_fast_for_the_length_of_a_block(tmp_path):
    reader = import_module("transformers.integrations.gguf.reader")
    (tmp_path / "file").write_bytes(b"GGUF")
    plain = reader._mapped
    with pytest.raises(KeyboardInterrupt), strings_sliced_fast():
        assert type(reader._mapped(tmp_path / "file")) is memoryview
        raise KeyboardInterrupt
    assert reader._mapped is plain
