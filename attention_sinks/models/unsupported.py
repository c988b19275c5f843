"""The causal language models of Transformers that cannot stream, each with the reason."""

from __future__ import annotations

_ABSOLUTE = (
    "adds absolute positions to its embeddings, so a token cannot be moved to another place within the cache without "
    "reading it again"
)
_RECURRENT = "is recurrent: it keeps a state of constant size and has no keys to evict"
_RELATIVE_TABLE = "learns a bias for each distance from positions of the whole text, which a cache cannot move"
_INDEXER = "selects its keys by a second cache of indexer keys with positions of their own, which has no sinks yet"
_DRAFT = "drafts for another model, whose keys it reads: it has no stream of its own; give that model attention sinks"
_WRAPPED = (
    "wraps its text decoder in towers for images or sound and has not been checked yet; load the text decoder alone"
)
_COMPRESSED = "compresses keys of several tokens into one, so that single tokens can no longer be evicted or moved"

_TYPES = {
    _ABSOLUTE: """
        bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small camembert ctrl
        data2vec-text electra ernie git gpt-sw3 gpt2 gpt_bigcode gpt_neo marian mbart megatron-bert musicgen
        musicgen_melody mvp openai-gpt opt pegasus plbart prophetnet reformer rembert roberta roberta-prelayernorm
        roc_bert roformer trocr whisper xglm xlm xlm-roberta xlm-roberta-xl xmod
    """,
    _RECURRENT: "falcon_mamba mamba mamba2 rwkv xlstm",
    _RELATIVE_TABLE: "cpmant inkling_text inkling2_loop_text inkling2_text xlnet",
    _INDEXER: "minimax_m3_vl_text",
    _COMPRESSED: "deepseek_v4",
    _WRAPPED: "blt gemma3n mllama",
    _DRAFT: "gemma4_assistant gemma4_unified_assistant",
}

UNSUPPORTED: dict[str, str] = {
    model_type: reason for reason, model_types in _TYPES.items() for model_type in model_types.split()
}
"""`config.model_type` -> the reason why it cannot stream, with the model as its subject."""
