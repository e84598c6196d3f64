"""config.json of a Hugging Face folder <-> DecoderConfig.

Both forms are read: `rope_theta` + `rope_scaling` + `torch_dtype` (transformers 4, vLLM, llama.cpp), and
`rope_parameters` + `dtype` (transformers 5). A written config.json holds both.
"""

import json
import math
from typing import Any

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config import InputError
from selfreward_jax.config.errors import brief
from selfreward_jax.llm.families import DEFAULTS, FAMILIES, Family, Json
from selfreward_jax.llm.model_config import DecoderConfig, LayerKind
from selfreward_jax.llm.rotary import RopeScaling, Yarn


class ModelFormatError(InputError, ValueError):
    """A model folder cannot be used; the message names the file, the fault and what is supported."""


# The numbers that each kind of rotary position needs, besides its base.
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
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
    "sliding_window_pattern": 10_000,
    "no_rope_layer_interval": 10_000,
    "moe_intermediate_size": 1 << 22,
    "num_experts": 1 << 16,
    "num_experts_per_tok": 1 << 16,
    "decoder_sparse_step": 1,
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NUMBER_FIELDS = (
    *("rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "attn_logit_softcapping"),
    *("final_logit_softcapping", "embedding_multiplier", "residual_multiplier", "attention_multiplier"),
    "logits_scaling",
)
MAX_NUMBER = 1e12  # of the rotary base, and of factors
_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # null has a meaning of its own
_LAYER_TYPES = ("full_attention", "sliding_attention")
_LAYER_LISTS = {"layer_types": _LAYER_TYPES, "no_rope_layers": (0, 1)}


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


def read_config(folder: epath.Path) -> tuple[DecoderConfig, Json]:
    """The model's shapes and options, with its stored dtype as `param_dtype`; and config.json, unchanged but that of a
    model with further parts only the text part is left.

    Raises:
      ModelFormatError: there is no readable config.json, or it requires something that is not supported.
    """
    path = folder / "config.json"
    check_no_adapter(folder)
    raw = read_json_object(path)
    try:
        raw = _text_part(raw)
        return parse_config(raw), raw
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None


def check_no_adapter(folder: epath.Path) -> None:
    """Raises ModelFormatError where a folder holds adapters (peft) and no model."""
    path = folder / "adapter_config.json"
    if path.exists() and not (folder / "config.json").exists():
        base = read_json_object(path).get("base_model_name_or_path", "its base model")
        raise ModelFormatError(
            f"{folder} holds adapters of {brief(base)}, not a model: merge them into it (merge_and_unload of peft) and "
            "give the folder of the result"
        )


def architecture_of(raw: Json) -> str:
    """The architecture that a config.json names.

    Raises:
      ModelFormatError: it is none of those that are supported.
    """
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if architecture is None:
        raise ModelFormatError("it has no 'architectures': give the complete folder of a Hugging Face model")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ModelFormatError(f"architecture {brief(architecture)} is not supported; supported: {', '.join(FAMILIES)}")
    return architecture


def _text_part(raw: Json) -> Json:
    """The fields of the text model of a model that also sees images, as those of a text model; else all fields."""
    if architecture_of(raw) != "Gemma3ForConditionalGeneration":
        return raw
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise ModelFormatError(f"text_config is {brief(text)}; it must be an object")
    defaults = FAMILIES["Gemma3ForConditionalGeneration"].defaults
    outer = {name: raw[name] for name in ("dtype", "torch_dtype", "eos_token_id", "bos_token_id") if name in raw}
    return defaults | outer | text | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}


