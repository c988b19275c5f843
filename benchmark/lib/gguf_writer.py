"""A Llama written as a GGUF file, as llama.cpp reads it."""

from __future__ import annotations

from os import PathLike
from typing import Any

import gguf
import torch

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The modules of a layer of Transformers' Llama -> llama.cpp's names of their weights."""

KINDS = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
}


def write_llama(model: Any, path: str | PathLike[str], dtype: str = "float32", tokenizer: Any = None) -> None:
    """Write a Llama to one GGUF file.

    Parameters
    ----------
    model : LlamaForCausalLM
        The model, with rotary positions of the plain kind.
    path : str
        The file.
    dtype : {"float32", "float16", "bfloat16", "int8"}
        The type of the matrices; the rest is in float32.
    tokenizer : PreTrainedTokenizerBase, optional
        A tokenizer of bytes. Without one, the file is for programs that bring tokens.

    Raises
    ------
    ValueError
        When it is no Llama, or its positions are of another kind.
    """
    if model.config.model_type != "llama":
        raise ValueError(f"a model of type {model.config.model_type!r} is not written as GGUF here; choose a Llama.")
    if (kind := model.config.rope_parameters["rope_type"]) != "default":
        raise ValueError(
            f"a model with rope_type={kind!r} is not written as GGUF here; choose one with plain positions."
        )
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_sizes(writer, model.config)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_tokenizer(writer, tokenizer)
    for name, tensor in _tensors_of(model).items():
        values = tensor.detach().to(torch.float32).contiguous().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, KINDS[dtype]), raw_dtype=KINDS[dtype])
    write_all(writer)


def write_all(writer: gguf.GGUFWriter) -> None:
    """Write what `writer` was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_scores([0.0] * len(words))  # in place of merges: there are none
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights by llama.cpp's names; an output that is the embeddings is not among them."""
    config, decoder = model.config, model.model
    tensors = {"token_embd.weight": decoder.embed_tokens.weight, "output_norm.weight": decoder.norm.weight}
    if model.lm_head.weight is not decoder.embed_tokens.weight:
        tensors["output.weight"] = model.lm_head.weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for index, layer in enumerate(decoder.layers):
        for ours, theirs in NAMES.items():
            weight = layer.get_submodule(ours).weight
            rotated = _neighbours(weight, heads[theirs]) if theirs in heads else weight
            tensors[f"blk.{index}.{theirs}.weight"] = rotated
    return tensors


def _neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return `weight` with the dimensions of each head in the order of llama.cpp, which rotates neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
