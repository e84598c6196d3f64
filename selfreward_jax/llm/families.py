"""The families of models that are read from Hugging Face folders: in which fields each differs from Llama.

A family says what its config.json means. The decoder knows no family, only the options of `DecoderConfig`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

Json = dict[str, Any]

# The values of fields missing from config.json: the defaults of most configuration classes.
DEFAULTS: Json = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "sliding_window": None,
}


class Family(NamedTuple):
    """What differs from Llama.

    defaults: values of fields that are missing from config.json.
    options: from the fields of config.json to options of `DecoderConfig`.
    has_window: whether layer i (from 0) has the sliding window, if config.json has no `layer_types`.
    local_theta: the field with the rotary base of layers with a window. Their frequencies are not scaled. "": they
      rotate as the other layers.
    has_rope: whether layer i has rotary embeddings.
    """

    defaults: Json = {}
    options: Callable[[Json], Json] = lambda c: {}
    has_window: Callable[[Json, int], bool] = lambda c, i: False
    local_theta: str = ""
    has_rope: Callable[[Json, int], bool] = lambda c, i: True


def _qwen_window(c: Json, i: int) -> bool:
    return bool(c["use_sliding_window"]) and i >= c["max_window_layers"]


_QWEN: Json = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}


def _qwen3_moe(c: Json) -> Json:
    return {
        "qk_norm": "head",
        "mlp_dim": c["moe_intermediate_size"],
        "num_experts": c["num_experts"],
        "experts_per_token": c["num_experts_per_tok"],
        "normalize_routing": c["norm_topk_prob"],
    }


_QWEN3_MOE: Json = {
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,  # each layer
}


def _gemma(c: Json) -> Json:
    return {
        "norm_offset": 1.0,
        "post_norm": True,
        "attention_scale": c["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": c["attn_logit_softcapping"],
        "logit_softcap": c["final_logit_softcapping"],
        "embed_scale": math.sqrt(c["hidden_size"]),
    }


_GEMMA: Json = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_GEMMA3 = Family(
    _GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
    lambda c: _gemma(c) | {"qk_norm": "head"},
    has_window=lambda c, i: (i + 1) % c["sliding_window_pattern"] != 0,
    local_theta="rope_local_base_freq",
)


def _olmo(c: Json) -> Json:
    return {"pre_norm": False, "post_norm": True, "qk_norm": "width"}


def _granite(c: Json) -> Json:
    return {
        "embed_scale": c["embedding_multiplier"],
        "residual_scale": c["residual_multiplier"],
        "attention_scale": c["attention_multiplier"],
        "logit_scale": 1 / c["logits_scaling"],
    }


def _smollm3_rope(c: Json, i: int) -> bool:
    layers = c.get("no_rope_layers")  # 1 where there is rope
    return bool(layers[i]) if layers else (i + 1) % c["no_rope_layer_interval"] != 0


# Architectures as config.json names them.
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(),  # Llama 2, 3, 3.1, 3.2, 3.3, TinyLlama, SmolLM2
    "MistralForCausalLM": Family({"sliding_window": 4096}, has_window=lambda c, i: True),
    "Qwen2ForCausalLM": Family(_QWEN | {"attention_bias": True}, has_window=_qwen_window),
    "Qwen3ForCausalLM": Family(_QWEN | {"head_dim": 128}, lambda c: {"qk_norm": "head"}, has_window=_qwen_window),
    "Qwen3MoeForCausalLM": Family(_QWEN | {"head_dim": 128} | _QWEN3_MOE, _qwen3_moe, has_window=lambda c, i: True),
    "Gemma2ForCausalLM": Family(
        _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _gemma,
        has_window=lambda c, i: i % 2 == 0,
    ),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3._replace(  # its text part, which leaves out what the class fills in
        defaults=_GEMMA3.defaults | {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4}
    ),
    "SmolLM3ForCausalLM": Family(
        {"rope_theta": 2e6, "tie_word_embeddings": True, "use_sliding_window": False, "no_rope_layer_interval": 4},
        has_window=lambda c, i: c["use_sliding_window"] and not _smollm3_rope(c, i),
        has_rope=_smollm3_rope,
    ),
    "Olmo2ForCausalLM": Family({"rms_norm_eps": 1e-5}, _olmo),
    "Olmo3ForCausalLM": Family(
        {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096},
        _olmo,
        has_window=lambda c, i: (i + 1) % 4 != 0,
        local_theta="rope_theta",
    ),
    "GraniteForCausalLM": Family(
        dict.fromkeys(
            ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
            1.0,
        ),
        _granite,
    ),
    "Phi3ForCausalLM": Family(  # Phi-3, Phi-4, Phi-4-mini
        {"rms_norm_eps": 1e-5}, lambda c: {"fused_weights": True}, has_window=lambda c, i: True
    ),
}