def parse_config(raw: Json) -> DecoderConfig:
    """The model that the fields of a config.json describe.

    Raises:
      ModelFormatError: they require something that is not supported.
    """
    architecture = architecture_of(raw)
    family = FAMILIES[architecture]
    c = DEFAULTS | family.defaults | {k: v for k, v in raw.items() if v is not None or k in _NULLABLE}
    _check_types(c)
    if quantization := c.get("quantization_config"):
        method = quantization.get("quant_method", "") if isinstance(quantization, dict) else quantization
        raise ModelFormatError(
            f"its weights are quantised (quantization_config: {brief(method)}), which is not supported: give the model "
            "that it was made from"
        )
    activation = c.get("hidden_activation", c["hidden_act"])
    if not isinstance(activation, str) or activation not in ACTIVATIONS or c["mlp_bias"]:
        raise ModelFormatError(
            f"hidden_act {brief(activation)} with mlp_bias {c['mlp_bias']} is not supported; supported without bias: "
            f"{', '.join(ACTIVATIONS)}"
        )
    if c["attention_bias"] and architecture != "Qwen2ForCausalLM":
        raise ModelFormatError(f"attention_bias in {architecture} is not supported, only Qwen2's")
    if c.get("mlp_only_layers"):
        raise ModelFormatError(
            f"mlp_only_layers is {brief(c['mlp_only_layers'])}: experts in only some layers are not supported"
        )
    if c.get("use_bidirectional_attention"):
        raise ModelFormatError("use_bidirectional_attention: a model that sees later tokens writes no text")
    heads, kinds = c["num_attention_heads"], _layer_kinds(family, c)
    head_dim = c.get("head_dim", c["hidden_size"] // heads)
    rotary_share = _rotary_share(c)
    first, *others = dict.fromkeys(kinds)
    try:
        return DecoderConfig(
            vocab_size=c["vocab_size"],
            dim=c["hidden_size"],
            num_layers=c["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=c.get("num_key_value_heads", heads),
            head_dim=head_dim,
            rope_theta=first.rope_theta,
            rope_scaling=first.rope_scaling,
            sliding_window=first.window,
            layer_kinds=tuple(kinds) if others else (),
            rotary_dim=None if rotary_share == 1 else int(head_dim * rotary_share) // 2 * 2,
            norm_eps=c["rms_norm_eps"],
            activation=ACTIVATIONS[activation],
            tie_embeddings=c["tie_word_embeddings"],
            attention_bias=c["attention_bias"],
            param_dtype=stored_dtype(c),
            **{"mlp_dim": c["intermediate_size"]} | family.options(c),
        )
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise ModelFormatError(str(error)) from None


def _rotary_share(c: Json) -> float:
    """The part of each head that is rotated, from its front."""
    share = (c.get("rope_parameters") or {}).get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    if not _is_positive(share) or share > 1:
        raise ModelFormatError(f"partial_rotary_factor is {brief(share)}; it must be a number above 0, up to 1")
    return share


def _layer_kinds(family: Family, c: Json) -> list[LayerKind]:
    """How each layer attends. A field of config.json with the types of all layers wins over the family's rule."""
    num_layers, types = c["num_hidden_layers"], c.get("layer_types")
    if types is None:
        windows = [c["sliding_window"] is not None and family.has_window(c, i) for i in range(num_layers)]
        types = ["sliding_attention" if has_window else "full_attention" for has_window in windows]
    by_type = _rope_parameters(c)
    ropes = {name: _rope(c, by_type.get(name, {}), family, name) for name in dict.fromkeys(types)}
    window = None if c.get("use_sliding_window") is False else c["sliding_window"]
    return [
        LayerKind(
            window if name == "sliding_attention" else None,
            *(ropes[name] if family.has_rope(c, i) else (None, None)),
        )
        for i, name in enumerate(types[:num_layers])
    ]


def _check_types(c: Json) -> None:
    for field, limit in _INTEGER_FIELDS.items():
        value = c.get(field)
        if value is None and field not in _REQUIRED:
            continue
        low = 0 if field == "max_window_layers" else 1
        if type(value) is not int or not low <= value <= limit:
            raise ModelFormatError(f"{field} is {brief(value)}; it must be an integer from {low} to {limit:,}")
    if c.get("head_dim") is None and c["hidden_size"] < c["num_attention_heads"]:
        raise ModelFormatError(
            f"num_attention_heads is {c['num_attention_heads']}; without head_dim it must be at most hidden_size "
            f"{c['hidden_size']}"
        )
    for field in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob"):
        if not isinstance(c.get(field, False), bool):
            raise ModelFormatError(f"{field} is {brief(c[field])}; it must be true or false")
    for field in _NUMBER_FIELDS:
        if (value := c.get(field)) is not None and not _is_positive(value):
            raise ModelFormatError(f"{field} is {brief(value)}; it must be a number above 0, up to {MAX_NUMBER:g}")
    for field in ("rope_parameters", "rope_scaling"):
        if not isinstance(c.get(field, {}), dict):
            raise ModelFormatError(f"{field} is {brief(c[field])}; it must be an object")
    for field, allowed in _LAYER_LISTS.items():
        value = c.get(field)
        if value is None:
            continue
        num_layers, of = c["num_hidden_layers"], " or ".join(map(repr, allowed))
        if not isinstance(value, list) or len(value) < num_layers or not all(x in allowed for x in value):
            raise ModelFormatError(
                f"{field} is {brief(value)}; it must be a list of {of} for each of {num_layers} layers"
            )


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= MAX_NUMBER


def _rope_parameters(c: Json) -> dict[str, Json]:
    """The fields of rotary positions for each type of layer that has its own, as transformers 5 writes them."""
    parameters = c.get("rope_parameters") or {}
    return {name: parameters[name] for name in _LAYER_TYPES if isinstance(parameters.get(name), dict)}


def _rope(c: Json, own: Json, family: Family, layer_type: str) -> tuple[float, RopeScaling | Yarn | None]:
    """The rotary base of a type of layer, and how its frequencies are scaled."""
    is_local = layer_type == "sliding_attention" and bool(family.local_theta)
    base = c[family.local_theta] if is_local else c["rope_theta"]
    flat = c.get("rope_parameters") or c.get("rope_scaling") or {}
    rope = own or ({} if is_local or _rope_parameters(c) else flat)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in ROPE_FIELDS:
        raise ModelFormatError(f"rope type {brief(rope_type)} is not supported; supported: {', '.join(ROPE_FIELDS)}")
    if rope_type == "yarn":
        rope = {"original_max_position_embeddings": c.get("max_position_embeddings")} | rope
    numbers = {"rope_theta": base if rope.get("rope_theta") is None else rope["rope_theta"]}
    numbers |= {name: rope.get(name) for name in ROPE_FIELDS[rope_type]}
    if rope_type == "yarn":
        numbers |= {name: rope[name] for name in _YARN_OPTIONS if rope.get(name) is not None}
    for name, value in numbers.items():
        if value is None:
            raise ModelFormatError(f"rope type {rope_type!r} lacks the field {name!r}: add it to config.json")
        if not _is_positive(value):
            raise ModelFormatError(
                f"{name} of rope type {rope_type!r} is {brief(value)}; it must be a number above 0, up to "
                f"{MAX_NUMBER:g}"
            )
    if rope_type == "llama3" and numbers["low_freq_factor"] == numbers["high_freq_factor"]:
        raise ModelFormatError(f"low_freq_factor and high_freq_factor are both {numbers['low_freq_factor']}: mend one")
    theta = float(numbers.pop("rope_theta"))
    kinds = {"original_max_position_embeddings": int}
    fields = {name: kinds.get(name, float)(value) for name, value in numbers.items()}
    if rope_type == "yarn":
        return theta, _yarn(fields, theta, rope.get("truncate", True))
    return theta, RopeScaling(**fields) if fields else None


def _yarn(fields: Json, theta: float, truncate: Any) -> Yarn:
    """YaRN with the attention factor that the paper gives, or DeepSeek's two, where config.json has none."""
    factor = fields["factor"]
    m_scale, m_scale_all = fields.pop("mscale", None), fields.pop("mscale_all_dim", None)

    def attention(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = attention(m_scale) / attention(m_scale_all) if m_scale and m_scale_all else attention(1.0)
    if theta <= 1:
        raise ModelFormatError(f"rope_theta is {theta:g}; with rope type 'yarn' it must be above 1")
    return Yarn(**{"attention_factor": given} | fields, truncate=bool(truncate))


def stored_dtype(c: Json) -> str:
    """The dtype of the weights according to a config.json; float32 if it names none."""
    dtype = str(c.get("dtype") or c.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelFormatError(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
    return dtype


def write_config(cfg: DecoderConfig, raw: Json | None, dtype: str, **overrides: Any) -> Json:
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
    return (raw or defaults) | _rope_fields(cfg, raw) | {"torch_dtype": dtype, "dtype": dtype, **overrides}


def _rope_fields(cfg: DecoderConfig, raw: Json | None) -> Json:
    """The fields of rotary positions, as readers of both forms need them. Those that only one form has stay as they
    came."""
    scaling = cfg.rope_scaling
    if raw and (cfg.layer_kinds or cfg.rotary_dim or isinstance(scaling, Yarn)):
        return {}
    rope: Json = {"rope_type": "default"}
    if scaling:
        factors = {k: v for k, v in scaling._asdict().items() if v is not None}
        rope = {"rope_type": "llama3" if scaling.low_freq_factor else "linear", **factors}
    return {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope if scaling else None,
        "rope_parameters": rope | {"rope_theta": cfg.rope_theta},
    }
