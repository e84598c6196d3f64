"""A Llama as one Linen module: weights declared once, stacked over layers, applied by pure functions.

The forward pass and the cached forward pass are the same code. A query attends to a list of key/value segments
(`attention.KVSegment`): the input tokens, and before them any segments that the caller stored from earlier calls. The
model never writes a cache. It returns the keys and values of the input tokens, and the caller stores them.

Letters for array axes, the only table of the repository. They are used in suffixes of array names (`x_BTD`):

    B batch           N query heads              V vocabulary
    T query length    K key/value heads          L layers
    S key length      H head size                P prompts, each with G samples: B = P * G
    D model           M = N / K query heads      R prompts in one prefill batch (sampling/)
    F feed-forward      for each key/value head  W new tokens of a sample (sampling/)
    n blocks of C tokens of the vocabulary (sampling/top_p.py)

A digit is the length of an axis: `x_B1` is [B, 1].
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfreward_jax.llm.attention import KVSegment, attend, causal_mask_row, in_window
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
    sliding_window: int | None = None  # a query attends to this many tokens, itself included (Mistral)
    dropout: float = 0.0  # on the embedding and on each residual branch, if a dropout key is passed
    dtype: str = "float32"  # of the matrix products
    param_dtype: str = "float32"  # of the stored weights
    scan_layers: bool = False  # compile one layer and scan it; else compile L copies, which run faster on a CPU
    remat: str = "none"  # what the backward pass recomputes; a key of REMAT_POLICIES
    attention: str = "reference"  # one of self_attention.IMPLEMENTATIONS
    lora_rank: int = 0  # of the adapters; 0: no adapters
    lora_alpha: float = 16.0  # an adapter's output is scaled by alpha / rank
    lora_targets: tuple[str, ...] = ()  # the matrices with adapters; keys of MATRICES

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}: choose a multiple"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embeddings rotate pairs: choose an even number")


# What a layer saves for the backward pass: all values; the results of its matrix products; only its input.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# The matrices of a layer, with the number of their leading dimensions that are inputs.
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}


class ParamSpec(NamedTuple):
    """The declaration of one weight; initialization, shardings and file formats derive from it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical axis names, one for each dimension
    init: Callable[..., jax.Array]


