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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfreward_jax.llm.attention import Segment, attend, causal_mask, within
from selfreward_jax.llm.rotary import RopeScaling, rotate, turns

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
    remat: bool = False  # recompute each layer in the backward pass

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")


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
    tree = {
        "embed": Weight((V, D), ("vocab", "embed"), nn.initializers.normal(0.02)),
        "layers": layer,
        "norm": Weight((D,), ("embed",), ones),
    }
    if not cfg.tie_embeddings:
        tree["head"] = Weight((D, V), ("embed", "vocab"), inward)
    return tree


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


def block(
    cfg: LlamaConfig,
    w: dict[str, jax.Array],
    x_BTD: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    mask_BTT: jax.Array,
    past: Sequence[Segment],
    key: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer. Returns the stream [B, T, D] and this layer's keys [B, K, H, T] and values [B, K, T, H]."""
    w = {name: value.astype(x_BTD.dtype) for name, value in w.items()}
    attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)

    y = rms_norm(x_BTD, w["attn_norm"], cfg.norm_eps)
    q = jnp.einsum("BTD,DNH->BTNH", y, w["wq"])
    k = jnp.einsum("BTD,DKH->BTKH", y, w["wk"])
    v = jnp.einsum("BTD,DKH->BTKH", y, w["wv"])
    if cfg.attention_bias:
        q, k, v = q + w["bq"], k + w["bk"], v + w["bv"]
    if cfg.qk_norm:
        q, k = rms_norm(q, w["q_norm"], cfg.norm_eps), rms_norm(k, w["k_norm"], cfg.norm_eps)
    q, k = rotate(q, *turn), rotate(k, *turn)
    # Keys are kept transposed: decoding reads them along S many times and writes one column at a time.
    k_BKHT, v_BKTH = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    o_BTNH = attend(q, [*past, Segment(k_BKHT, v_BKTH, mask_BTT)])
    x_BTD = x_BTD + dropout(jnp.einsum("BTNH,NHD->BTD", o_BTNH, w["wo"]), cfg.dropout, attn_key)

    y = rms_norm(x_BTD, w["mlp_norm"], cfg.norm_eps)
    y = jax.nn.silu(y @ w["w_gate"]) * (y @ w["w_up"])
    return x_BTD + dropout(y @ w["w_down"], cfg.dropout, mlp_key), (k_BKHT, v_BKTH)


class Llama(nn.Module):
    """`Llama(cfg).apply({"params": p}, tokens_BT)` gives logits [B, T, V] in float32."""

    cfg: LlamaConfig

    def setup(self) -> None:
        """Declares the weights."""
        dtype = jnp.dtype(self.cfg.param_dtype)
        for name, declared in weights(self.cfg).items():
            # `layers` is a dictionary of stacked weights, the others are single weights.
            setattr(self, name, self.param(name, _initialise, declared, dtype))

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits [B, T, V], float32. Keyword inputs as in `hidden`."""
        return self.unembed(self.hidden(tokens_BT, **inputs)[0])

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]."""
        head_DV = self.embed.T if self.cfg.tie_embeddings else self.head
        return jnp.matmul(x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        mask_BTT: jax.Array | None = None,
        past: Sequence[Any] = (),
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Final hidden states and the keys and values of the tokens given.

        Args:
          tokens_BT: token ids, int32.
          positions_BT: rotary positions; 0, 1, 2, ... if not given.
          mask_BTT: True where query t may look at the given token s; causal if not given.
          past: earlier segments, each a `Segment` whose k and v are as this method returns them, for a number of
            rows that divides B (one row may serve several consecutive queries). `mask` [rows or 1, T or 1, S], which
            holds the sliding window too, if there is one.
          key: dropout key; None switches dropout off.

        Returns:
          hidden [B, T, D], and keys [B, K, H, T] and values [B, K, T, H] of every layer: stacked in front where
          layers are scanned, else a tuple over layers (a slice of a stacked cache would be copied at every step).
        """
        cfg = self.cfg
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        if mask_BTT is None:
            mask_BTT = causal_mask(T)[None]
        if cfg.sliding_window is not None:
            mask_BTT &= within(cfg.sliding_window, positions_BT, positions_BT)
        turn = turns(positions_BT, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        x_BTD = self.embed[tokens_BT].astype(cfg.dtype)
        if key is not None:
            x_BTD = dropout(x_BTD, cfg.dropout, jax.random.fold_in(key, cfg.layers))

        def layer(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            index, w, kv = inputs
            segments = [Segment(k, v, s.mask) for (k, v), s in zip(kv, past, strict=True)]
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return block(cfg, w, x, turn, mask_BTT, segments, layer_key)

        if cfg.remat:
            layer = jax.checkpoint(layer)
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
        else:
            kvs = []
            for i in range(cfg.layers):
                w = {name: stacked[i] for name, stacked in self.layers.items()}
                x_BTD, kv = layer(x_BTD, (i, w, [(s.k[i], s.v[i]) for s in past]))
                kvs.append(kv)
            kv = tuple(zip(*kvs, strict=True))
        return rms_norm(x_BTD, self.norm, cfg.norm_eps), kv


def _initialise(key: jax.Array, declared: Any, dtype: jnp.dtype) -> Any:
    leaves, tree = jax.tree.flatten(declared, is_leaf=lambda x: isinstance(x, Weight))
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, w.shape, dtype) for w, k in zip(leaves, keys, strict=True)])


def parameter_count(cfg: LlamaConfig) -> int:
    """Number of trained scalars, counted from the declarations."""
    leaves = jax.tree.leaves(weights(cfg), is_leaf=lambda x: isinstance(x, Weight))
    return sum(math.prod(w.shape) for w in leaves)
