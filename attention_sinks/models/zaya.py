"""ZAYA convolves queries and keys over neighbouring tokens before attention and delays half of its values.

Transformers keeps what the next call needs of that as states of the layer. Attention itself is as everywhere.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from ..architecture.spec import Architecture


def _unsupported_reason(config: PreTrainedConfig) -> str | None:
    if config.attention_bias:  # the bias is added where padding has been set to zero
        return (
            "with attention_bias=True convolves padding into the first tokens of a row, in Transformers itself; use a "
            "model without that bias, as the released ones are."
        )
    return None


ARCHITECTURE = Architecture(
    "ZayaAttention", unsupported_reason=_unsupported_reason, notes="keys are convolved before they are cached"
)
