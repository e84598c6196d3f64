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

from selfreward_jax.llm.attention import Segment, attend, up_to
from selfreward_jax.llm.rotary import RopeScaling, rotate, turns
from selfreward_jax.llm.self_attention import as_kept, attention
from selfreward_jax.parallel.sharding import BATCH_AXES, constrain

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shapes and options of a Llama. Hashable, so it can be a static argument of a jitted function."""

    vocab_size: int  # V
    dim: int  # D
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K; divides N
    head_dim: int  # H; even, for rotary pairs
    hidden: int  # F
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
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")


# What is kept of a layer for the backward pass: everything; the results of its matrix products; its input alone.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# The matrices of a layer, with how many of their leading dimensions are inputs.
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}


class Weight(NamedTuple):
    """The declaration of one weight; initialisation, shardings and file formats derive from it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical axis names, one for each dimension
    init: Callable[..., jax.Array]


def weights(cfg: LlamaConfig) -> dict[str, Any]:
    """The tree of weight declarations, in the shape of the parameter tree. Layers are stacked in front."""
    L, D, N, K, H, F, V = (
        cfg.layers,
        cfg.dim,
        cfg.heads,
        cfg.kv_heads,
        cfg.head_dim,
        cfg.hidden,
        cfg.vocab_size,
    )
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    inward = nn.initializers.normal(1 / math.sqrt(D))
    # Residual branches start small so that depth does not grow the stream (GPT-2's 1/sqrt(2L)).
    attn_out = nn.initializers.normal(1 / math.sqrt(N * H * 2 * L))
    mlp_out = nn.initializers.normal(1 / math.sqrt(F * 2 * L))
    layer = {
        "attn_norm": Weight((L, D), ("layers", "embed"), ones),
        "wq": Weight((L, D, N, H), ("layers", "embed", "heads", "head"), inward),
        "wk": Weight((L, D, K, H), ("layers", "embed", "kv_heads", "head"), inward),
        "wv": Weight((L, D, K, H), ("layers", "embed", "kv_heads", "head"), inward),
        "wo": Weight((L, N, H, D), ("layers", "heads", "head", "embed"), attn_out),
        "mlp_norm": Weight((L, D), ("layers", "embed"), ones),
        "w_gate": Weight((L, D, F), ("layers", "embed", "mlp"), inward),
        "w_up": Weight((L, D, F), ("layers", "embed", "mlp"), inward),
        "w_down": Weight((L, F, D), ("layers", "mlp", "embed"), mlp_out),
    }
    if cfg.attention_bias:
        layer["bq"] = Weight((L, N, H), ("layers", "heads", "head"), zeros)
        layer["bk"] = Weight((L, K, H), ("layers", "kv_heads", "head"), zeros)
        layer["bv"] = Weight((L, K, H), ("layers", "kv_heads", "head"), zeros)
    if cfg.qk_norm:
        layer["q_norm"] = Weight((L, H), ("layers", "head"), ones)
        layer["k_norm"] = Weight((L, H), ("layers", "head"), ones)
    if cfg.lora_rank:
        for name in cfg.lora_targets:
            layer |= _adapter(name, layer[name], cfg.lora_rank)
    tree = {
        "embed": Weight((V, D), ("vocab", "embed"), nn.initializers.normal(0.02)),
        "layers": layer,
        "norm": Weight((D,), ("embed",), ones),
    }
    if not cfg.tie_embeddings:
        tree["head"] = Weight((D, V), ("embed", "vocab"), inward)
    return tree


