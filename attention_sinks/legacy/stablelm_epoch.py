"""StableLM as first released (`model_type` "stablelm_epoch"): StableLm whose config has other names."""

from transformers import (
    StableLmConfig,
    StableLmForCausalLM,
    StableLmForSequenceClassification,
    StableLmForTokenClassification,
    StableLmModel,
)

from .checkpoint import CheckedLoading
from .old_names import OldNames


class StableLMEpochConfig(OldNames, StableLmConfig):
    """StableLm's config, its file in the old names (`rope_pct`, `norm_eps`)."""

    model_type = "stablelm_epoch"
    old_names = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor", "rope_theta": "rope_theta"}
    required = {"rotary_scaling_factor": 1.0}


class _StableLMEpoch(CheckedLoading):
    config_class = StableLMEpochConfig


class StableLMEpochModel(_StableLMEpoch, StableLmModel): ...


class StableLMEpochForCausalLM(_StableLMEpoch, StableLmForCausalLM): ...


class StableLMEpochForSequenceClassification(_StableLMEpoch, StableLmForSequenceClassification): ...


class StableLMEpochForTokenClassification(_StableLMEpoch, StableLmForTokenClassification): ...
