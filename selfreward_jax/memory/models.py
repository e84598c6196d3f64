"""The shapes of the pretrained models in the presets: memory can be estimated before weights are downloaded."""

from pathlib import PurePosixPath
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm.hf_config import parse_config, read_config
from selfreward_jax.llm.model_config import DecoderConfig


def _described(architecture: str, sizes: str, **fields: Any) -> DecoderConfig:
    """The model of a config.json with these fields; `sizes` are those of `_SIZES`, in this order."""
    shapes = dict(zip(_SIZES, map(int, sizes.split()), strict=True))
    return parse_config({"architectures": [f"{architecture}ForCausalLM"], **shapes, **fields})


_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "intermediate_size",
)
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_EXPERTS = {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}
# By the last part of their names on the hub.
KNOWN_MODELS = {
    "SmolLM2-135M": _described(
        "Llama", "49152 576 30 9 3 64 1536", rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True
    ),
    "TinyLlama-1.1B-intermediate-step-1431k-3T": _described("Llama", "32000 2048 22 32 4 64 5632", rms_norm_eps=1e-5),
    "gemma-3-270m": _described("Gemma3", "262144 640 18 4 1 256 2048", sliding_window=512),
    "gemma-3-1b-pt": _described("Gemma3", "262144 1152 26 4 1 256 6912", sliding_window=512),
    "gemma-3-27b-pt": _described(  # its text part
        "Gemma3",
        "262208 5376 62 32 16 128 21504",
        sliding_window=1024,
        query_pre_attn_scalar=168,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "Qwen3-0.6B-Base": _described("Qwen3", "151936 1024 28 16 8 128 3072", rope_theta=1e6, tie_word_embeddings=True),
    "SmolLM3-3B-Base": _described("SmolLM3", "128256 2048 36 16 4 128 11008", rope_theta=5e6),
    "Llama-3.1-8B": _described(
        "Llama", "128256 4096 32 32 8 128 14336", rope_theta=5e5, rope_scaling=_LLAMA31_ROPE, rms_norm_eps=1e-5
    ),
    "Qwen3-8B-Base": _described("Qwen3", "151936 4096 36 32 8 128 12288", rope_theta=1e6),
    "Qwen3-30B-A3B-Base": _described("Qwen3Moe", "151936 2048 48 32 4 128 6144", rope_theta=1e6, **_EXPERTS),
    "Llama-2-70b-hf": _described("Llama", "32000 8192 80 64 8 128 28672", rms_norm_eps=1e-5),
}


def known_config(cfg: ConfigDict) -> DecoderConfig | None:
    """The shapes of the model in model.init: from its folder if it exists, else by its name. None without model.init.

    Raises:
      ConfigError: the folder does not exist and the name is unknown.
      ModelFormatError: the folder cannot be used.
    """
    init = cfg.model.init
    if not init:
        return None
    if "://" not in init and ":" not in init and (folder := epath.Path(init)).exists():
        return read_config(folder)[0]
    name = PurePosixPath(init.split("@")[0]).name
    if name not in KNOWN_MODELS:
        raise ConfigError(
            f"model.init is {init!r}, which is neither a local folder nor a known name: give a folder (its config.json "
            f"is enough), or one of {', '.join(KNOWN_MODELS)}"
        )
    return KNOWN_MODELS[name]
