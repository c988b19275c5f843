"""The table of supported architectures, with one entry for each `config.model_type`.

A new architecture that is like an existing one needs only an entry here, with the names of the parts to patch.
"""

from __future__ import annotations

import difflib

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..architecture.spec import Architecture
from ..legacy import btlm, streaming_qwen
from ..positions.rotary import (
    HALVES_BACKWARDS,
    HALVES_BY_PAIR,
    NEIGHBOURS,
    NEIGHBOURS_FROM_HALVES,
    TRAILING_COMPLEX,
    TRAILING_HALVES,
    TRAILING_NEIGHBOURS_FROM_HALVES,
)
from ..positions.schemes import (
    NoPositions,
    Rope,
    Scheme,
    by_no_rope_layers,
    sliding_layers,
    sliding_layers_if_any,
)
from ..versions import check_release_for, streams_in_this_release
from . import (
    bloom,
    codegen,
    deepseek_v32,
    doge,
    dory,
    falcon,
    gemma4,
    gpt_neox_japanese,
    gptj,
    hunyuan_v1,
    lara_mini,
    llama4_text,
    minimax,
    mpt,
    qwen4_exp,
    recurrent_gemma,
    zaya,
)
from .unsupported import UNSUPPORTED


def _rope_or_none(config: PreTrainedConfig) -> Scheme:
    """Return the scheme of a model whose config decides whether it has positions."""
    return Rope() if config.position_embedding_type == "rope" else NoPositions()


def _zamba2_positions(config: PreTrainedConfig) -> Scheme:
    return Rope() if config.use_mem_rope else NoPositions()


ARCHITECTURES: dict[str, Architecture] = {
    "Yi": Architecture("LlamaAttention"),
    "afmoe": Architecture("AfmoeAttention", Rope(rotates=sliding_layers)),
    "apertus": Architecture("ApertusAttention"),
    "apertus1p5_text": Architecture("Apertus1p5TextAttention"),
    "arcee": Architecture("ArceeAttention"),
    "aria_text": Architecture("AriaTextAttention"),
    "bamba": Architecture("BambaAttention"),
    "beam": Architecture("BeamAttention", Rope(rotates=sliding_layers)),
    "bitnet": Architecture("BitNetAttention"),
    "bloom": bloom.ARCHITECTURE,
    "btlm": btlm.ARCHITECTURE,
    "codegen": codegen.ARCHITECTURE,
    "cohere": Architecture("CohereAttention", Rope(NEIGHBOURS)),
    "cohere2": Architecture("Cohere2Attention", Rope(NEIGHBOURS, sliding_layers)),
    "cohere2_moe": Architecture("Cohere2MoeAttention", Rope(NEIGHBOURS, sliding_layers)),
    "cohere_compass_text": Architecture("CohereCompassAttention", Rope(rotates=sliding_layers)),
    "cwm": Architecture("CwmAttention"),
    "dbrx": Architecture("DbrxAttention"),
    "diffllama": Architecture("DiffLlamaAttention"),
    "doge": doge.ARCHITECTURE,
    "dory": dory.ARCHITECTURE,
    "dots1": Architecture("Dots1Attention"),
    "emu3_text_model": Architecture("Emu3Attention"),
    "ernie4_5": Architecture("Ernie4_5Attention", Rope(NEIGHBOURS_FROM_HALVES)),
    "ernie4_5_moe": Architecture("Ernie4_5_MoeAttention", Rope(NEIGHBOURS_FROM_HALVES)),
    "exaone": Architecture("LlamaAttention"),
    "exaone4": Architecture("Exaone4Attention", Rope(rotates=sliding_layers_if_any)),
    "exaone_moe": Architecture("ExaoneMoeAttention", Rope(rotates=sliding_layers_if_any)),
    "falcon": falcon.ARCHITECTURE,
    "falcon_h1": Architecture("FalconH1Attention"),
    "flex_olmo": Architecture("FlexOlmoAttention"),
    "flint": Architecture("FlintAttention", Rope(rotates=sliding_layers)),
    "gemma": Architecture("GemmaAttention"),
    "gemma2": Architecture("Gemma2Attention"),
    "gemma3_text": Architecture("Gemma3Attention"),
    "gemma3n_text": Architecture("Gemma3nTextAttention"),
    "gemma4_text": gemma4.TEXT,
    "gemma4_unified_text": gemma4.UNIFIED,
    "glm": Architecture("GlmAttention", Rope(NEIGHBOURS_FROM_HALVES)),
    "glm4": Architecture("Glm4Attention", Rope(NEIGHBOURS_FROM_HALVES)),
    "glm4_moe": Architecture("Glm4MoeAttention"),
    "gpt_neox": Architecture("GPTNeoXAttention"),
    "gpt_neox_japanese": gpt_neox_japanese.ARCHITECTURE,
    "gpt_oss": Architecture("GptOssAttention", Rope(HALVES_BY_PAIR)),
    "gptj": gptj.ARCHITECTURE,
    "granite": Architecture("GraniteAttention"),
    "granite_swa": Architecture("GraniteSWAAttention"),
    "granitemoe": Architecture("GraniteMoeAttention"),
    "granitemoe_swa": Architecture("GraniteMoeSWAAttention"),
    "granitemoehybrid": Architecture("GraniteMoeHybridAttention", _rope_or_none),
    "granitemoeshared": Architecture("GraniteMoeSharedAttention"),
    "helium": Architecture("HeliumAttention", Rope(NEIGHBOURS_FROM_HALVES)),
    "hrm_text": Architecture("HrmTextAttention"),
    "hunyuan_v1_dense": hunyuan_v1.DENSE,
    "hunyuan_v1_moe": hunyuan_v1.MIXTURE,
    "hy_v3": Architecture("HYV3Attention"),
    "hyperclovax": Architecture("HyperCLOVAXAttention"),
    "internlm3": Architecture("LlamaAttention"),
    "iquestcoder": Architecture("LlamaAttention"),
    "jais": btlm.ARCHITECTURE,
    "jais2": Architecture("Jais2Attention"),
    "jamba": Architecture("JambaAttention", NoPositions(), states_continue=False),
    "jetmoe": Architecture("JetMoeAttention"),
    "kimi_linear": Architecture("KimiLinearAttention", NoPositions()),
    "kolibri1": Architecture("Kolibri1Attention", Rope(rotates=sliding_layers_if_any)),
    "laguna": Architecture("LagunaAttention"),
    "lara_mini": lara_mini.ARCHITECTURE,
    "lfm2": Architecture("Lfm2Attention"),
    "lfm2_moe": Architecture("Lfm2MoeAttention", Rope(module="pos_emb")),
    "lfm3": Architecture("Lfm3Attention"),
    "llama": Architecture("LlamaAttention"),
    "llama4_text": llama4_text.ARCHITECTURE,
    "mellum": Architecture("MellumAttention"),
    "mimo_v2_flash": Architecture("MiMoV2FlashAttention"),
    "minimax": minimax.ARCHITECTURE,
    "minimax_m2": Architecture("MiniMaxM2Attention"),
    "ministral": Architecture("MinistralAttention"),
    "ministral3": Architecture("Ministral3Attention"),
    "mistral": Architecture("MistralAttention"),
    "mixtral": Architecture("MixtralAttention"),
    "modernbert-decoder": Architecture("ModernBertDecoderAttention"),
    "moshi": Architecture("MoshiAttention", Rope(module="layers.0.self_attn.rotary_emb")),
    "mpt": mpt.ARCHITECTURE,
    "nanochat": Architecture("NanoChatAttention", Rope(HALVES_BACKWARDS)),
    "nemotron": Architecture("NemotronAttention"),
    "nemotron_h": Architecture("NemotronHAttention", NoPositions()),
    "olmo": Architecture("OlmoAttention"),
    "olmo2": Architecture("Olmo2Attention"),
    "olmo3": Architecture("Olmo3Attention"),
    "olmo_hybrid": Architecture("OlmoHybridAttention"),
    "olmoe": Architecture("OlmoeAttention"),
    "persimmon": Architecture("PersimmonAttention"),
    "phi": Architecture("PhiAttention"),
    "phi3": Architecture("Phi3Attention"),
    "phi4_multimodal": Architecture("Phi4MultimodalAttention", notes="text only"),
    "phimoe": Architecture("PhimoeAttention"),
    "qwen": streaming_qwen.ARCHITECTURE,
    "qwen2": Architecture("Qwen2Attention"),
    "qwen2_moe": Architecture("Qwen2MoeAttention"),
    "qwen3": Architecture("Qwen3Attention"),
    "qwen3_5_moe_text": Architecture("Qwen3_5MoeAttention"),
    "qwen3_5_text": Architecture("Qwen3_5Attention"),
    "qwen3_moe": Architecture("Qwen3MoeAttention"),
    "qwen3_next": Architecture("Qwen3NextAttention"),
    "qwen4_exp_text": qwen4_exp.ARCHITECTURE,
    "recurrent_gemma": recurrent_gemma.ARCHITECTURE,
    "sarvam_moe": Architecture("Glm4MoeAttention"),
    "seed_oss": Architecture("SeedOssAttention"),
    "smollm3": Architecture("SmolLM3Attention", Rope(rotates=by_no_rope_layers)),
    "solar_open": Architecture("SolarOpenAttention"),
    "stablelm": Architecture("StableLmAttention"),
    "stablelm_epoch": Architecture("StableLmAttention"),
    "starcoder2": Architecture("Starcoder2Attention"),
    "vaultgemma": Architecture("VaultGemmaAttention"),
    "zamba": Architecture("ZambaAttention", NoPositions(), states_continue=False),
    "zamba2": Architecture("Zamba2Attention", _zamba2_positions, notes="`use_mem_rope=True`: rotary (halves)"),
    "zaya": zaya.ARCHITECTURE,
    # Latent attention keeps the rotated part of its keys among the values.
    "axk1": Architecture("AXK1Attention", Rope(TRAILING_HALVES), rotated="values"),
    "axk2": deepseek_v32.sparse("AXK2Attention"),
    "bailing_hybrid": Architecture("BailingHybridAttention", Rope(TRAILING_HALVES), rotated="values"),
    "deepseek_v2": Architecture("DeepseekV2Attention", Rope(TRAILING_COMPLEX), rotated="values"),
    "deepseek_v3": Architecture("DeepseekV3Attention", Rope(TRAILING_HALVES), rotated="values"),
    "deepseek_v32": deepseek_v32.sparse("DeepseekV32Attention"),
    "dots3_note_text": deepseek_v32.sparse("Dots3NoteTextAttention", deepseek_v32.WIDE_TRAILING_HALVES),
    "glm4_moe_lite": Architecture("Glm4MoeLiteAttention", Rope(TRAILING_HALVES), rotated="values"),
    "glm_moe_dsa": deepseek_v32.sparse("GlmMoeDsaAttention"),
    "hy_v4": deepseek_v32.sparse("HYV4Attention"),
    "hy_v4_vl_text": deepseek_v32.sparse("HYV4VLAttention", TRAILING_NEIGHBOURS_FROM_HALVES),
    "longcat_flash": Architecture("LongcatFlashMLA", Rope(TRAILING_HALVES), rotated="values"),
    "minicpm3": Architecture("MiniCPM3Attention", Rope(TRAILING_HALVES), rotated="values"),
    "sarvam_mla": Architecture("DeepseekV3Attention", Rope(TRAILING_HALVES), rotated="values"),
    "youtu": Architecture("YoutuAttention", Rope(TRAILING_HALVES), rotated="values"),
}
"""`config.model_type` -> the facts about its architecture."""

