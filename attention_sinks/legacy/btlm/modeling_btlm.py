"""BTLM and JAIS: GPT-2's blocks with ALiBi (arXiv 2108.12409), SwiGLU and the scales of muP (arXiv 2309.11568).

These classes load the checkpoints, whose own code needs Transformers 4. They know nothing about attention sinks.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...positions.alibi import alibi_slopes
from ...versions import CACHE, CACHE_NAMES, cache_by_either_name
from ..checkpoint import CheckedLoading
from .alibi_btlm import BtlmAlibi
from .configuration_btlm import BtlmConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention step by step, with softmax in float32.

    Parameters
    ----------
    query, key, value : torch.Tensor
        [batch, heads, n, head_dim].
    attention_mask : torch.Tensor or None
        Added to the scores.

    Returns
    -------
    tuple of torch.Tensor
        Output [batch, n, heads, head_dim] and weights [batch, heads, queries, keys].
    """
    scores = (query @ key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ResidualConv1D(Conv1D):
    """A projection whose output is added to the residual stream. Its initial weights are smaller than others."""


class BtlmAttention(nn.Module):
    """Attention whose mask includes the bias of ALiBi."""

    def __init__(self, config: BtlmConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.scaling = 1.0
        if config.scale_attn_weights:
            self.scaling = self.head_dim ** (-1.0 if config.mup_scale_qk_dot_by_d else -0.5)
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.is_causal = True
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = ResidualConv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    @cache_by_either_name
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            states.view(by_head).transpose(1, 2) for states in self.c_attn(hidden_states).chunk(3, dim=-1)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = cast(str, self.config._attn_implementation)  # the model sets it when it is made
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attn_pdrop if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.resid_dropout(self.c_proj(output.reshape(hidden_states.shape))), weights


class BtlmMLP(nn.Module):
    def __init__(self, config: BtlmConfig) -> None:
        super().__init__()
        width = 4 * config.n_embd if config.n_inner is None else config.n_inner
        gated = config.activation_function == "swiglu"
        self.c_fc = Conv1D(width, config.n_embd)
        self.c_fc2 = Conv1D(width, config.n_embd) if gated else None
        self.c_proj = ResidualConv1D(config.n_embd, width)
        self.act = ACT2FN["silu" if gated else config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.c_fc2 is None:
            inner = self.act(self.c_fc(hidden_states))
        else:
            inner = self.c_fc(hidden_states) * self.act(self.c_fc2(hidden_states))
        return self.dropout(self.c_proj(inner))


class BtlmBlock(GradientCheckpointingLayer):
    def __init__(self, config: BtlmConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = BtlmAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = BtlmMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class BtlmPreTrainedModel(CheckedLoading, PreTrainedModel):
    config: BtlmConfig
    config_class = BtlmConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BtlmBlock"]
    _skip_keys_device_placement = [*CACHE_NAMES]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["relative_pe"]  # in half precision, slopes would be wrong by up to 0.4%
    _keys_to_ignore_on_load_missing = [r"relative_pe\.slopes$"]
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.(masked_)?bias$"]
    _can_record_outputs = {"hidden_states": BtlmBlock, "attentions": OutputRecorder(BtlmAttention, index=1)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as in GPT-2: a `ResidualConv1D` starts smaller, by the root of the number of such projections."""
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            additions = 2 * self.config.n_layer if isinstance(module, ResidualConv1D) else 1
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range / math.sqrt(additions))
            init.zeros_(module.bias)
        elif isinstance(module, BtlmAlibi):
            init.copy_(module.slopes, alibi_slopes(self.config.n_head)[:, None])


class BtlmModel(BtlmPreTrainedModel):
    """The decoder. Its forward is like that of other decoders of Transformers; positions are counted in columns."""

    def __init__(self, config: BtlmConfig) -> None:
        super().__init__(config)
        self.wte: nn.Module = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([BtlmBlock(config, layer_idx) for layer_idx in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.relative_pe = BtlmAlibi(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value

    @cache_by_either_name
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        embeddings: torch.Tensor = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past = cache.get_seq_length() if cache is not None else 0
        named_cache: dict[str, Any] = {CACHE: cache}
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **named_cache,
        )
        columns = keys = embeddings.shape[1]
        if mask is not None:
            keys = mask.shape[-1]
        elif cache is not None:
            keys = cache.get_mask_sizes(columns, 0)[0]
        mask = self.relative_pe(mask, past, columns, keys, embeddings.dtype)
        hidden_states = self.drop(embeddings * self.config.mup_embeddings_scale)
        for block in self.h:
            hidden_states = block(hidden_states, attention_mask=mask, use_cache=use_cache, **named_cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden_states), **(named_cache if use_cache else {}))


class BtlmForCausalLM(BtlmPreTrainedModel, GenerationMixin):
    """The decoder with the head of a language model, whose weights are those of the embeddings."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: BtlmConfig) -> None:
        super().__init__(config)
        self.transformer = BtlmModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @cache_by_either_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        logits = logits * (self.config.mup_output_alpha * self.config.mup_width_scale)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )
