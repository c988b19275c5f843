"""StableLM as first released (`model_type` "stablelm_epoch"), which is StableLm with other names in its config."""

from transformers import (
    PreTrainedConfig,
    StableLmConfig,
    StableLmForCausalLM,
    StableLmForSequenceClassification,
    StableLmForTokenClassification,
    StableLmModel,
)

from .checkpoint import CheckedLoading
from .old_names import OldNames
from .on_demand import register


class StableLMEpochConfig(OldNames, StableLmConfig):
    """StableLm's config, whose file has the old names (`rope_pct`, `norm_eps`)."""

    model_type = "stablelm_epoch"
    old_names = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor", "rope_theta": "rope_theta"}
    required = {"rotary_scaling_factor": 1.0}


class _StableLMEpoch(CheckedLoading):
    config_class: type[PreTrainedConfig] | None = StableLMEpochConfig


class StableLMEpochModel(_StableLMEpoch, StableLmModel): ...


class StableLMEpochForCausalLM(_StableLMEpoch, StableLmForCausalLM): ...


class StableLMEpochForSequenceClassification(_StableLMEpoch, StableLmForSequenceClassification): ...


class StableLMEpochForTokenClassification(_StableLMEpoch, StableLmForTokenClassification): ...


register(
    StableLMEpochConfig,
    AutoModel=StableLMEpochModel,
    AutoModelForCausalLM=StableLMEpochForCausalLM,
    AutoModelForSequenceClassification=StableLMEpochForSequenceClassification,
    AutoModelForTokenClassification=StableLMEpochForTokenClassification,
)
