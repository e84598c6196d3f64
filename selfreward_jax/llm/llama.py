"""A Llama as one Linen module: weights declared once, stacked over layers, applied by pure functions.

The forward pass and the cached forward pass are the same code. A query attends to a list of key/value
*segments*: the tokens given now, and before them whatever the caller kept from earlier calls. The model
never writes a cache; it returns the keys and values of the tokens it was given and the caller stores them.

Letters (the table for the whole repository): B batch, T query length, S key length, D model, N query heads,
K key/value heads, H head size, F feed-forward, V vocabulary, L layers; P prompts, G samples of a prompt
(B = P * G), R = N / K query heads for each key/value head, C keys a chunk.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfreward_jax.llm.attention import KVSegment, attend, causal_mask_row
from selfreward_jax.llm.rotary import RopeScaling, apply_rope, rope_cos_sin
from selfreward_jax.llm.self_attention import attention, to_cache_layout
from selfreward_jax.parallel.sharding import BATCH_AXES, constrain

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shapes and options of a Llama. Hashable, so it can be a static argument of a jitted function."""

    vocab_size: int  # V
    dim: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K; divides N
    head_dim: int  # H; even, for rotary pairs
    mlp_dim: int  # F
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    attention_bias: bool = False  # on q, k, v (Qwen2)
    qk_norm: bool = False  # RMSNorm on each head of q and k (Qwen3)
    sliding_window: int | None = None  # a query looks at this many tokens, itself included (Mistral)
    dropout: float = 0.0  # on the embedding and on each residual branch, when a dropout key is given
    dtype: str = "float32"  # of the matrix products
    param_dtype: str = "float32"  # of the stored weights
    scan_layers: bool = False  # one compiled layer, scanned; else L copies, faster to run on a CPU
    remat: str = "none"  # what the backward pass recomputes; one of REMAT
    attention: str = "reference"  # how a text attends to itself: self_attention.IMPLEMENTATIONS
    lora_rank: int = 0  # of the adapters; 0: there are none
    lora_alpha: float = 16.0  # what they add is scaled by alpha / rank
    lora_targets: tuple[str, ...] = ()  # matrices of each layer, of MATRICES

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"heads {self.num_heads} is not divisible by kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")


# What is kept of a layer for the backward pass: everything; the results of its matrix products; its input alone.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# The matrices of a layer, with how many of their leading dimensions are inputs.
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}