def param_specs(cfg: LlamaConfig) -> dict[str, Any]:
    """The tree of parameter declarations, shaped like the parameter tree. The first axis of layer weights is L."""
    L, D, N, K = cfg.num_layers, cfg.dim, cfg.num_heads, cfg.num_kv_heads
    H, F, V = cfg.head_dim, cfg.mlp_dim, cfg.vocab_size
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    fan_in = nn.initializers.normal(1 / math.sqrt(D))
    # Residual branches start small so that the residual stream does not grow with depth (GPT-2's 1/sqrt(2L)).
    attn_out = nn.initializers.normal(1 / math.sqrt(N * H * 2 * L))
    mlp_out = nn.initializers.normal(1 / math.sqrt(F * 2 * L))
    layer = {
        "attn_norm": ParamSpec((L, D), ("layers", "embed"), ones),
        "wq": ParamSpec((L, D, N, H), ("layers", "embed", "heads", "head"), fan_in),
        "wk": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head"), fan_in),
        "wv": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head"), fan_in),
        "wo": ParamSpec((L, N, H, D), ("layers", "heads", "head", "embed"), attn_out),
        "mlp_norm": ParamSpec((L, D), ("layers", "embed"), ones),
        "w_gate": ParamSpec((L, D, F), ("layers", "embed", "mlp"), fan_in),
        "w_up": ParamSpec((L, D, F), ("layers", "embed", "mlp"), fan_in),
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


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, in float32 (squares of bfloat16 lose the small components)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets a fraction `rate` of `x` to zero and scales the rest up; without a key it is the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def project(cfg: LlamaConfig, w: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """`x` times a matrix of a layer, plus the adapter's output (LoRA, arXiv 2106.09685, eq. 3): x W + x A B alpha / r.

    The adapter is applied to `x` and not to the matrix, so that no gradient has the size of the matrix.
    """
    y = jnp.tensordot(x, w[name], MATRICES[name])
    if f"{name}_a" in w:
        down = jnp.tensordot(x, w[f"{name}_a"], MATRICES[name])
        y = y + jnp.tensordot(down, w[f"{name}_b"], 1) * (cfg.lora_alpha / cfg.lora_rank)
    return y


def project_qkv(
    cfg: LlamaConfig, w: dict[str, jax.Array], name: str, y_BTD: jax.Array, rope: Sequence[jax.Array]
) -> jax.Array:
    """The queries ("q"), keys ("k") or values ("v") of a layer's normalized input, [B, T, N or K, H]."""
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
    """One layer. Returns the residual stream [B, T, D] and this layer's keys [B, K, H, T] and values [B, K, T, H].

    With `last_index_B`, keys and values are computed for all tokens, but the stream only for the tokens at these
    indices, [B, 1, D].
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
        past = [s._replace(mask=gather_last(s.mask, last_index_B)) for s in past]
        o_BTNH = attend(project_qkv(cfg, w, "q", y, rope), [*past, KVSegment(*to_cache_layout(k, v), mask)])
    x_BTD = x_BTD + dropout(project(cfg, w, "wo", o_BTNH), cfg.dropout, attn_key)

    y = rms_norm(x_BTD, w["mlp_norm"], cfg.norm_eps)
    gate, up = (project(cfg, w, name, y) for name in ("w_gate", "w_up"))
    if y.shape[1] == 1:  # small enough for float32; in bfloat16 the CPU backend decides where it rounds in between
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
    y = (jax.nn.silu(gate) * up).astype(x_BTD.dtype)
    y = constrain(y, BATCH_AXES, None, "tensor")
    return x_BTD + dropout(project(cfg, w, "w_down", y), cfg.dropout, mlp_key), to_cache_layout(k, v)


def gather_last(x: jax.Array, last_index_B: jax.Array) -> jax.Array:
    """The entries at `last_index_B` of rows [B or fewer, T or 1, ...], as [B, 1, ...].

    With fewer than B rows, each row serves consecutive batch rows. With T = 1, the entry is the same for all tokens,
    and `x` is returned unchanged.
    """
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
        for name, specs in param_specs(self.cfg).items():
            # `layers` is a dictionary of stacked weights, the others are single weights.
            setattr(self, name, self.param(name, init_params, specs, dtype))

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits [B, T, V], float32. Keyword inputs as in `hidden_states`."""
        return self.unembed(self.hidden_states(tokens_BT, **inputs)[0])

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]."""
        head_DV = self.lm_head().astype(x_BTD.dtype)
        return jnp.matmul(x_BTD, head_DV, preferred_element_type=jnp.float32)

    def lm_head(self) -> jax.Array:
        """The output matrix [D, V], from hidden states to logits."""
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
        """Final hidden states, and the keys and values of the input tokens.

        Args:
          tokens_BT: token ids, int32.
          positions_BT: rotary positions; by default 0, 1, 2, ...
          segment_ids_BT: an input token attends only to input tokens with the same id; by default to all of its row.
          past: earlier segments, each a `KVSegment` with k and v as this method returns them. The number of their rows
            divides B; one row may serve several consecutive queries. Layers with a window need its `positions`.
          key: dropout key; None disables dropout.
          layers: the result of `unstack_layers`, for callers that call this method in a loop.
          last_index_B: the index of the one token of each row whose hidden state is returned; by default all tokens.
            Each row must hold a single text. Where layers are not scanned, dropout of the last layer is drawn for
            these tokens alone.

        Returns:
          Hidden states [B, T, D], or [B, 1, D] at `last_index_B`; and keys [B, K, H, T] and values [B, K, T, H] of
          every layer. Where layers are scanned, the layers are stacked in a first axis L. Else it is a tuple over
          layers, because a slice of a stacked cache would be copied at every step.

        Raises:
          ValueError: both `last_index_B` and `segment_ids_BT` are given.
        """
        cfg = self.cfg
        if last_index_B is not None and segment_ids_BT is not None:
            raise ValueError(
                "last_index_B and segment_ids_BT are both given: pass last_index_B for rows of one text, or "
                "segment_ids_BT for packed rows"
            )
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        rope = rope_cos_sin(positions_BT, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        past = [in_window(segment, cfg.sliding_window, positions_BT) for segment in past]
        # Each device holds whole rows of the table before the lookup. If rows are split too, XLA reshards indirectly.
        table_VD = constrain(self.embed.astype(cfg.dtype), "tensor", None)
        x_BTD = constrain(table_VD[tokens_BT], BATCH_AXES, None, None)
        if key is not None:
            x_BTD = dropout(x_BTD, cfg.dropout, jax.random.fold_in(key, cfg.num_layers))

        def layer(x: jax.Array, inputs: Any, last_index_B: jax.Array | None = None) -> tuple[jax.Array, Any]:
            index, w, kv = inputs
            segments = [KVSegment(k, v, s.mask) for (k, v), s in zip(kv, past, strict=True)]
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return block(cfg, w, x, rope, segment_ids_BT, segments, layer_key, last_index_B)

        last_layer = partial(layer, last_index_B=last_index_B)
        if (policy := REMAT_POLICIES[cfg.remat]) is not None:
            layer, last_layer = (jax.checkpoint(f, policy=policy) for f in (layer, last_layer))
        if cfg.scan_layers:
            # The weights are scanned inputs; the module's own parameters are broadcast, unused.
            scanned = nn.scan(
                lambda _, x, inputs: layer(x, inputs),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=cfg.num_layers,
            )
            past_kv = [(s.k, s.v) for s in past]
            x_BTD, kv = scanned(self, x_BTD, (jnp.arange(cfg.num_layers), self.layers, past_kv))
            # All layers are one program, so the last layer is computed for all tokens.
            x_BTD = x_BTD if last_index_B is None else gather_last(x_BTD, last_index_B)
        else:
            kvs = []
            for i, w in enumerate(layers or unstack_layers(cfg, self.layers)):
                apply_layer = last_layer if i + 1 == cfg.num_layers else layer
                x_BTD, kv = apply_layer(x_BTD, (i, w, [(s.k[i], s.v[i]) for s in past]))
                kvs.append(kv)
            kv = tuple(zip(*kvs, strict=True))
        return rms_norm(x_BTD, self.norm, cfg.norm_eps), kv


def unstack_layers(cfg: LlamaConfig, stacked: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """Each layer's own weights. Inside a loop, XLA copies slices of the stack, all weights in total, in every
    iteration. Unstacked before the loop, they are copied once."""
    parts = {name: jax.lax.split(weight, [1] * cfg.num_layers) for name, weight in stacked.items()}
    return [{name: part[i][0] for name, part in parts.items()} for i in range(cfg.num_layers)]


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
