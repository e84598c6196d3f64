"""config.json of a Hugging Face folder <-> LlamaConfig.

Both forms are read: `rope_theta` + `rope_scaling` + `torch_dtype` (transformers 4, vLLM, llama.cpp), and
`rope_parameters` + `dtype` (transformers 5). A written config.json holds both.
"""

import json
from typing import Any

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config import InputError
from selfreward_jax.config.errors import brief
from selfreward_jax.llm.llama import LlamaConfig
from selfreward_jax.llm.rotary import RopeScaling

Json = dict[str, Any]


class ModelFormatError(InputError, ValueError):
    """A model folder cannot be used; the message names the file, the fault and what is supported."""


# The values of fields missing from config.json: the defaults of the architecture's configuration class.
_COMMON_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "sliding_window": None,
}
ARCHITECTURES: dict[str, Json] = {
    "LlamaForCausalLM": _COMMON_DEFAULTS,  # Llama 2, 3, 3.1, 3.2, 3.3, TinyLlama, SmolLM2
    "MistralForCausalLM": _COMMON_DEFAULTS | {"sliding_window": 4096},
    "Qwen2ForCausalLM": _COMMON_DEFAULTS | {"attention_bias": True, "use_sliding_window": False},
    "Qwen3ForCausalLM": _COMMON_DEFAULTS | {"head_dim": 128, "use_sliding_window": False},
}
# The numbers that each kind of rotary position needs, besides its base.
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
DTYPES = ("float32", "bfloat16", "float16")
# Largest values. What is above them is no model that exists, and would exhaust a machine.
_INTEGER_FIELDS = {
    "vocab_size": 10_000_000,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "sliding_window": 1 << 31,
    "max_window_layers": 10_000,
    "max_position_embeddings": 1 << 31,
}
_OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers", "max_position_embeddings")
MAX_ROPE = 1e12  # of the rotary base, and of the factors that scale it


def read_json_object(path: epath.Path) -> Json:
    """The JSON object of a file.

    Raises:
      ModelFormatError: the file does not exist, or does not hold a JSON object.
    """
    try:
        value = json.loads(foreign.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} cannot be read ({error}): it must be a JSON file of a model folder") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} holds a {type(value).__name__}: it must be a JSON object")
    return value


def read_config(folder: epath.Path) -> tuple[LlamaConfig, Json]:
    """The model's shapes and options, with its stored dtype as `param_dtype`; and the unchanged config.json.

    Raises:
      ModelFormatError: there is no readable config.json, or it requires something that is not supported.
    """
    path = folder / "config.json"
    raw = read_json_object(path)
    try:
        return _parse(raw), raw
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None


