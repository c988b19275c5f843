"""GGUF files small enough for a test."""

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


def write_gguf(model, path, tokenizer=None):
    """Write a Llama to one GGUF file, with a byte-level tokenizer if there is one.

    Matrices are in 8 bits (Q8_0), the rest is in float32.
    """
    config, decoder = model.config, model.model
    writer = gguf.GGUFWriter(path, "llama")
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
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    tensors = {
        "token_embd": decoder.embed_tokens.weight,
        "output_norm": decoder.norm.weight,
        "output": model.lm_head.weight,
    }
    for index, layer in enumerate(decoder.layers):
        for ours, theirs in NAMES.items():
            tensors[f"blk.{index}.{theirs}"] = layer.get_submodule(ours).weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in tensors.items():
        number = heads.get(name.rpartition(".")[2])
        _add(writer, f"{name}.weight", _neighbours(tensor, number) if number else tensor)
    _write(writer)


def write_gguf_metadata(path, architecture):
    """Write a GGUF file without any weights, of a model of two layers."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(64)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    _write(writer)


def _write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer, tokenizer):
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_scores([0.0] * len(words))  # in place of merges: there are none
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _neighbours(weight, heads):
    """llama.cpp rotates neighbouring dimensions where Transformers rotates halves."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _add(writer, name, tensor):
    values = tensor.detach().to(torch.float32).contiguous().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