class ParamSpec(NamedTuple):
    """The declaration of one weight; initialisation, shardings and file formats derive from it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical axis names, one for each dimension
    init: Callable[..., jax.Array]


def param_specs(cfg: LlamaConfig) -> dict[str, Any]:
    """The tree of weight declarations, in the shape of the parameter tree. Layers are stacked in front."""
    L, D, N, K, H, F, V = (
        cfg.num_layers,
        cfg.dim,
        cfg.num_heads,
        cfg.num_kv_heads,
        cfg.head_dim,
        cfg.mlp_dim,
        cfg.vocab_size,
    )
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    inward = nn.initializers.normal(1 / math.sqrt(D))
    # Residual branches start small so that depth does not grow the stream (GPT-2's 1/sqrt(2L)).
    attn_out = nn.initializers.normal(1 / math.sqrt(N * H * 2 * L))
    mlp_out = nn.initializers.normal(1 / math.sqrt(F * 2 * L))
    layer = {
        "attn_norm": ParamSpec((L, D), ("layers", "embed"), ones),
        "wq": ParamSpec((L, D, N, H), ("layers", "embed", "heads", "head"), inward),
        "wk": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head"), inward),
        "wv": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head"), inward),
        "wo": ParamSpec((L, N, H, D), ("layers", "heads", "head", "embed"), attn_out),
        "mlp_norm": ParamSpec((L, D), ("layers", "embed"), ones),
        "w_gate": ParamSpec((L, D, F), ("layers", "embed", "mlp"), inward),
        "w_up": ParamSpec((L, D, F), ("layers", "embed", "mlp"), inward),
        "w_down": ParamSpec((L, F, D), ("layers", "mlp", "embed"), mlp_out),
    }
    if cfg.attention_bias:
        layer["bq"] = ParamSpec((L, N, H), ("layers", "heads", "head"), zeros)
        layer["bk"] = ParamSpec((L, K, H), ("layers", "kv_heads", "head"), zeros)
        layer["bv"] = ParamSpec((L, K, H), ("layers", "kv_heads", "head"), zeros)
    if cfg.qk_norm:
        layer["q_norm"] = ParamSpec((L, H), ("layers", "head"), ones)
        layer["k_norm"] = ParamSpec((L, H), ("layers", "head"), ones)
    if cfg.lora_rank:
        for name in cfg.lora_targets:
            layer |= _adapter(name, layer[name], cfg.lora_rank)
    tree = {
        "embed": ParamSpec((V, D), ("vocab", "embed"), nn.initializers.normal(0.02)),
        "layers": layer,
        "norm": ParamSpec((D,), ("embed",), ones),
    }
    if not cfg.tie_embeddings:
        tree["head"] = ParamSpec((D, V), ("embed", "vocab"), inward)
    return tree


def _adapter(name: str, matrix: ParamSpec, rank: int) -> dict[str, ParamSpec]:
    """The two factors of what is added to a matrix: inputs to rank, and rank to outputs, which begins at zero."""
    cut = 1 + MATRICES[name]  # behind the layers and the inputs
    inward = nn.initializers.normal(1 / math.sqrt(math.prod(matrix.shape[1:cut])))
    return {
        f"{name}_a": ParamSpec((*matrix.shape[:cut], rank), (*matrix.axes[:cut], "rank"), inward),
        f"{name}_b": ParamSpec(
            (matrix.shape[0], rank, *matrix.shape[cut:]),
            (matrix.axes[0], "rank", *matrix.axes[cut:]),
            nn.initializers.zeros_init(),
        ),
    }


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, in float32 (squares of bfloat16 lose the small components)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest up; without a key it is the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def project(cfg: LlamaConfig, w: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """`x` times a matrix of a layer, and what its adapter adds (LoRA, arXiv 2106.09685, eq. 3): x W + x A B alpha / r.

    The adapter is applied to `x` and not to the matrix, so that no gradient as large as the matrix is ever made.
    """
    y = jnp.tensordot(x, w[name], MATRICES[name])
    if f"{name}_a" in w:
        down = jnp.tensordot(x, w[f"{name}_a"], MATRICES[name])
        y = y + jnp.tensordot(down, w[f"{name}_b"], 1) * (cfg.lora_alpha / cfg.lora_rank)
    return y


def project_qkv(
    cfg: LlamaConfig, w: dict[str, jax.Array], name: str, y_BTD: jax.Array, rope: Sequence[jax.Array]
) -> jax.Array:
    """The queries ("q"), keys ("k") or values ("v") of a layer's normed input, [B, T, N or K, H]."""
    x = project(cfg, w, f"w{name}", y_BTD)
    if cfg.attention_bias:
        x = x + w[f"b{name}"]
    if cfg.qk_norm and name != "v":
        x = rms_norm(x, w[f"{name}_norm"], cfg.norm_eps)
    return constrain(x if name == "v" else apply_rope(x, *rope), BATCH_AXES, None, "tensor", None)


