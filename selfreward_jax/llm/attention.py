"""Attention over segments of keys and values, with grouped query heads. Array suffixes: the table in decoder.py."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selfreward_jax.llm.matmul import exact
from selfreward_jax.parallel.sharding import devices_in_use


class KVSegment(NamedTuple):
    """Keys and values that some rows attend to.

    k [P, K, H, S], v [P, K, S, H], mask [B, P or 1, T or 1, S], True where a query may attend. With B = P * G
    query rows, row p serves the G consecutive queries p * G ... p * G + G - 1: both sides of a pair share the
    prompt's keys without a copy. With P = 1 all rows share one prefix.

    positions [B, P or 1, S], of the keys; only layers with a window need them.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array
    positions: jax.Array | None = None


MAX_SCORES = 1 << 26  # float32 scores on one device; longer texts are processed in parts, one after the other


def attend(
    q_BTNH: jax.Array,
    segments: Sequence[KVSegment],
    scale: float | None = None,
    softcap: float | None = None,
    kv_layout: str = "columns",
) -> jax.Array:
    """softmax(q k^T scale) v over all segments together, [B, T, N, H].

    `scale` is 1 / sqrt(H) if not given. With `softcap`, scores are capped before the softmax (`soft_cap`). `kv_layout`
    is that of kv_cache.py; it changes no result.
    The softmax is taken in float32 with one maximum and one denominator for all segments, which are never
    concatenated. Every query must be allowed at least one key.
    """
    T = q_BTNH.shape[1]
    num_scores = math.prod(q_BTNH.shape[:3]) * sum(s.k.shape[-1] for s in segments)
    num_parts = -(-num_scores // (MAX_SCORES * devices_in_use()))
    if num_parts == 1 or T == 1:
        return _attend(q_BTNH, segments, scale, softcap, kv_layout)
    length = -(-T // num_parts)
    segments = [s._replace(mask=jnp.broadcast_to(s.mask, (s.mask.shape[0], T, s.mask.shape[-1]))) for s in segments]

    def attend_part(start: jax.Array) -> jax.Array:
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)  # noqa: E731
        parts = [s._replace(mask=part(s.mask)) for s in segments]
        return _attend(part(q_BTNH), parts, scale, softcap, kv_layout)

    # The last part starts early enough to have the full length; it repeats some queries.
    starts = jnp.minimum(jnp.arange(num_parts) * length, T - length)
    out = jax.lax.map(jax.checkpoint(attend_part), starts)
    return out[jnp.arange(T) // length, :, jnp.arange(T) - starts[jnp.arange(T) // length]].swapaxes(0, 1)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap): about x near 0, and never beyond the cap (Gemma 2, arXiv 2408.00118)."""
    return cap * jnp.tanh(x / cap)


def _attend(
    q_BTNH: jax.Array, segments: Sequence[KVSegment], scale: float | None, softcap: float | None, kv_layout: str
) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    scores = []
    for k, _, mask, _ in segments:
        P, K, _, S = k.shape
        # [P, K, G*T*M, H]: all queries that read the same keys in one matrix product.
        q = q_BTNH.reshape(P, B // P * T, K, N // K, H).transpose(0, 2, 1, 3, 4)
        q, product = q.reshape(P, K, -1, H), {"precision": exact(k.dtype), "preferred_element_type": jnp.float32}
        if kv_layout == "tokens":  # the same, said so that XLA for GPU reads keys as they lie, and copies no cache
            s = jnp.einsum("pkth,pksh->pkts", q, k.swapaxes(-1, -2), **product)
        else:
            s = jnp.matmul(q, k, **product)
        s = s / math.sqrt(H) if scale is None else s * scale
        s = s if softcap is None else soft_cap(s, softcap)
        s = s.reshape(P, K, B // P, T, N // K, S)
        grouped_mask = mask.reshape(P, -1, *mask.shape[1:]) if mask.shape[0] == B else mask[:, None]
        scores.append(jnp.where(grouped_mask[:, None, :, :, None, :], s, -jnp.inf))

    def to_BTN(x_PKGTM: jax.Array) -> jax.Array:
        return x_PKGTM.transpose(0, 2, 3, 1, 4).reshape(B, T, N)

    def to_PKGTM(x_BTN: jax.Array, like: jax.Array) -> jax.Array:
        P, K, G, _, M, _ = like.shape
        return x_BTN.reshape(P, G, T, K, M).transpose(0, 3, 1, 2, 4)

    max_BTN = to_BTN(scores[0].max(-1))
    for s in scores[1:]:
        max_BTN = jnp.maximum(max_BTN, to_BTN(s.max(-1)))
    max_BTN = jax.lax.stop_gradient(max_BTN)
    denominator, out = 0.0, 0.0
    for s, (_, v, *_) in zip(scores, segments, strict=True):
        P, K, G, _, M, S = s.shape
        e = jnp.exp(s - to_PKGTM(max_BTN, s)[..., None])
        denominator = denominator + to_BTN(e.sum(-1))
        e = e.astype(v.dtype).reshape(P, K, G * T * M, S)
        o = jnp.matmul(e, v, precision=exact(v.dtype), preferred_element_type=jnp.float32)
        out = out + o.reshape(P, K, G, T, M, H).transpose(0, 2, 3, 1, 4, 5).reshape(B, T, N, H)
    return (out / denominator[..., None]).astype(q_BTNH.dtype)


def causal_mask(length: int) -> jax.Array:
    """[T, T], True where s <= t.

    length 3:   s 0 1 2
            t 0   x . .
            t 1   x x .
            t 2   x x x
    """
    return jnp.tril(jnp.ones((length, length), bool))


def causal_mask_row(last_index_B: jax.Array, length: int, window: int | None) -> jax.Array:
    """[B, 1, S], the row of each text's causal mask that belongs to its token at `last_index_B`."""
    keys_1S, query_B1 = jnp.arange(length)[None], last_index_B[:, None]
    causal = (keys_1S <= query_B1)[:, None]
    return causal if window is None else causal & window_mask(window, query_B1, keys_1S)


def packed_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """[B, T, T] for rows that hold several packed texts: causal, and only within the same text.

    segment ids 1 1 2 0:   s 0 1 2 3      0 marks padding. Padding attends to padding,
                       t 0   x . . .      so that no softmax row is empty.
                       t 1   x x . .
                       t 2   . . x .
                       t 3   . . . x
    """
    same = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same & causal_mask(segment_ids_BT.shape[1])


def in_window(segment: KVSegment, window: int | None, positions_BT: jax.Array) -> KVSegment:
    """The segment as queries at these positions see it in a layer with a window. Its mask is then [B, T, S]."""
    if window is None:
        return segment
    B = positions_BT.shape[0]
    per_row = lambda x: x if x.shape[0] == 1 else jnp.repeat(x, B // x.shape[0], axis=0)  # noqa: E731
    mask = per_row(segment.mask) & window_mask(window, positions_BT, per_row(segment.positions))
    return segment._replace(mask=mask)


def window_mask(window: int, queries_BT: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """[B, T, S], True where the key's position is at most window - 1 before the query's.

    window 2, positions 0 1 2:   s 0 1 2      (not causal: combine it with a causal mask)
                             t 0   x x x
                             t 1   x x x
                             t 2   . x x
    """
    return keys_BS[:, None, :] > queries_BT[:, :, None] - window