OWN_TYPES = ("Yi", "btlm", "jais", "qwen", "stablelm_epoch")
"""Types that Transformers does not know. This library registers them."""

WRAPPERS = {
    "apertus1p5": "apertus1p5_text",
    "dots3_note": "dots3_note_text",
    "emu3": "emu3_text_model",
    "fuyu": "persimmon",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "qwen2",
    "hy_v4_vl": "hy_v4_vl_text",
    "llama4": "llama4_text",
    "moss_transcribe_diarize": "qwen3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Type of a multimodal model -> type of its text decoder, which streams. Calls with images or sound are refused."""


def supported_model_types() -> list[str]:
    """Return the `config.model_type` strings, sorted, that can stream and that the installed Transformers knows."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *OWN_TYPES}
    return sorted(filter(streams_in_this_release, {*ARCHITECTURES, *WRAPPERS} & known))


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the entry of `config.model_type`.

    Raises
    ------
    NotImplementedError
        When the type has no entry, needs a newer Transformers, is an encoder-decoder or is configured in a way that
        cannot stream. The message names similar types and says how to add one.
    """
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"model_type={model_type!r} is an encoder-decoder; attention sinks are for decoder-only models: "
            "use one of supported_model_types()."
        )
    check_release_for(model_type)
    if model_type in WRAPPERS:
        return architecture_of(config.get_text_config(decoder=True))
    if model_type in UNSUPPORTED:
        raise NotImplementedError(
            f"model_type={model_type!r} cannot stream: it {UNSUPPORTED[model_type]}. Use one of "
            f"supported_model_types(){_nearest(model_type)}."
        )
    if model_type not in ARCHITECTURES:
        raise NotImplementedError(_unknown(model_type))
    architecture = ARCHITECTURES[model_type]
    architecture.check(config)
    architecture.check_layers(config)
    return architecture


def check_type(model_type: str | None) -> None:
    """Raise NotImplementedError when neither Transformers nor this library knows `model_type`; None is none."""
    if model_type is not None and model_type not in {*CONFIG_MAPPING, *ARCHITECTURES, *WRAPPERS}:
        raise NotImplementedError(_unknown(model_type))


def _unknown(model_type: str) -> str:
    """Return what is said of a type without an entry."""
    close = _close_to(model_type)
    similar = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"model_type={model_type!r} is not supported by attention_sinks.{similar} Use one of "
        "supported_model_types(), or add an entry to ARCHITECTURES in attention_sinks/models/registry.py "
        "(docs/contributing.md says how)."
    )


def _nearest(model_type: str) -> str:
    """Return which supported type has the name that is most like `model_type`, if any is like it."""
    close = _close_to(model_type)
    return f", of which {close[0]!r} is nearest by name" if close else ""


def _close_to(model_type: str) -> list[str]:
    return difflib.get_close_matches(model_type, supported_model_types())
