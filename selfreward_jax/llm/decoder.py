"""The decoder as one Linen module: weights declared once, stacked over layers, applied by pure functions.

The forward pass and the cached forward pass are the same code. A query attends to a list of key/value segments
(`attention.KVSegment`): the input tokens, and before them any segments that the caller stored from earlier calls. The
model never writes a cache. It returns the keys and values of the input tokens, and the caller stores them.

Letters for array axes, the only table of the repository. They are used in suffixes of array names (`x_BTD`):

    B batch           N query heads              V vocabulary
    T query length    K key/value heads          L layers
    S key length      H head size                P rows of keys, each read by G queries: B = P * G
    D model           M = N / K query heads      R prompts in one prefill batch (sampling/)
    F feed-forward      for each key/value head  I samples inserted together, W new tokens of one (sampling/)
    n blocks of C tokens of the vocabulary (sampling/top_p.py)

A digit is the length of an axis: `x_B1` is [B, 1].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfreward_jax.llm import experts
from selfreward_jax.llm.attention import KVSegment, attend, causal_mask_row, in_window, soft_cap
from selfreward_jax.llm.matmul import exact, matmul
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import MATRICES, init_params, param_specs
from selfreward_jax.llm.rotary import apply_rope, rope_cos_sin
from selfreward_jax.llm.self_attention import Segments, attention, to_cache_layout
from selfreward_jax.parallel.sharding import BATCH_AXES, constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

# What a layer saves for the backward pass: all values; the results of its matrix products; only its input.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rms_norm(cfg: DecoderConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm over the axes of `scale`, the last ones of `x`, in float32: squares of bfloat16 lose the small
    components, and 1 + scale loses the small scales."""
    x32, axes = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + cfg.norm_eps)
    scale = scale.astype(jnp.float32)
    return (normed * (scale + cfg.norm_offset if cfg.norm_offset else scale)).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets a fraction `rate` of `x` to zero and scales the rest up; without a key it is the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def project(cfg: DecoderConfig, w: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """`x` times a matrix of a layer, plus the adapter's output (LoRA, arXiv 2106.09685, eq. 3): x W + x A B alpha / r.

    The adapter is applied to `x` and not to the matrix, so that no gradient has the size of the matrix.
    """
    y = matmul(x, w[name], MATRICES[name])
    if f"{name}_a" in w:
        down = matmul(x, w[f"{name}_a"], MATRICES[name])
        y = y + matmul(down, w[f"{name}_b"], 1) * (cfg.lora_alpha / cfg.lora_rank)
    return y


def project_qkv(
    cfg: DecoderConfig, w: dict[str, jax.Array], name: str, y_BTD: jax.Array, rope: Sequence[jax.Array]
) -> jax.Array:
    """The queries ("q"), keys ("k") or values ("v") of a layer's normalized input, [B, T, N or K, H]."""
    x = project(cfg, w, f"w{name}", y_BTD)
    if cfg.attention_bias:
        x = x + w[f"b{name}"]
    if cfg.qk_norm and name != "v":
        x = rms_norm(cfg, x, w[f"{name}_norm"])
    return constrain(x if name == "v" else apply_rope(x, *rope), BATCH_AXES, None, "tensor", None)


class LayerView(NamedTuple):
    """What the layers of one kind see of a text: rotary angles, the window, and the masks of earlier segments."""

    rope: tuple[jax.Array, jax.Array]  # cosines and sines [B, T, 1, rotary_dim / 2]
    window: int | None
    masks: list[jax.Array]

    def segments(self, past_kv: Sequence[tuple[jax.Array, jax.Array]]) -> list[KVSegment]:
        """Earlier keys and values of a layer, as queries of this kind see them."""
        return [KVSegment(k, v, mask) for (k, v), mask in zip(past_kv, self.masks, strict=True)]


def layer_views(cfg: DecoderConfig, positions_BT: jax.Array, past: Sequence[KVSegment]) -> list[LayerView]:
    """A view for each kind of layer."""
    head_dim = cfg.rotary_dim or cfg.head_dim
    return [
        LayerView(
            rope_cos_sin(positions_BT, head_dim, kind.rope_theta, kind.rope_scaling),
            kind.window,
            [in_window(segment, kind.window, positions_BT).mask for segment in past],
        )
        for kind in cfg.kinds
    ]


def of_kind(kind: Any, views: Sequence[LayerView], function: Callable[[LayerView], Any]) -> Any:
    """`function` of the view of a layer's kind. Where layers are scanned, the device chooses it."""
    if len(views) == 1 or isinstance(kind, int):
        return function(views[0 if len(views) == 1 else kind])
    return jax.lax.switch(kind, [partial(function, view) for view in views])


def block(
    cfg: DecoderConfig,
    w: dict[str, jax.Array],
    x_BTD: jax.Array,
    view: Callable[[Callable[[LayerView], Any]], Any],
    segment_ids_BT: Segments,
    past_kv: Sequence[tuple[jax.Array, jax.Array]],
    key: jax.Array | None,
    last_index_B: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer. Returns the residual stream [B, T, D] and this layer's keys [B, K, H, T] and values [B, K, T, H].

    `view` is `of_kind` of this layer. With `last_index_B`, keys and values are computed for all tokens, but the stream
    only for the tokens at these indices, [B, 1, D].
    """
    w = {name: value.astype(x_BTD.dtype) for name, value in w.items()}
    x_BTD = constrain(x_BTD, BATCH_AXES, None, None)
    attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
    scores = {"scale": cfg.attention_scale, "softcap": cfg.attention_softcap, "kv_layout": cfg.kv_layout}

    y = rms_norm(cfg, x_BTD, w["attn_norm"]) if cfg.pre_norm else x_BTD
    rope = view(lambda seen: seen.rope)
    if last_index_B is None:
        q, k, v = (project_qkv(cfg, w, name, y, rope) for name in "qkv")
        o_BTNH = view(
            lambda seen: attention(
                cfg.attention, q, k, v, segment_ids_BT, seen.window, seen.segments(past_kv), **scores
            )
        )
    else:
        k, v = (project_qkv(cfg, w, name, y, rope) for name in "kv")
        T = y.shape[1]
        x_BTD, y, *rope = (gather_last(x, last_index_B) for x in (x_BTD, y, *rope))
        q, kv = project_qkv(cfg, w, "q", y, rope), to_cache_layout(k, v)

        def attend_last(seen: LayerView) -> jax.Array:
            past = [s._replace(mask=gather_last(s.mask, last_index_B)) for s in seen.segments(past_kv)]
            return attend(q, [*past, KVSegment(*kv, causal_mask_row(last_index_B, T, seen.window))], **scores)

        o_BTNH = view(attend_last)
    x_BTD = _add(cfg, w, x_BTD, "attn", project(cfg, w, "wo", o_BTNH), attn_key)

    y = rms_norm(cfg, x_BTD, w["mlp_norm"]) if cfg.pre_norm else x_BTD
    y = experts.mixture(cfg, w, y, ACTIVATIONS[cfg.activation]) if cfg.num_experts else _mlp(cfg, w, y)
    return _add(cfg, w, x_BTD, "mlp", y, mlp_key), to_cache_layout(k, v)


def _mlp(cfg: DecoderConfig, w: dict[str, jax.Array], y_BTD: jax.Array) -> jax.Array:
    gate, up = (project(cfg, w, name, y_BTD) for name in ("w_gate", "w_up"))
    if y_BTD.shape[1] == 1:  # small enough for float32; in bfloat16 the CPU backend decides where it rounds in between
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
    y = (ACTIVATIONS[cfg.activation](gate) * up).astype(y_BTD.dtype)
    return project(cfg, w, "w_down", constrain(y, BATCH_AXES, None, "tensor"))


def _add(
    cfg: DecoderConfig, w: dict[str, jax.Array], x_BTD: jax.Array, part: str, y_BTD: jax.Array, key: jax.Array | None
) -> jax.Array:
    """The residual stream with the output of a part of the layer, "attn" or "mlp"."""
    if cfg.post_norm:
        y_BTD = rms_norm(cfg, y_BTD, w[f"{part}_post_norm"])
    y_BTD = dropout(y_BTD, cfg.dropout, key)
    return x_BTD + (y_BTD if cfg.residual_scale == 1.0 else y_BTD * jnp.asarray(cfg.residual_scale, y_BTD.dtype))


def gather_last(x: jax.Array, last_index_B: jax.Array) -> jax.Array:
    """The entries at `last_index_B` of rows [B or fewer, T or 1, ...], as [B, 1, ...].

    With fewer than B rows, each row serves consecutive batch rows. With T = 1, the entry is the same for all tokens,
    and `x` is returned unchanged.
    """
    if x.shape[1] == 1:
        return x
    x = jnp.repeat(x, last_index_B.shape[0] // x.shape[0], axis=0)
    return jnp.take_along_axis(x, last_index_B.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)


class Decoder(nn.Module):
    """`Decoder(cfg).apply({"params": p}, tokens_BT)` gives logits [B, T, V] in float32.

    With `has_layers` False it has no weights of layers. The caller then passes them to `hidden_states`.
    """

    cfg: DecoderConfig
    has_layers: bool = True

    def setup(self) -> None:
        """Declares the weights."""
        dtype = jnp.dtype(self.cfg.param_dtype)
        for name, specs in param_specs(self.cfg).items():
            # `layers` is a dictionary of stacked weights, the others are single weights.
            if self.has_layers or name != "layers":
                setattr(self, name, self.param(name, init_params, specs, dtype))

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits [B, T, V], float32. Keyword inputs as in `hidden_states`."""
        return self.unembed(self.hidden_states(tokens_BT, **inputs)[0])

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]."""
        return logits_of(self.cfg, x_BTD, self.lm_head().astype(x_BTD.dtype))

    def lm_head(self) -> jax.Array:
        """The output matrix [D, V], from hidden states to logits."""
        return self.embed.T if self.cfg.tie_embeddings else self.head

    def hidden_states(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: Segments = None,
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
            Or `PackedTexts`, which also say where texts are.
          past: earlier segments, each a `KVSegment` with k and v as this method returns them. The number of their rows
            divides B; one row may serve several consecutive queries. Layers with a window need its `positions`.
          key: dropout key; None disables dropout.
          layers: the weights of each layer, as `unstack_layers` returns them.
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
        views = layer_views(cfg, positions_BT, past)
        # Each device holds whole rows of the table before the lookup. If rows are split too, XLA reshards indirectly.
        table_VD = constrain(self.embed.astype(cfg.dtype), "tensor", None)
        x_BTD = constrain(table_VD[tokens_BT], BATCH_AXES, None, None)
        if cfg.embed_scale != 1.0:
            x_BTD *= jnp.asarray(cfg.embed_scale, x_BTD.dtype)
        if key is not None:
            x_BTD = dropout(x_BTD, cfg.dropout, jax.random.fold_in(key, cfg.num_layers))

        run = partial(self._run_layers, views=views, segment_ids_BT=segment_ids_BT, past=past, key=key)
        x_BTD, kv = run(x_BTD, layers=layers, last_index_B=last_index_B)
        return rms_norm(cfg, x_BTD, self.norm), kv

    def _run_layers(
        self,
        x_BTD: jax.Array,
        *,
        views: Sequence[LayerView],
        segment_ids_BT: Segments,
        past: Sequence[KVSegment],
        key: jax.Array | None,
        layers: Sequence[dict[str, jax.Array]] | None,
        last_index_B: jax.Array | None,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The residual stream after all layers, and their keys and values. Arguments as in `hidden_states`."""
        cfg = self.cfg

        def layer(x: jax.Array, inputs: Any, kind: Any, last_index_B: jax.Array | None = None) -> tuple[jax.Array, Any]:
            index, w, kv = inputs
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return block(cfg, w, x, partial(of_kind, kind, views), segment_ids_BT, kv, layer_key, last_index_B)

        policy = REMAT_POLICIES[cfg.remat]
        remat = partial(jax.checkpoint, policy=policy) if policy is not None else lambda f: f
        kinds = cfg.kind_indices()
        if cfg.scan_layers:
            # The weights are scanned inputs; the module's own parameters are broadcast, unused.
            apply_layer = remat(lambda x, inputs: layer(x, inputs[1:], inputs[0]))
            scanned = nn.scan(
                lambda _, x, inputs: apply_layer(x, inputs),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=cfg.num_layers,
            )
            past_kv = [(s.k, s.v) for s in past]
            x_BTD, kv = scanned(self, x_BTD, (jnp.array(kinds), jnp.arange(cfg.num_layers), self.layers, past_kv))
            # All layers are one program, so the last layer is computed for all tokens.
            x_BTD = x_BTD if last_index_B is None else gather_last(x_BTD, last_index_B)
        else:
            of_each = [remat(partial(layer, kind=kind)) for kind in range(len(views))]
            last_layer, kvs = remat(partial(layer, kind=kinds[-1], last_index_B=last_index_B)), []
            for i, w in enumerate(layers or unstack_layers(cfg, self.layers)):
                apply_layer = last_layer if i + 1 == cfg.num_layers else of_each[kinds[i]]
                x_BTD, kv = apply_layer(x_BTD, (i, w, [(s.k[i], s.v[i]) for s in past]))
                kvs.append(kv)
            kv = tuple(zip(*kvs, strict=True))
        return x_BTD, kv


def logits_of(cfg: DecoderConfig, x_BTD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """Float32 logits [..., V] of hidden states [..., D] and the output matrix, or some of its columns."""
    logits = jnp.matmul(x_BTD, head_DV, precision=exact(x_BTD.dtype), preferred_element_type=jnp.float32)
    logits = logits if cfg.logit_scale == 1.0 else logits * cfg.logit_scale
    return logits if cfg.logit_softcap is None else soft_cap(logits, cfg.logit_softcap)


def unstack_layers(cfg: DecoderConfig, stacked: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """Each layer's own weights. XLA copies the slices of a stack, all weights in total, in every call of a program, and
    in a loop in every iteration."""
    parts = {name: jax.lax.split(weight, [1] * cfg.num_layers) for name, weight in stacked.items()}
    return [{name: part[i][0] for name, part in parts.items()} for i in range(cfg.num_layers)]
