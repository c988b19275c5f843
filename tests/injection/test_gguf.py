"""GGUF files, named by their path alone or by their folder: what loads, and what is refused before weights are read."""

from unittest import mock

import pytest
import torch
import transformers
from transformers import GgufConfig, PreTrainedConfig, modeling_gguf_pytorch_utils

import attention_sinks
from attention_sinks import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, gguf_files
from references.naive import naive_logits
from support.gguf_files import write_gguf, write_gguf_metadata
from support.helpers import (
    TEETH,
    assert_close,
    largest_difference,
    random_ids,
    refused,
    stream,
    tiny_llama,
)
from support.toy_tokenizers import byte_tokenizer

S, W = 4, 12
SINKS = {"attention_sink_size": S, "attention_sink_window_size": W}
IDS = random_ids(1, 70)
TEXT = "Hello, é!"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tokenizer = byte_tokenizer()
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(tiny_llama(vocab_size=len(tokenizer)), path, tokenizer)
    return path


@pytest.fixture(scope="module")
def expected(file):
    """What Transformers makes of it, streamed by the reference."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=str(file))
    with torch.no_grad():
        exact = tiny_llama(vocab_size=plain.config.vocab_size)(IDS).logits
        assert TEETH < largest_difference(plain(IDS).logits, exact) < 0.5  # 8 bits, the same model
    return naive_logits(plain, IDS[0], S, W)


WAYS = {
    "path": lambda path: ((path,), {}),
    "string": lambda path: ((str(path),), {}),
    "keyword": lambda path: ((), {"pretrained_model_name_or_path": path}),
    "folder": lambda path: ((path.parent,), {"gguf_file": path.name}),
    "both": lambda path: ((path,), {"gguf_file": path.name}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "LlamaForCausalLM"])
def test_a_model(file, expected, name, way):
    where, arguments = WAYS[way](file)
    model = getattr(attention_sinks, name).from_pretrained(*where, **arguments, **SINKS)
    assert model.dtype == torch.float32
    assert_close(stream(model, IDS)[0][0], expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_tokenizer(file, way):
    where, arguments = WAYS[way](file)
    tokenizer = AutoTokenizer.from_pretrained(*where, **arguments)
    assert tokenizer(TEXT).input_ids == byte_tokenizer()(TEXT).input_ids
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_a_path_relative_to_the_working_directory(file, expected, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert_close(stream(AutoModelForCausalLM.from_pretrained(file.name, **SINKS), IDS)[0][0], expected)
    assert AutoTokenizer.from_pretrained(file.name)(TEXT).input_ids == byte_tokenizer()(TEXT).input_ids


def test_another_file_of_this_name_in_the_working_directory(file, expected, tmp_path, monkeypatch):
    """Transformers would take its weights."""
    write_gguf(tiny_llama(seed=1, vocab_size=258), tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **SINKS)
    assert_close(stream(model, IDS)[0][0], expected)


def test_a_subfolder(file, expected):
    model = AutoModelForCausalLM.from_pretrained(
        file.parent.parent, subfolder=file.parent.name, gguf_file=file.name, **SINKS
    )
    assert_close(stream(model, IDS)[0][0], expected)


def test_a_folder_with_this_suffix(tmp_path):
    folder = tmp_path / "folder.gguf"
    tiny_llama().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **SINKS)
    assert_close(stream(model, IDS)[0][0], naive_logits(tiny_llama(), IDS[0], S, W))


def test_dtype(file):
    assert AutoModelForCausalLM.from_pretrained(file, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_it_is_an_ordinary_model(file, expected, tmp_path):
    """It can be cast and saved, and what was saved remembers nothing of the file."""
    model = AutoModelForCausalLM.from_pretrained(file, **SINKS)
    model.double().float().save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    assert_close(stream(AutoModelForCausalLM.from_pretrained(tmp_path, **SINKS), IDS)[0][0], expected)


def test_another_config_for_the_weights_stays(file):
    model = AutoModelForCausalLM.from_pretrained(file, quantization_config=GgufConfig(dequantize=False))
    with pytest.raises(ValueError, match="quantized"):
        model.float()


def test_arguments_for_the_config_reach_it(file):
    model = AutoModelForCausalLM.from_pretrained(file, use_cache=False, attn_implementation="eager")
    assert model.config.use_cache is False and model.config._attn_implementation == "eager"


def test_the_config_is_that_of_transformers(file):
    ours = AutoModelForCausalLM.from_pretrained(file).config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
    ).config
    assert ours.to_dict() == theirs.to_dict()


def test_the_config_is_read_once(file):
    with mock.patch.object(PreTrainedConfig, "get_config_dict", wraps=PreTrainedConfig.get_config_dict) as read:
        AutoModelForCausalLM.from_pretrained(file)
    assert read.call_count == 1


# ---- what is refused

CLASSES = pytest.mark.parametrize("kind", [AutoModelForCausalLM, LlamaForCausalLM, AutoTokenizer])


@CLASSES
def test_no_such_file(tmp_path, kind):
    missing = tmp_path / "missing.gguf"
    refused(FileNotFoundError, lambda: kind.from_pretrained(missing), missing)
    refused(FileNotFoundError, lambda: kind.from_pretrained(tmp_path, gguf_file=missing.name), missing)
    refused(FileNotFoundError, lambda: kind.from_pretrained("owner/missing.gguf"), "owner", "gguf_file='….gguf'")


@CLASSES
@pytest.mark.parametrize("content", [b"", b"GG", b"version https://git-lfs.github.com/spec/v1\n"])
def test_no_gguf_file(tmp_path, kind, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(ValueError, lambda: kind.from_pretrained(path), path, content[:4])
    refused(ValueError, lambda: kind.from_pretrained(tmp_path, gguf_file=path.name), path, content[:4])


@CLASSES
def test_two_different_files(file, kind):
    refused(ValueError, lambda: kind.from_pretrained(file, gguf_file="other.gguf"), "other.gguf", file)


@CLASSES
def test_one_part_of_several(file, tmp_path, kind):
    part = tmp_path / "model-00001-of-00003.gguf"
    part.write_bytes(file.read_bytes())
    refused(ValueError, lambda: kind.from_pretrained(part), part.name, "3 parts", "llama-gguf-split --merge")
    refused(ValueError, lambda: kind.from_pretrained("owner/model", gguf_file=part.name), part.name)


@pytest.mark.parametrize("architecture", ["mamba", "t5"])
def test_an_architecture_that_cannot_stream(tmp_path, architecture):
    path = tmp_path / "model.gguf"
    write_gguf_metadata(path, architecture)
    refused(NotImplementedError, lambda: AutoModelForCausalLM.from_pretrained(path), architecture)


def test_an_architecture_that_transformers_cannot_read(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf_metadata(path, "rwkv6")
    refused(ValueError, lambda: AutoModelForCausalLM.from_pretrained(path), path, "rwkv6")


def test_a_truncated_file(file, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(file.read_bytes()[:5000])
    refused(ValueError, lambda: AutoModelForCausalLM.from_pretrained(path), path, "download it again")


@CLASSES
def test_the_package_is_missing(file, kind, monkeypatch):
    for module in (gguf_files, modeling_gguf_pytorch_utils):
        monkeypatch.setattr(module, "is_gguf_available", lambda: False)
    refused(ImportError, lambda: kind.from_pretrained(file), file, "pip install 'gguf")
