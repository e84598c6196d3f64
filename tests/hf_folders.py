"""Random tiny models of every supported family, as Hugging Face folders. The golden logits are of exactly these."""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_TINY = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = _TINY | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Each in the dialect of config.json that its publisher wrote, and one of the newer dialect.
FAMILIES = {
    "llama2": _LLAMA | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "torch_dtype": "float16"},
    "llama3": _LLAMA | {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 5e5},
    "llama31": _LLAMA | {"num_key_value_heads": 2, "rope_theta": 5e5, "rope_scaling": _LLAMA3_ROPE},
    "llama32": _LLAMA
    | {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "rope_parameters": _LLAMA3_ROPE | {"rope_theta": 5e5},
        "dtype": "bfloat16",
    },
    "linear": _LLAMA | {"num_key_value_heads": 2, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "smollm2": _LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e5},
    "tinyllama": _LLAMA | {"num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_scaling": None, "pretraining_tp": 1},
    "mistral": _TINY
    | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "sliding_window": 5,
        "tie_word_embeddings": False,
    },
    "mistral_whole": _TINY
    | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "sliding_window": None,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    "qwen2": _TINY
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "sliding_window": 5,
        "use_sliding_window": False,
        "max_window_layers": 3,
    },
    "qwen3": _TINY
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
        "rope_theta": 1e6,
        "attention_bias": False,
    },
}
LENGTHS = (24, 13)


def tokens() -> list[np.ndarray]:
    """The texts of the golden logits."""
    rng = np.random.default_rng(7)
    return [rng.integers(3, _TINY["vocab_size"], n) for n in LENGTHS]


def tensors(config: dict) -> dict[str, np.ndarray]:
    """Float32 weights by name. The name determines the values. Logits are of order 10."""
    D, F = config["hidden_size"], config["intermediate_size"]
    N, K = config["num_attention_heads"], config["num_key_value_heads"]
    H = config.get("head_dim", D // N)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], D)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, rows in (("q", N), ("k", K), ("v", K)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows * H, D)
            if config["model_type"] == "qwen2":
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows * H,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (D, N * H)
        if config["model_type"] == "qwen3":
            shapes[f"{layer}.self_attn.q_norm.weight"] = shapes[f"{layer}.self_attn.k_norm.weight"] = (H,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (F, D)
        shapes[f"{layer}.mlp.down_proj.weight"] = (D, F)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (D,)

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = 1.0 if "embed" in name or "lm_head" in name else 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[1])
        return ("norm" in name) + rng.normal(0, scale, shape).astype(np.float32)

    return {name: one(name, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, family: str, dtype: str = "float32", **changed: object) -> Path:
    """Writes the folder of a family, with `changed` fields in its config.json. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = FAMILIES[family] | changed
    (folder / "config.json").write_text(json.dumps(config))
    made = {name: x.astype(np.dtype(dtype)) for name, x in tensors(FAMILIES[family]).items()}
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    return folder
