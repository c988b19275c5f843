"""Yi as first released (`model_type` "Yi"): Llama with other names for two norms. Later releases are "llama"."""

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    PreTrainedConfig,
)
from transformers.core_model_loading import WeightRenaming

from .checkpoint import CheckedLoading
from .old_names import OldNames
from .on_demand import register

CONVERSION = (
    WeightRenaming(r"\.ln1\.", ".input_layernorm."),
    WeightRenaming(r"\.ln2\.", ".post_attention_layernorm."),
)


class YiConfig(OldNames, LlamaConfig):
    """Llama's config under the old name of its type."""

    model_type = "Yi"
    old_names = {"rope_theta": "rope_theta"}


class _Yi(CheckedLoading):
    config_class: type[PreTrainedConfig] | None = YiConfig


class YiModel(_Yi, LlamaModel): ...


class YiForCausalLM(_Yi, LlamaForCausalLM): ...


class YiForSequenceClassification(_Yi, LlamaForSequenceClassification): ...


class YiForTokenClassification(_Yi, LlamaForTokenClassification): ...


class YiForQuestionAnswering(_Yi, LlamaForQuestionAnswering):
    base_model_prefix = "model"  # the prefix of the decoder's weights in a language model


register(
    YiConfig,
    AutoModel=YiModel,
    AutoModelForCausalLM=YiForCausalLM,
    AutoModelForSequenceClassification=YiForSequenceClassification,
    AutoModelForTokenClassification=YiForTokenClassification,
    AutoModelForQuestionAnswering=YiForQuestionAnswering,
    conversion=CONVERSION,
)