def _parse(raw: Json) -> LlamaConfig:
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if architecture is None:
        raise ModelFormatError("it has no 'architectures': give the complete folder of a Hugging Face model")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ModelFormatError(f"architecture {architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    c = ARCHITECTURES[architecture] | {k: v for k, v in raw.items() if v is not None or k == "sliding_window"}
    _check_types(c)
    if c["hidden_act"] != "silu" or c["mlp_bias"]:
        raise ModelFormatError(
            f"hidden_act {c['hidden_act']!r} with mlp_bias {c['mlp_bias']}: only silu without bias is supported"
        )
    if c["attention_bias"] and architecture != "Qwen2ForCausalLM":
        raise ModelFormatError(f"attention_bias in {architecture} is not supported, only Qwen2's")
    if c.get("use_sliding_window") is False:
        c["sliding_window"] = None
    elif c.get("use_sliding_window") and (c.get("max_window_layers") or 0) > 0:
        raise ModelFormatError(
            "use_sliding_window with max_window_layers above 0: a window in only some layers is not supported"
        )
    heads, rope = c["num_attention_heads"], _rope(c)
    try:
        return LlamaConfig(
            vocab_size=c["vocab_size"],
            dim=c["hidden_size"],
            num_layers=c["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=c.get("num_key_value_heads", heads),
            head_dim=c.get("head_dim", c["hidden_size"] // heads),
            mlp_dim=c["intermediate_size"],
            rope_theta=rope.pop("rope_theta"),
            rope_scaling=RopeScaling(**rope) if rope else None,
            norm_eps=c["rms_norm_eps"],
            tie_embeddings=c["tie_word_embeddings"],
            attention_bias=c["attention_bias"],
            qk_norm=architecture == "Qwen3ForCausalLM",
            sliding_window=c["sliding_window"],
            param_dtype=stored_dtype(c),
        )
    except ValueError as error:
        raise ModelFormatError(str(error)) from None


def _check_types(c: Json) -> None:
    for field, limit in _INTEGER_FIELDS.items():
        value = c.get(field)
        if value is None and field in _OPTIONAL:
            continue
        low = 0 if field == "max_window_layers" else 1
        if type(value) is not int or not low <= value <= limit:
            raise ModelFormatError(f"{field} is {brief(value)}; it must be an integer from {low} to {limit:,}")
    if c.get("head_dim") is None and c["hidden_size"] < c["num_attention_heads"]:
        raise ModelFormatError(
            f"num_attention_heads is {c['num_attention_heads']}; without head_dim it must be at most hidden_size "
            f"{c['hidden_size']}"
        )
    for field in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        if not isinstance(c[field], bool):
            raise ModelFormatError(f"{field} is {c[field]!r}; it must be true or false")
    for field in ("rms_norm_eps", "rope_theta"):
        if type(c[field]) not in (int, float) or not 0 < c[field] <= MAX_ROPE:
            raise ModelFormatError(f"{field} is {brief(c[field])}; it must be a number above 0, up to {MAX_ROPE:g}")
    for field in ("rope_parameters", "rope_scaling"):
        if not isinstance(c.get(field, {}), dict):
            raise ModelFormatError(f"{field} is {c[field]!r}; it must be an object")


def _rope(c: Json) -> Json:
    """rope_theta, and the fields of RopeScaling if the model scales its frequencies."""
    rope = c.get("rope_parameters") or {**(c.get("rope_scaling") or {}), "rope_theta": c["rope_theta"]}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in ROPE_FIELDS:
        raise ModelFormatError(f"rope type {brief(rope_type)} is not supported; supported: {', '.join(ROPE_FIELDS)}")
    numbers = {"rope_theta": c["rope_theta"], **{name: rope.get(name) for name in ROPE_FIELDS[rope_type]}}
    if rope.get("rope_theta") is not None:
        numbers["rope_theta"] = rope["rope_theta"]
    for name, value in numbers.items():
        if value is None:
            raise ModelFormatError(f"rope type {rope_type!r} lacks the field {name!r}: add it to config.json")
        if type(value) not in (int, float) or not 0 < value <= MAX_ROPE:
            raise ModelFormatError(
                f"{name} of rope type {rope_type!r} is {brief(value)}; it must be a number above 0, up to {MAX_ROPE:g}"
            )
    if rope_type == "llama3" and numbers["low_freq_factor"] == numbers["high_freq_factor"]:
        raise ModelFormatError(f"low_freq_factor and high_freq_factor are both {numbers['low_freq_factor']}: mend one")
    kinds = {"original_max_position_embeddings": int}
    return {name: kinds.get(name, float)(value) for name, value in numbers.items()}


def stored_dtype(c: Json) -> str:
    """The dtype of the weights according to a config.json; float32 if it names none."""
    dtype = str(c.get("dtype") or c.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelFormatError(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
    return dtype


def write_config(cfg: LlamaConfig, raw: Json | None, dtype: str, **overrides: Any) -> Json:
    """config.json in both forms.

    Args:
      cfg: the model.
      raw: the config.json that the model came with, whose other fields are preserved; None for a model trained here.
      dtype: of the stored weights.
      **overrides: fields to set, such as max_position_embeddings and eos_token_id.
    """
    architecture = (
        "Qwen3" if cfg.qk_norm else "Qwen2" if cfg.attention_bias else "Mistral" if cfg.sliding_window else "Llama"
    )
    defaults: Json = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.mlp_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_dropout": 0.0,
    }
    if architecture == "Mistral":
        defaults["sliding_window"] = cfg.sliding_window
    if architecture in ("Llama", "Qwen3"):
        defaults["attention_bias"] = False
    scaling = cfg.rope_scaling
    rope: Json = {"rope_type": "default"}
    if scaling:
        factors = {k: v for k, v in scaling._asdict().items() if v is not None}
        rope = {"rope_type": "llama3" if scaling.low_freq_factor else "linear", **factors}
    return (raw or defaults) | {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope if scaling else None,
        "rope_parameters": rope | {"rope_theta": cfg.rope_theta},
        "torch_dtype": dtype,
        "dtype": dtype,
        **overrides,
    }
