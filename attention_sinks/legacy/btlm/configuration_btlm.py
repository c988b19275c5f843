"""Configs of BTLM and JAIS. They have the same fields, and JAIS has other names for some of them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

JAIS_NAMES = {
    "embeddings_scale": "mup_embeddings_scale",
    "scale_qk_dot_by_d": "mup_scale_qk_dot_by_d",
    "width_scale": "mup_width_scale",
}
"""Name in later JAIS checkpoints -> name of the field. Their `width_scale` is the whole scale of the logits."""


class BtlmConfig(PreTrainedConfig):
    """GPT-2 with ALiBi, SwiGLU and the scales of muP (cerebras/btlm-3b-8k-base).

    Parameters
    ----------
    n_inner : int, optional
        Width of the feed-forward layers. The default is 4 n_embd.
    activation_function : str, default "swiglu"
        "swiglu" or any activation of Transformers.
    position_embedding_type : str, default "alibi"
        Only "alibi" is supported.
    alibi_scaling : dict, optional
        {"factor": f} divides every distance by f > 1. {"train_seq_len": n} divides the distances of a call with k keys
        by max(1, k / n), so that the farthest key is never farther than in training.
    mup_embeddings_scale, mup_output_alpha, mup_width_scale : float, default 1
        Embeddings are multiplied by the first, logits by the product of the others. `embeddings_scale` and
        `width_scale` are other names of the first and of that product.
    mup_scale_qk_dot_by_d : bool, default False
        Whether scores are divided by head_dim and not by its square root. `scale_qk_dot_by_d` is another name.
    scale_attn_weights : bool, default True
        Whether scores are divided at all.
    scale_attn_by_inverse_layer_idx : bool, default False
        Whether scores of layer i, counted from 0, are also divided by i + 1.
    reorder_and_upcast_attn : bool, default False
        It has no effect, because softmax is always in float32. Checkpoints have it in their configs.

    Raises
    ------
    ValueError
        When positions are not ALiBi, when there is cross attention, when n_head does not divide n_embd or when
        `alibi_scaling` is malformed.
    """

    model_type = "btlm"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "swiglu"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    position_embedding_type: str = "alibi"
    alibi_scaling: dict[str, Any] | None = None
    mup_embeddings_scale: float | int = 1.0
    mup_output_alpha: float | int = 1.0
    mup_width_scale: float | int = 1.0
    mup_scale_qk_dot_by_d: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if "width_scale" in kwargs:
            self.mup_output_alpha = 1.0
        for old, name in JAIS_NAMES.items():
            if old in kwargs:
                setattr(self, name, kwargs.pop(old))
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Raise ValueError when no model can be made of the config."""
        if self.position_embedding_type != "alibi":
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} is not supported for model_type="
                f"{self.model_type!r}; use a checkpoint with 'alibi', as all released ones have."
            )
        if getattr(self, "add_cross_attention", False):
            raise ValueError("add_cross_attention=True is not supported: the model is a decoder; leave it out.")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head={self.n_head} does not divide n_embd={self.n_embd}; choose a divisor.")
        scaling = self.alibi_scaling
        if scaling is None:
            return
        numbers = [scaling[name] for name in ("factor", "train_seq_len") if scaling.get(name) is not None]
        if scaling.get("type", "linear") != "linear" or len(numbers) != 1 or not numbers[0] > 1:
            raise ValueError(
                f"alibi_scaling={scaling!r} is not understood; use {{'type': 'linear', 'factor': f}} with f > 1 or "
                "{'type': 'linear', 'train_seq_len': n} with n > 1."
            )

    def alibi_factor(self, visible: int) -> float:
        """Return the divisor of distances for queries that see up to `visible` keys."""
        scaling = self.alibi_scaling or {}
        if scaling.get("train_seq_len") is not None:
            return max(1.0, visible / float(scaling["train_seq_len"]))
        return float(scaling.get("factor") or 1.0)


class JaisConfig(BtlmConfig):
    """`BtlmConfig` under the name of JAIS (inceptionai/jais-13b and others)."""

    model_type = "jais"
