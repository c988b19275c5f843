"""Qwen v1 (`model_type` "qwen": Qwen-1_8B, -7B, -14B, -72B and -Chat), which is Qwen2 with the names of GPT-2."""

from typing import Any

from transformers import (
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from .checkpoint import CheckedLoading
from .old_names import OldNames
from .on_demand import register

CONVERSION: tuple[WeightConverter | WeightRenaming, ...] = (
    WeightRenaming(r"^transformer\.wte\.", "model.embed_tokens."),
    WeightRenaming(r"^transformer\.ln_f\.", "model.norm."),
    WeightRenaming(r"^transformer\.h\.", "model.layers."),
    WeightRenaming(r"\.ln_1\.", ".input_layernorm."),
    WeightRenaming(r"\.ln_2\.", ".post_attention_layernorm."),
    WeightRenaming(r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    WeightRenaming(r"\.mlp\.w1\.", ".mlp.up_proj."),
    WeightRenaming(r"\.mlp\.w2\.", ".mlp.gate_proj."),
    WeightRenaming(r"\.mlp\.c_proj\.", ".mlp.down_proj."),
    *(
        WeightConverter(
            source_patterns=rf"\.attn\.c_attn\.{part}",
            target_patterns=[rf".self_attn.{name}_proj.{part}" for name in "qkv"],
            operations=[Chunk(dim=0)],
        )
        for part in ("weight", "bias")
    ),
)


class QWenConfig(OldNames, Qwen2Config):
    """Qwen2's config, whose file has the old names.

    Parameters
    ----------
    seq_length : int, default 2048
        Text length beyond which the old code changed its frequencies (`use_dynamic_ntk`) and scaled its queries
        (`use_logn_attn`). This class computes neither, because they change nothing up to `seq_length` visible tokens.
    """

    model_type = "qwen"
    old_names = {
        "attn_dropout_prob": "attention_dropout",
        "kv_channels": "head_dim",
        "layer_norm_epsilon": "rms_norm_eps",
        "rotary_emb_base": "rope_theta",
    }
    required = {"emb_dropout_prob": 0.0, "no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True}

    seq_length: int = 2048
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = dict(config_dict)
        if "intermediate_size" in values:  # in the file it counts gate and up projection together
            values["intermediate_size"] //= 2
        values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
        return super().from_dict(values, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return {**values, "intermediate_size": 2 * self.intermediate_size}


class _QWen(CheckedLoading):
    config_class: type[PreTrainedConfig] | None = QWenConfig


class QWenModel(_QWen, Qwen2Model): ...


class QWenLMHeadModel(_QWen, Qwen2ForCausalLM): ...


class QWenForSequenceClassification(_QWen, Qwen2ForSequenceClassification): ...


class QWenForTokenClassification(_QWen, Qwen2ForTokenClassification): ...


class QWenForQuestionAnswering(_QWen, Qwen2ForQuestionAnswering):
    base_model_prefix = "model"  # the prefix of the decoder's weights in a language model


register(
    QWenConfig,
    AutoModel=QWenModel,
    AutoModelForCausalLM=QWenLMHeadModel,
    AutoModelForSequenceClassification=QWenForSequenceClassification,
    AutoModelForTokenClassification=QWenForTokenClassification,
    AutoModelForQuestionAnswering=QWenForQuestionAnswering,
    conversion=CONVERSION,
)
