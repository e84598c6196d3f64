"""Attention of packed rows with a kernel that knows lengths, not segments: each text gets a row of its own.

    row      a b c d e f . .     texts of 2, 3 and 1 tokens, then padding
    slots    0 1 . .             rows of 4 and of 2 slots, in this case; -1 in place of the dots
             2 3 4 .
             5 .
    places   0 1 4 5 6 8 . .     where each token is among all slots above

Only queries, keys and values are moved so, within a layer. All else is computed for the packed rows, which have next to
no padding. Array suffixes: the table in decoder.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class PackedTexts(NamedTuple):
    """The texts of packed rows.

    ids_BT: the number of a slot's text; 0: padding.
    slots: for each length L of rows of their own, [B, count, L]: the slots of a text in its packed row; -1: padding.
    places_BT: where a slot of a packed row is among all of `slots`, flattened, one after the other; -1: padding.
    """

    ids_BT: jax.Array
    slots: tuple[jax.Array, ...]
    places_BT: jax.Array


def attend_by_text(
    attend: Callable[..., jax.Array], q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, texts: PackedTexts
) -> jax.Array:
    """Attention of each text to itself, [B, T, N, H]; 0 for padding.

    Args:
      attend: from q [R, L, N, H], k and v [R, L, K, H] and lengths int32 [R] of one text a row, at least 1, to
        attention [R, L, N, H]. Rows without a text have zeros and length 1.
      q_BTNH, k_BTKH, v_BTKH: of packed rows.
      texts: where their texts are.
    """
    parts = []
    for q, k, v, slots in zip(*(unpack(x, texts) for x in (q_BTNH, k_BTKH, v_BTKH)), texts.slots, strict=True):
        lengths = jnp.maximum(jnp.sum(slots >= 0, axis=-1, dtype=jnp.int32), 1).reshape(-1)
        parts.append(attend(q, k, v, lengths))
    return repack(tuple(parts), texts)


# Each of the two is the transpose of the other, as every token is in one place. So gradients are gathered as well; the
# scatter that JAX would derive adds with atomic operations on a GPU, slowly and in no fixed order.
@jax.custom_vjp
def unpack(x_BTNH: jax.Array, texts: PackedTexts) -> tuple[jax.Array, ...]:
    """Rows of one text each, [B * count, L, N, H] for each of `texts.slots`; 0 for padding."""
    rows = []
    for slots in texts.slots:
        B, count, length = slots.shape
        taken = _take(x_BTNH, slots.reshape(B, count * length))
        rows.append(taken.reshape(B * count, length, *x_BTNH.shape[2:]))
    return tuple(rows)


@jax.custom_vjp
def repack(rows: tuple[jax.Array, ...], texts: PackedTexts) -> jax.Array:
    """Packed rows [B, T, N, H] of what `unpack` returns; 0 for padding."""
    B = texts.places_BT.shape[0]
    flat = [x.reshape(B, -1, *x.shape[2:]) for x in rows]
    return _take(jnp.concatenate(flat, axis=1), texts.places_BT)


unpack.defvjp(lambda x, texts: (unpack(x, texts), texts), lambda texts, grads: (repack(grads, texts), None))
repack.defvjp(lambda rows, texts: (repack(rows, texts), texts), lambda texts, grad: (unpack(grad, texts), None))


def _take(x_BSNH: jax.Array, indices_BR: jax.Array) -> jax.Array:
    indices = indices_BR[:, :, None, None]
    taken = jnp.take_along_axis(x_BSNH, jnp.maximum(indices, 0), axis=1, mode="clip")
    return jnp.where(indices >= 0, taken, 0)
