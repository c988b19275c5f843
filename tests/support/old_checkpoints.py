"""Synthetic checkpoints in the layouts of old releases, made from native models with random weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers
from safetensors.torch import save_file

from support.helpers import VOCABULARY, randomise

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

TRAP = "raise SystemExit('code of the checkpoint was run')\n"


@dataclass(frozen=True)
class OldLayout:
    """An old release and the native model that computes the same.

    Attributes
    ----------
    config : dict
        Its config.json, with values that are nobody's defaults.
    native : str
        Prefix of the native classes' names.
    native_config : dict
        What the native config must say.
    rename : (state dict) -> state dict
        From native names and tensors to the old ones.
    language_model : str
        Name of the class in the old release.
    """

    config: dict
    native: str
    native_config: dict
    rename: Callable
    language_model: str
    heads: tuple = field(default=("ForSequenceClassification", "ForTokenClassification"))

    @property
    def model_type(self):
        return self.config["model_type"]

    def assembled(self, model_class="ForCausalLM", **changes):
        """The native model, its config written by hand; the same weights at every call."""
        config = getattr(transformers, f"{self.native}Config")(
            **{**SIZES, **NO_TOKENS, **self.native_config, **changes}
        )
        return randomise(getattr(transformers, f"{self.native}{model_class}")(config))

    def old_state(self):
        return self.rename(self.assembled().state_dict())

    def write(self, folder, form="safetensors", state=None, **changes):
        """The checkpoint as a folder, in two shards with an index, beside code that must not be run."""
        auto_map = {
            "AutoConfig": "old_code.OldConfig",
            "AutoModel": "old_code.OldModel",
            "AutoModelForCausalLM": f"old_code.{self.language_model}",
            "AutoModelForSequenceClassification": "old_code.OldClassifier",
        }
        config = {**SIZES, **NO_TOKENS, **self.config, "architectures": [self.language_model], "auto_map": auto_map}
        config |= {"torch_dtype": "float32", "transformers_version": "4.32.0", "use_cache": True, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "old_code.py").write_text(TRAP)
        write_shards(self.old_state() if state is None else state, folder, form)
        return folder


def write_shards(state, folder, form):
    """Two shards of about as many tensors, and their index."""
    stem, suffix, save = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[form]
    names = sorted(state)
    places = {name: f"{stem}-0000{1 + 2 * i // len(names)}-of-00002.{suffix}" for i, name in enumerate(names)}
    for file in set(places.values()):
        save({name: state[name].clone() for name in names if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def replaced(*pairs):
    """A function that renames the keys of a state dict by replacing parts of them, in order."""

    def rename(state):
        renamed = {}
        for name, tensor in state.items():
            for part, by in pairs:
                name = name.replace(part, by)
            renamed[name] = tensor
        return renamed

    return rename


QWEN_NAMES = replaced(
    ("model.embed_tokens", "transformer.wte"),
    ("model.norm", "transformer.ln_f"),
    ("model.layers", "transformer.h"),
    ("input_layernorm", "ln_1"),
    ("post_attention_layernorm", "ln_2"),
    ("self_attn.o_proj", "attn.c_proj"),
    ("mlp.gate_proj", "mlp.w2"),
    ("mlp.up_proj", "mlp.w1"),
    ("mlp.down_proj", "mlp.c_proj"),
)


def qwen_state(state):
    """Query, key and value projections as one."""
    fused = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            fused[name.replace("self_attn.q_proj", "attn.c_attn")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            fused[name] = tensor
    return QWEN_NAMES(fused)


OLD_LAYOUTS = {
    "Yi": OldLayout(
        config={
            "model_type": "Yi",
            "intermediate_size": 96,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-3,
            "rope_theta": 5000.0,
            "max_position_embeddings": 512,
            "hidden_act": "silu",
            "rope_scaling": None,
        },
        native="Llama",
        native_config={
            "intermediate_size": 96,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "max_position_embeddings": 512,
        },
        rename=replaced(("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2")),
        language_model="YiForCausalLM",
        heads=("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    ),
    "stablelm_epoch": OldLayout(
        config={
            "model_type": "stablelm_epoch",
            "intermediate_size": 96,
            "num_key_value_heads": 2,
            "norm_eps": 1e-3,
            "rope_pct": 0.5,
            "rope_theta": 5000.0,
            "rotary_scaling_factor": 1.0,
            "use_qkv_bias": True,
            "max_position_embeddings": 512,
        },
        native="StableLm",
        native_config={
            "intermediate_size": 96,
            "num_key_value_heads": 2,
            "layer_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
            "use_qkv_bias": True,
            "max_position_embeddings": 512,
        },
        rename=replaced(),
        language_model="StableLMEpochForCausalLM",
    ),
    "qwen": OldLayout(
        config={
            "model_type": "qwen",
            "intermediate_size": 192,
            "kv_channels": 24,
            "layer_norm_epsilon": 1e-3,
            "rotary_emb_base": 5000,
            "rotary_pct": 1.0,
            "seq_length": 96,
            "max_position_embeddings": 512,
            "attn_dropout_prob": 0.0,
            "emb_dropout_prob": 0.0,
            "no_bias": True,
            "scale_attn_weights": True,
            "use_dynamic_ntk": True,
            "use_logn_attn": True,
            "use_flash_attn": "auto",
            "bf16": False,
            "fp16": False,
            "fp32": False,
            "onnx_safe": None,
            "tie_word_embeddings": False,
            "tokenizer_class": "QWenTokenizer",
        },
        native="Qwen2",
        native_config={
            "intermediate_size": 96,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000},
            "max_position_embeddings": 512,
        },
        rename=qwen_state,
        language_model="QWenLMHeadModel",
        heads=("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    ),
}
