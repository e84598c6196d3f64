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
_GEMMA = _TINY | {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 5,
    "tie_word_embeddings": True,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_OLMO = _TINY | {
    "pad_token_id": 0,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
}
FAMILIES |= {
    "qwen2_window": FAMILIES["qwen2"] | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_layer_types": FAMILIES["qwen3"]
    | {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3_moe": FAMILIES["qwen3"]
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 20,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "yarn": FAMILIES["qwen3"] | {"rope_scaling": _YARN},
    "gemma2": _GEMMA
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": _GEMMA
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 1e6,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3_nested": _GEMMA
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e3},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "smollm3": _TINY
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "pad_token_id": 0,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_theta": 5e4,
    },
    "olmo2": _OLMO | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "olmo3": _OLMO
    | {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "num_hidden_layers": 5,
        "sliding_window": 5,
        "rope_scaling": _YARN | {"attention_factor": 1.1},
    },
    "granite": _TINY
    | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 0.5,
    },
    "phi4": _TINY
    | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "pad_token_id": 0,
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
    kind = config["model_type"]
    for i in range(config["num_hidden_layers"]):
        layer, rows = f"model.layers.{i}", {"q": N, "k": K, "v": K}
        if kind == "phi3":
            shapes[f"{layer}.self_attn.qkv_proj.weight"] = ((N + 2 * K) * H, D)
            shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * F, D)
            shapes[f"{layer}.mlp.down_proj.weight"] = (D, F)
        else:
            shapes |= {f"{layer}.self_attn.{name}_proj.weight": (n * H, D) for name, n in rows.items()}
            mlps = [f"experts.{e}." for e in range(config.get("num_experts", 0))] or [""]
            E = config.get("moe_intermediate_size", F)
            shapes |= {f"{layer}.mlp.{m}{name}_proj.weight": (E, D) for m in mlps for name in ("gate", "up")}
            shapes |= {f"{layer}.mlp.{m}down_proj.weight": (D, E) for m in mlps}
            if kind == "qwen3_moe":
                shapes[f"{layer}.mlp.gate.weight"] = (len(mlps), D)
        if kind == "qwen2":
            shapes |= {f"{layer}.self_attn.{name}_proj.bias": (n * H,) for name, n in rows.items()}
        if kind in ("qwen3", "qwen3_moe", "gemma3_text", "olmo2", "olmo3"):
            size = 0 if "olmo" in kind else H
            shapes |= {f"{layer}.self_attn.{name}_norm.weight": (size or rows[name] * H,) for name in "qk"}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (D, N * H)
        norms = ["post_attention"] + ["input"] * ("olmo" not in kind)
        norms += ["pre_feedforward"] * ("gemma" in kind) + ["post_feedforward"] * ("gemma" in kind or "olmo" in kind)
        shapes |= {f"{layer}.{name}_layernorm.weight": (D,) for name in norms}

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = 1.0 if "embed" in name or "lm_head" in name else 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[1])
        return ("norm" in name and "gemma" not in kind) + rng.normal(0, scale, shape).astype(np.float32)

    return {name: one(name, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, family: str, dtype: str = "float32", **changed: object) -> Path:
    """Writes the folder of a family, with `changed` fields in its config.json. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = FAMILIES[family] | changed
    (folder / "config.json").write_text(json.dumps(config))
    made = {name: x.astype(np.dtype(dtype)) for name, x in tensors(FAMILIES[family]).items()}
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    return folder
