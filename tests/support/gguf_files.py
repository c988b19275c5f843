"""GGUF files small enough for a test."""

import gguf

from benchmark.lib.gguf_writer import write_all, write_llama


def write_gguf(model, path, tokenizer=None):
    """Write a Llama to one GGUF file, with a byte-level tokenizer if there is one; matrices are in 8 bits (Q8_0)."""
    write_llama(model, path, "int8", tokenizer)


def write_gguf_metadata(path, architecture):
    """Write a GGUF file without any weights, of a model of two layers."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(64)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    write_all(writer)