def _adapter(name: str, matrix: Weight, rank: int) -> dict[str, Weight]:
    """The two factors of what is added to a matrix: inputs to rank, and rank to outputs, which begins at zero."""
    cut = 1 + MATRICES[name]  # behind the layers and the inputs
    inward = nn.initializers.normal(1 / math.sqrt(math.prod(matrix.shape[1:cut])))
    return {
        f"{name}_a": Weight((*matrix.shape[:cut], rank), (*matrix.axes[:cut], "rank"), inward),
        f"{name}_b": Weight(
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


def heads(
    cfg: LlamaConfig, w: dict[str, jax.Array], name: str, y_BTD: jax.Array, turn: Sequence[jax.Array]
) -> jax.Array:
    """The queries ("q"), keys ("k") or values ("v") of a layer's normed input, [B, T, N or K, H]."""
    x = project(cfg, w, f"w{name}", y_BTD)
    if cfg.attention_bias:
        x = x + w[f"b{name}"]
    if cfg.qk_norm and name != "v":
        x = rms_norm(x, w[f"{name}_norm"], cfg.norm_eps)
    return constrain(x if name == "v" else rotate(x, *turn), BATCH_AXES, None, "tensor", None)


def block(
    cfg: LlamaConfig,
    w: dict[str, jax.Array],
    x_BTD: jax.Array,
    turn: Sequence[jax.Array],
    segments_BT: jax.Array | None,
    past: Sequence[Segment],
    key: jax.Array | None,
    ends_B: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer. Returns the stream [B, T, D] and this layer's keys [B, K, H, T] and values [B, K, T, H].

    With `ends_B`, all tokens give it their keys and values, but the stream goes on of these alone, [B, 1, D].
    """
    w = {name: value.astype(x_BTD.dtype) for name, value in w.items()}
    x_BTD = constrain(x_BTD, BATCH_AXES, None, None)
    attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)

    y = rms_norm(x_BTD, w["attn_norm"], cfg.norm_eps)
    if ends_B is None:
        q, k, v = (heads(cfg, w, name, y, turn) for name in "qkv")
        o_BTNH = attention(cfg.attention, q, k, v, segments_BT, cfg.sliding_window, past)
    else:
        k, v = (heads(cfg, w, name, y, turn) for name in "kv")
        mask = up_to(ends_B, y.shape[1], cfg.sliding_window)
        x_BTD, y, *turn = (at_ends(x, ends_B) for x in (x_BTD, y, *turn))
        seen = [s._replace(mask=at_ends(s.mask, ends_B)) for s in past]
        o_BTNH = attend(heads(cfg, w, "q", y, turn), [*seen, Segment(*as_kept(k, v), mask)])
    x_BTD = x_BTD + dropout(project(cfg, w, "wo", o_BTNH), cfg.dropout, attn_key)

    y = rms_norm(x_BTD, w["mlp_norm"], cfg.norm_eps)
    gate, up = (project(cfg, w, name, y) for name in ("w_gate", "w_up"))
    if y.shape[1] == 1:  # few enough to be kept; in bfloat16 a CPU rounds what stands between by itself
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
    y = (jax.nn.silu(gate) * up).astype(x_BTD.dtype)
    y = constrain(y, BATCH_AXES, None, "tensor")
    return x_BTD + dropout(project(cfg, w, "w_down", y), cfg.dropout, mlp_key), as_kept(k, v)


def at_ends(x: jax.Array, ends_B: jax.Array) -> jax.Array:
    """Of rows [B or fewer, T or 1, ...], each serving consecutive ones of B, what stands at `ends_B`: [B, 1, ...];
    the same for all T, as it is."""
    if x.shape[1] == 1:
        return x
    x = jnp.repeat(x, ends_B.shape[0] // x.shape[0], axis=0)
    return jnp.take_along_axis(x, ends_B.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)


class Llama(nn.Module):
    """`Llama(cfg).apply({"params": p}, tokens_BT)` gives logits [B, T, V] in float32."""

    cfg: LlamaConfig

    def setup(self) -> None:
        """Declares the weights."""
        dtype = jnp.dtype(self.cfg.param_dtype)
        for name, declared in weights(self.cfg).items():
            # `layers` is a dictionary of stacked weights, the others are single weights.
            setattr(self, name, self.param(name, initialise, declared, dtype))

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits [B, T, V], float32. Keyword inputs as in `hidden`."""
        return self.unembed(self.hidden(tokens_BT, **inputs)[0])

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]."""
        head_DV = self.output_matrix().astype(x_BTD.dtype)
        return jnp.matmul(x_BTD, head_DV, preferred_element_type=jnp.float32)

    def output_matrix(self) -> jax.Array:
        """From hidden states to logits [D, V]."""
        return self.embed.T if self.cfg.tie_embeddings else self.head

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        past: Sequence[Any] = (),
        key: jax.Array | None = None,
        layers: Sequence[dict[str, jax.Array]] | None = None,
        ends_B: jax.Array | None = None,
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
        if ends_B is not None and segments_BT is not None:
            raise ValueError("ends_B is for rows of one text each, segments_BT for rows of several")
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        turn = turns(positions_BT, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        # Whole rows of the table before they are looked up: of rows split in two ways at once XLA makes a detour.
        table_VD = constrain(self.embed.astype(cfg.dtype), "tensor", None)
        x_BTD = constrain(table_VD[tokens_BT], BATCH_AXES, None, None)
        if key is not None:
            x_BTD = dropout(x_BTD, cfg.dropout, jax.random.fold_in(key, cfg.layers))

        def layer(x: jax.Array, inputs: Any, ends_B: jax.Array | None = None) -> tuple[jax.Array, Any]:
            index, w, kv = inputs
            segments = [Segment(k, v, s.mask) for (k, v), s in zip(kv, past, strict=True)]
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return block(cfg, w, x, turn, segments_BT, segments, layer_key, ends_B)

        last = partial(layer, ends_B=ends_B)
        if (policy := REMAT[cfg.remat]) is not None:
            layer, last = (jax.checkpoint(x, policy=policy) for x in (layer, last))
        if cfg.scan_layers:
            # The weights travel as scanned inputs; the scope's own parameters are only passed along.
            lifted = nn.scan(
                lambda _, x, inputs: layer(x, inputs),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=cfg.layers,
            )
            kept = [(s.k, s.v) for s in past]
            x_BTD, kv = lifted(self, x_BTD, (jnp.arange(cfg.layers), self.layers, kept))
            # One program for all layers: the last one is done whole.
            x_BTD = x_BTD if ends_B is None else at_ends(x_BTD, ends_B)
        else:
            kvs = []
            for i, w in enumerate(layers or apart(cfg, self.layers)):
                step = last if i + 1 == cfg.layers else layer
                x_BTD, kv = step(x_BTD, (i, w, [(s.k[i], s.v[i]) for s in past]))
                kvs.append(kv)
            kv = tuple(zip(*kvs, strict=True))
        return rms_norm(x_BTD, self.norm, cfg.norm_eps), kv


def apart(cfg: LlamaConfig, stacked: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """Each layer's own weights. Inside a loop XLA copies a slice of the stack at every turn, all weights in all: taken
    apart before it, they are copied once."""
    parts = {name: jax.lax.split(weight, [1] * cfg.layers) for name, weight in stacked.items()}
    return [{name: part[i][0] for name, part in parts.items()} for i in range(cfg.layers)]


def initialise(key: jax.Array, declared: Any, dtype: Any) -> Any:
    """Fresh weights of a tree of declarations."""
    leaves, tree = jax.tree.flatten(declared, is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, w.shape, dtype) for w, k in zip(leaves, keys, strict=True)])


def abstract(declared: Any, dtype: Any) -> Any:
    """Shapes and dtypes of the weights of a tree of declarations."""
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype)), declared, is_leaf=is_weight)


def parameter_count(declared: Any) -> int:
    """Number of scalars in a tree of declarations."""
    return sum(math.prod(w.shape) for w in jax.tree.leaves(declared, is_leaf=is_weight))


def is_weight(x: Any) -> bool:
    """Whether this is a declaration: the leaf of a tree of them."""
    return isinstance(x, Weight)
