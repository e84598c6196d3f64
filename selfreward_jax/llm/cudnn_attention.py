"""cuDNN's flash attention, through JAX's public function: for rows of one text, for packed rows, and after a prefix.

It knows lengths of rows and windows, but no segments. Array suffixes: the table in decoder.py.
"""

from functools import partial

import jax
import jax.numpy as jnp

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.packed_texts import PackedTexts, attend_by_text
from selfreward_jax.parallel.sharding import on_own_rows


def attend_rows(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    lengths_B: jax.Array | None,
    window: int | None,
    scale: float | None,
) -> jax.Array:
    """cuDNN's causal attention of rows of one text, with padding at the end of a row if there are lengths.

    Without a mask array it skips the blocks that are fully masked, and with lengths those of padding.
    """
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        is_causal=True,
        implementation="cudnn",
        scale=scale,
        local_window_size=None if window is None else (window - 1, 0),
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
    )


def attend_texts(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    texts: PackedTexts,
    window: int | None,
    scale: float | None,
) -> jax.Array:
    """Causal attention of each text of packed rows to itself; 0 for padding."""
    attend_alone = partial(attend_by_text, partial(attend_rows, window=window, scale=scale))
    return on_own_rows(attend_alone, q_BTNH, k_BTKH, v_BTKH, texts)


def attend_with_prefix(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, past: KVSegment, scale: float | None
) -> jax.Array:
    """cuDNN's attention to a prefix segment and then to the text itself, as one text without padding in between.

    past of 3 slots, 2 filled; T 2:   row       a b . c d
                                      text      a b c d .    the queries of a and b are zero, and nobody reads them
    """
    B, T = q_BTNH.shape[:2]
    S = past.k.shape[-1]
    per_row = lambda x: jnp.repeat(x, B // x.shape[0], axis=0)  # noqa: E731
    k = jnp.concatenate([per_row(past.k.transpose(0, 3, 1, 2)), k_BTKH], axis=1)
    v = jnp.concatenate([per_row(past.v.transpose(0, 2, 1, 3)), v_BTKH], axis=1)
    q = jnp.pad(q_BTNH, ((0, 0), (S, 0), (0, 0), (0, 0)))
    lengths_B1 = per_row(jnp.sum(past.mask[:, 0], axis=-1, dtype=jnp.int32))[:, None]
    i = jnp.arange(S + T)
    slots = jnp.where(i < lengths_B1, i, jnp.where(i < lengths_B1 + T, i - lengths_B1 + S, -1))
    places = jnp.where(i >= S, i - S + lengths_B1, jnp.where(i < lengths_B1, i, -1))
    texts = PackedTexts(jnp.ones_like(places), (slots[:, None],), places)
    return attend_texts(q, k, v, texts, None, scale)[:, S:]
