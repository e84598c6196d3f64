"""The parameters of a decoder: each declared once, with its shape, logical axes and initialiser.

Shardings, abstract trees, initial values and the map to Hugging Face folders derive from these declarations. Letters
for axes: the table in decoder.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfreward_jax.llm.model_config import DecoderConfig

Params = dict[str, Any]

# The matrices of a layer, with the number of their leading dimensions that are inputs.
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
MLP_MATRICES = ("w_gate", "w_up", "w_down")  # each expert has its own


class ParamSpec(NamedTuple):
    """The declaration of one weight; initialization, shardings and file formats derive from it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical axis names, one for each dimension
    init: Callable[..., jax.Array]


def param_specs(cfg: DecoderConfig) -> dict[str, Any]:
    """The tree of parameter declarations, shaped like the parameter tree. The first axis of layer weights is L."""
    L, D, N, K = cfg.num_layers, cfg.dim, cfg.num_heads, cfg.num_kv_heads
    H, F, V = cfg.head_dim, cfg.mlp_dim, cfg.vocab_size
    ones, zeros = nn.initializers.constant(1 - cfg.norm_offset), nn.initializers.zeros_init()
    fan_in = nn.initializers.normal(1 / math.sqrt(D))
    # Residual branches start small so that the residual stream does not grow with depth (GPT-2's 1/sqrt(2L)).
    attn_out = nn.initializers.normal(1 / math.sqrt(N * H * 2 * L))
    mlp_out = nn.initializers.normal(1 / math.sqrt(F * 2 * L))
    layer = {
        "wq": ParamSpec((L, D, N, H), ("layers", "embed", "heads", "head"), fan_in),
        "wk": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head"), fan_in),
        "wv": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head"), fan_in),
        "wo": ParamSpec((L, N, H, D), ("layers", "heads", "head", "embed"), attn_out),
    }
    if E := cfg.num_experts:
        layer["router"] = ParamSpec((L, D, E), ("layers", "embed", "router"), fan_in)
        layer["w_gate"] = ParamSpec((L, E, D, F), ("layers", "experts", "embed", "expert_mlp"), fan_in)
        layer["w_up"] = ParamSpec((L, E, D, F), ("layers", "experts", "embed", "expert_mlp"), fan_in)
        layer["w_down"] = ParamSpec((L, E, F, D), ("layers", "experts", "expert_mlp", "embed"), mlp_out)
    else:
        layer["w_gate"] = ParamSpec((L, D, F), ("layers", "embed", "mlp"), fan_in)
        layer["w_up"] = ParamSpec((L, D, F), ("layers", "embed", "mlp"), fan_in)
        layer["w_down"] = ParamSpec((L, F, D), ("layers", "mlp", "embed"), mlp_out)
    if cfg.attention_bias:
        layer["bq"] = ParamSpec((L, N, H), ("layers", "heads", "head"), zeros)
        layer["bk"] = ParamSpec((L, K, H), ("layers", "kv_heads", "head"), zeros)
        layer["bv"] = ParamSpec((L, K, H), ("layers", "kv_heads", "head"), zeros)
    places = ("norm",) * cfg.pre_norm + ("post_norm",) * cfg.post_norm
    layer |= {f"{part}_{p}": ParamSpec((L, D), ("layers", "embed"), ones) for p in places for part in ("attn", "mlp")}
    if cfg.qk_norm == "head":
        layer |= {f"{name}_norm": ParamSpec((L, H), ("layers", "head"), ones) for name in "qk"}
    elif cfg.qk_norm:
        layer["q_norm"] = ParamSpec((L, N, H), ("layers", "heads", "head"), ones)
        layer["k_norm"] = ParamSpec((L, K, H), ("layers", "kv_heads", "head"), ones)
    if cfg.lora_rank:
        for name in cfg.lora_targets:
            layer |= _adapter(name, layer[name], cfg.lora_rank)
    tree = {
        "embed": ParamSpec((V, D), ("vocab", "embed"), nn.initializers.normal(0.02)),
        "layers": layer,
        "norm": ParamSpec((D,), ("embed",), ones),
    }
    if not cfg.tie_embeddings:
        tree["head"] = ParamSpec((D, V), ("embed", "vocab"), fan_in)
    return tree


def _adapter(name: str, matrix: ParamSpec, rank: int) -> dict[str, ParamSpec]:
    """The two factors that an adapter adds: A from inputs to rank, and B from rank to outputs. B starts at zero."""
    cut = 1 + MATRICES[name]  # the dimensions before it are the layers and the inputs
    fan_in = nn.initializers.normal(1 / math.sqrt(math.prod(matrix.shape[1:cut])))
    return {
        f"{name}_a": ParamSpec((*matrix.shape[:cut], rank), (*matrix.axes[:cut], "rank"), fan_in),
        f"{name}_b": ParamSpec(
            (matrix.shape[0], rank, *matrix.shape[cut:]),
            (matrix.axes[0], "rank", *matrix.axes[cut:]),
            nn.initializers.zeros_init(),
        ),
    }


def init_params(key: jax.Array, specs: Any, dtype: Any) -> Any:
    """Randomly initialized weights for a tree of declarations."""
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_param_spec)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, w.shape, dtype) for w, k in zip(leaves, keys, strict=True)])


def abstract_params(specs: Any, dtype: Any) -> Any:
    """Shapes and dtypes of the weights for a tree of declarations."""
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype)), specs, is_leaf=is_param_spec)


def parameter_count(specs: Any) -> int:
    """Number of scalars in a tree of declarations."""
    return sum(math.prod(w.shape) for w in jax.tree.leaves(specs, is_leaf=is_param_spec))


def is_param_spec(x: Any) -> bool:
    """Whether this is a `ParamSpec`: a leaf of a tree of declarations."""
    return isinstance(x, ParamSpec)