def block(
    cfg: LlamaConfig,
    w: dict[str, jax.Array],
    x_BTD: jax.Array,
    rope: Sequence[jax.Array],
    segment_ids_BT: jax.Array | None,
    past: Sequence[KVSegment],
    key: jax.Array | None,
    last_index_B: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer. Returns the stream [B, T, D] and this layer's keys [B, K, H, T] and values [B, K, T, H].

    With `ends_B`, all tokens give it their keys and values, but the stream goes on of these alone, [B, 1, D].
    """
    w = {name: value.astype(x_BTD.dtype) for name, value in w.items()}
    x_BTD = constrain(x_BTD, BATCH_AXES, None, None)
    attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)

    y = rms_norm(x_BTD, w["attn_norm"], cfg.norm_eps)
    if last_index_B is None:
        q, k, v = (project_qkv(cfg, w, name, y, rope) for name in "qkv")
        o_BTNH = attention(cfg.attention, q, k, v, segment_ids_BT, cfg.sliding_window, past)
    else:
        k, v = (project_qkv(cfg, w, name, y, rope) for name in "kv")
        mask = causal_mask_row(last_index_B, y.shape[1], cfg.sliding_window)
        x_BTD, y, *rope = (gather_last(x, last_index_B) for x in (x_BTD, y, *rope))
        seen = [s._replace(mask=gather_last(s.mask, last_index_B)) for s in past]
        o_BTNH = attend(project_qkv(cfg, w, "q", y, rope), [*seen, KVSegment(*to_cache_layout(k, v), mask)])
    x_BTD = x_BTD + dropout(project(cfg, w, "wo", o_BTNH), cfg.dropout, attn_key)

    y = rms_norm(x_BTD, w["mlp_norm"], cfg.norm_eps)
    gate, up = (project(cfg, w, name, y) for name in ("w_gate", "w_up"))
    if y.shape[1] == 1:  # few enough to be kept; in bfloat16 a CPU rounds what stands between by itself
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
    y = (jax.nn.silu(gate) * up).astype(x_BTD.dtype)
    y = constrain(y, BATCH_AXES, None, "tensor")
    return x_BTD + dropout(project(cfg, w, "w_down", y), cfg.dropout, mlp_key), to_cache_layout(k, v)


def gather_last(x: jax.Array, last_index_B: jax.Array) -> jax.Array:
    """Of rows [B or fewer, T or 1, ...], each serving consecutive ones of B, what stands at `ends_B`: [B, 1, ...];
    the same for all T, as it is."""
    if x.shape[1] == 1:
        return x
    x = jnp.repeat(x, last_index_B.shape[0] // x.shape[0], axis=0)
    return jnp.take_along_axis(x, last_index_B.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)


class Llama(nn.Module):
    """`Llama(cfg).apply({"params": p}, tokens_BT)` gives logits [B, T, V] in float32."""

    cfg: LlamaConfig

    def setup(self) -> None:
        """Declares the weights."""
        dtype = jnp.dtype(self.cfg.param_dtype)
        for name, declared in param_specs(self.cfg).items():
            # `layers` is a dictionary of stacked weights, the others are single weights.
            setattr(self, name, self.param(name, init_params, declared, dtype))

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits [B, T, V], float32. Keyword inputs as in `hidden`."""
        return self.unembed(self.hidden_states(tokens_BT, **inputs)[0])

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]."""
        head_DV = self.lm_head().astype(x_BTD.dtype)
        return jnp.matmul(x_BTD, head_DV, preferred_element_type=jnp.float32)

    def lm_head(self) -> jax.Array:
        """From hidden states to logits [D, V]."""
        return self.embed.T if self.cfg.tie_embeddings else self.head

    def hidden_states(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        past: Sequence[Any] = (),
        key: jax.Array | None = None,
        layers: Sequence[dict[str, jax.Array]] | None = None,
        last_index_B: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Final hidden states and the keys and values of the tokens given.

        Args:
          tokens_BT: token ids, int32.
          positions_BT: rotary positions; 0, 1, 2, ... if not given.
          segments_BT: a token looks only at given tokens of the same number; all of a row if not given.
          past: earlier segments, each a `Segment` whose k and v are as this method returns them, for a number of
            rows that divides B (one row may serve several consecutive queries). `mask` [rows or 1, T or 1, S], which
            holds the sliding window too, if there is one.
          key: dropout key; None switches dropout off.
          layers: what `apart` made of the weights, for those who call this in a loop.
          ends_B: of each row, one text, the one token whose hidden state is wanted; all if not given. Where layers are
            not scanned, dropout of the last one is drawn for these tokens alone.

        Returns:
          hidden [B, T, D], or [B, 1, D] at `ends_B`, and keys [B, K, H, T] and values [B, K, T, H] of every layer:
          stacked in front where layers are scanned, else a tuple over layers (a slice of a stacked cache would be
          copied at every step).

        Raises:
          ValueError: `ends_B` and `segments_BT` at once.
        """
        cfg = self.cfg
        if last_index_B is not None and segment_ids_BT is not None:
            raise ValueError("ends_B is for rows of one text each, segments_BT for rows of several")
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        turn = rope_cos_sin(positions_BT, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        # Whole rows of the table before they are looked up: of rows split in two ways at once XLA makes a detour.
        table_VD = constrain(self.embed.astype(cfg.dtype), "tensor", None)
        x_BTD = constrain(table_VD[tokens_BT], BATCH_AXES, None, None)
        if key is not None:
            x_BTD = dropout(x_BTD, cfg.dropout, jax.random.fold_in(key, cfg.num_layers))

        def layer(x: jax.Array, inputs: Any, last_index_B: jax.Array | None = None) -> tuple[jax.Array, Any]:
            index, w, kv = inputs
            segments = [KVSegment(k, v, s.mask) for (k, v), s in zip(kv, past, strict=True)]
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return block(cfg, w, x, turn, segment_ids_BT, segments, layer_key, last_index_B)

        last = partial(layer, last_index_B=last_index_B)
        if (policy := REMAT_POLICIES[cfg.remat]) is not None:
            layer, last = (jax.checkpoint(x, policy=policy) for x in (layer, last))
        if cfg.scan_layers:
            # The weights travel as scanned inputs; the scope's own parameters are only passed along.
            lifted = nn.scan(
                lambda _, x, inputs: layer(x, inputs),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=cfg.num_layers,
            )
            kept = [(s.k, s.v) for s in past]
            x_BTD, kv = lifted(self, x_BTD, (jnp.arange(cfg.num_layers), self.layers, kept))
            # One program for all layers: the last one is done whole.
            x_BTD = x_BTD if last_index_B is None else gather_last(x_BTD, last_index_B)
        else:
            kvs = []
            for i, w in enumerate(layers or unstack_layers(cfg, self.layers)):
                step = last if i + 1 == cfg.num_layers else layer
                x_BTD, kv = step(x_BTD, (i, w, [(s.k[i], s.v[i]) for s in past]))
                kvs.append(kv)
            kv = tuple(zip(*kvs, strict=True))
        return rms_norm(x_BTD, self.norm, cfg.norm_eps), kv


def unstack_layers(cfg: LlamaConfig, stacked: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """Each layer's own weights. Inside a loop XLA copies a slice of the stack at every turn, all weights in all: taken
    apart before it, they are copied once."""
    parts = {name: jax.lax.split(weight, [1] * cfg.num_layers) for name, weight in stacked.items()}
    return [{name: part[i][0] for name, part in parts.items()} for i in range(cfg.num_layers)]


def init_params(key: jax.Array, specs: Any, dtype: Any) -> Any:
    """Fresh weights of a tree of declarations."""
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_param_spec)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, w.shape, dtype) for w, k in zip(leaves, keys, strict=True)])


def abstract_params(specs: Any, dtype: Any) -> Any:
    """Shapes and dtypes of the weights of a tree of declarations."""
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype)), specs, is_leaf=is_param_spec)


def parameter_count(specs: Any) -> int:
    """Number of scalars in a tree of declarations."""
    return sum(math.prod(w.shape) for w in jax.tree.leaves(specs, is_leaf=is_param_spec))


def is_param_spec(x: Any) -> bool:
    """Whether this is a declaration: the leaf of a tree of them."""
    return isinstance(x, ParamSpec)
