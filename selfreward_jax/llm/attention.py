"""Attention over segments of keys and values, with grouped query heads. Letters as in llama.py."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selfreward_jax.parallel.sharding import devices_in_use


class KVSegment(NamedTuple):
    """Keys and values that some rows look at.

    k [P, K, H, S], v [P, K, S, H], mask [B, P or 1, T or 1, S] True where a query may look. With B = P * G
    query rows, row p serves the G consecutive queries p * G ... p * G + G - 1: the samples of one prompt
    share the prompt's keys without a copy, and with P = 1 all rows share one beginning.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array


MAX_SCORES = 1 << 26  # float32, on a device; longer texts look at the segments a part after the other


def attend(q_BTNH: jax.Array, segments: Sequence[KVSegment]) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over all segments together, [B, T, N, H].

    The softmax is taken in float32 with one maximum and one denominator for all segments, which are never
    concatenated. Every query must be allowed at least one key.
    """
    T = q_BTNH.shape[1]
    scores = math.prod(q_BTNH.shape[:3]) * sum(s.k.shape[-1] for s in segments)
    parts = -(-scores // (MAX_SCORES * devices_in_use()))
    if parts == 1 or T == 1:
        return _attend(q_BTNH, segments)
    length = -(-T // parts)
    segments = [s._replace(mask=jnp.broadcast_to(s.mask, (s.mask.shape[0], T, s.mask.shape[-1]))) for s in segments]

    def part(start: jax.Array) -> jax.Array:  # the last one begins earlier, and does some queries again
        some = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)  # noqa: E731
        return _attend(some(q_BTNH), [s._replace(mask=some(s.mask)) for s in segments])

    starts = jnp.minimum(jnp.arange(parts) * length, T - length)
    out = jax.lax.map(jax.checkpoint(part), starts)
    return out[jnp.arange(T) // length, :, jnp.arange(T) - starts[jnp.arange(T) // length]].swapaxes(0, 1)


def _attend(q_BTNH: jax.Array, segments: Sequence[KVSegment]) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    scores = []
    for k, _, mask in segments:
        P, K, _, S = k.shape
        # [P, K, G*T*R, H]: all queries that read the same keys in one matrix product.
        q = q_BTNH.reshape(P, B // P * T, K, N // K, H).transpose(0, 2, 1, 3, 4)
        s = jnp.matmul(q.reshape(P, K, -1, H), k, preferred_element_type=jnp.float32) / math.sqrt(H)
        s = s.reshape(P, K, B // P, T, N // K, S)
        by_row = mask.reshape(P, -1, *mask.shape[1:]) if mask.shape[0] == B else mask[:, None]
        scores.append(jnp.where(by_row[:, None, :, :, None, :], s, -jnp.inf))

    def by_query(x: jax.Array) -> jax.Array:  # [P, K, G, T, R] -> [B, T, N]
        return x.transpose(0, 2, 3, 1, 4).reshape(B, T, N)

    def by_segment(x_BTN: jax.Array, like: jax.Array) -> jax.Array:  # and back
        P, K, G, _, R, _ = like.shape
        return x_BTN.reshape(P, G, T, K, R).transpose(0, 3, 1, 2, 4)

    top = by_query(scores[0].max(-1))
    for s in scores[1:]:
        top = jnp.maximum(top, by_query(s.max(-1)))
    top = jax.lax.stop_gradient(top)
    total, out = 0.0, 0.0
    for s, (_, v, _) in zip(scores, segments, strict=True):
        P, K, G, _, R, S = s.shape
        e = jnp.exp(s - by_segment(top, s)[..., None])
        total = total + by_query(e.sum(-1))
        o = jnp.matmul(e.astype(v.dtype).reshape(P, K, G * T * R, S), v, preferred_element_type=jnp.float32)
        out = out + o.reshape(P, K, G, T, R, H).transpose(0, 2, 3, 1, 4, 5).reshape(B, T, N, H)
    return (out / total[..., None]).astype(q_BTNH.dtype)


def causal_mask(length: int) -> jax.Array:
    """[T, T], True where s <= t.

    length 3:   s 0 1 2
            t 0   x . .
            t 1   x x .
            t 2   x x x
    """
    return jnp.tril(jnp.ones((length, length), bool))


def causal_mask_row(last_index_B: jax.Array, length: int, window: int | None) -> jax.Array:
    """[B, 1, S], the row of each text's causal mask that belongs to its token at `ends_B`."""
    slots_1S, ends_B1 = jnp.arange(length)[None], last_index_B[:, None]
    seen = (slots_1S <= ends_B1)[:, None]
    return seen if window is None else seen & window_mask(window, ends_B1, slots_1S)


def packed_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """[B, T, T] for rows that hold several texts side by side: causal, and only within one's own text.

    segments 1 1 2 0:   s 0 1 2 3      0 marks padding, which looks only at itself and its like,
                    t 0   x . . .      so that no softmax row is empty.
                    t 1   x x . .
                    t 2   . . x .
                    t 3   . . . x
    """
    same = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same & causal_mask(segment_ids_BT.shape[1])


def window_mask(window: int, queries_BT: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """[B, T, S], True where the key's position is at most window - 1 before the query's.

    window 2, positions 0 1 2:   s 0 1 2      (that a query does not look ahead is another mask's business)
                             t 0   x x x
                             t 1   x x x
                             t 2   . x x
    """
    return keys_BS[:, None, :] > queries_BT[:, :, None] - window
