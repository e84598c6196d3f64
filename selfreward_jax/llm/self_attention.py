"""Causal attention of a text to itself and to earlier segments: one contract, an implementation for each platform.

Array suffixes: the table in decoder.py.

name       runs on              stores scores [B, N, T, T]   note
reference  anything             yes                          attention.attend; the others are tested against it
xla        anything             yes                          jax.nn.dot_product_attention
cudnn      NVIDIA, half         no                           cudnn_attention.py; packed rows come as PackedTexts, or
           precision                                         have a bias [B, 1, T, T]
splash     TPU; elsewhere       no                           splash_attention.py
           interpreted, slowly
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from selfreward_jax.llm import cudnn_attention, splash_attention
from selfreward_jax.llm.attention import KVSegment, attend, causal_mask, packed_mask, window_mask
from selfreward_jax.llm.packed_texts import PackedTexts
from selfreward_jax.parallel.hardware import Hardware

IMPLEMENTATIONS = ("reference", "xla", "cudnn", "splash")
Segments = jax.Array | PackedTexts | None

MAX_CUDNN_HEAD = 128  # head sizes up to this have cuDNN kernels for both passes on every GPU since Ampere
# Ampere. A T4 has neither cuDNN's attention nor the products of bfloat16 that "xla" asks for; AMD's have no cuDNN.
CUDNN_CAPABILITY = (8, 0)


def resolve_impl(impl: str, hardware: Hardware, dtype: str, head_dim: int = 128) -> str:
    """The implementation for `impl` ("auto" or a name) on a kind of device."""
    if impl != "auto":
        return impl
    if hardware.platform == "tpu":
        return "splash" if dtype != "float32" else "reference"  # the kernel multiplies float32 numbers in bfloat16
    if hardware.platform == "gpu" and hardware.capability >= CUDNN_CAPABILITY:
        return "cudnn" if head_dim <= MAX_CUDNN_HEAD and dtype in ("bfloat16", "float16") else "xla"
    return "reference"


def attention(
    impl: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: Segments,
    window: int | None,
    past: Sequence[KVSegment],
    scale: float | None = None,
    softcap: float | None = None,
    kv_layout: str = "columns",
) -> jax.Array:
    """softmax(q k^T scale) v, [B, T, N, H]. A token attends to `past`, to itself and to earlier tokens.

    Args:
      impl: one of IMPLEMENTATIONS.
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values, after rotary embedding.
      segment_ids_BT: a token attends only to tokens with the same id; None: each row is one text. With `PackedTexts`
        padding has no particular result.
      window: a token attends to this many tokens, itself included; None: no limit.
      past: earlier segments, masked as `in_window` does; for "cudnn" the slots of a prefix that are filled come first.
      scale: of the scores; 1 / sqrt(H) if not given.
      softcap: of the scores, as in `attend`.
      kv_layout: of the keys of `past`, as in `attend`.
    """
    if not past:
        return self_attention(impl, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, window, scale, softcap)
    # A single token needs no blocks. And keys that many rows share must not be copied for each of them.
    use_blocks = len(past) == 1 and q_BTNH.shape[1] > 1 and q_BTNH.shape[0] <= 2 * past[0].k.shape[0]
    if use_blocks and segment_ids_BT is None and window is None:
        if impl == "splash":
            return splash_attention.attend_with_prefix(q_BTNH, k_BTKH, v_BTKH, past[0], scale, softcap)
        if takes_texts(impl, softcap):
            return cudnn_attention.attend_with_prefix(q_BTNH, k_BTKH, v_BTKH, past[0], scale)
    mask = self_mask(q_BTNH.shape[1], segment_ids_BT, window)
    own = KVSegment(*to_cache_layout(k_BTKH, v_BTKH), mask)
    return attend(q_BTNH, [*past, own], scale, softcap, kv_layout)


def supports_prefix(impl: str, window: int | None) -> bool:
    """Whether an implementation handles a text with a prefix segment as well as a text alone.

    Splash counts slots, not positions, and there may be padding between slots. So it supports no window with a prefix.
    For cuDNN it is not written: the mask of a prefix has its window already, and says no longer how long the prefix is.
    """
    return impl in ("reference", "xla") or window is None


def to_cache_layout(k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B, K, H, T] and values [B, K, T, H].

    Keys are transposed because decoding reads them along T many times, which a CPU does faster so.
    """
    return k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)


def self_attention(
    impl: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: Segments,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """The same as `attention`, without earlier segments. Only "reference" and "splash" can cap scores, so "reference"
    takes the place of the others."""
    if takes_texts(impl, softcap) and isinstance(segment_ids_BT, PackedTexts):
        return cudnn_attention.attend_texts(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, window, scale)
    segment_ids_BT = ids_of(segment_ids_BT)
    if impl == "splash":
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
        rule = splash_attention.ScoreRule(window, scale, softcap)
        return splash_attention.attend_segments(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, segment_ids_BT, rule)
    mask = self_mask(q_BTNH.shape[1], segment_ids_BT, window)
    if impl == "reference" or softcap is not None:
        return attend(q_BTNH, [KVSegment(*to_cache_layout(k_BTKH, v_BTKH), mask)], scale, softcap)
    if impl == "cudnn" and segment_ids_BT is None:
        return cudnn_attention.attend_rows(q_BTNH, k_BTKH, v_BTKH, None, window, scale)
    with jax.default_matmul_precision("highest" if q_BTNH.dtype == jnp.float32 else None):
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask[:, None], implementation=impl, scale=scale
        )


def takes_texts(impl: str, softcap: float | None) -> bool:
    """Whether packed rows should come as `PackedTexts`: the kernel knows no segments."""
    return impl == "cudnn" and softcap is None


def ids_of(segments: Segments) -> jax.Array | None:
    """The segment ids alone."""
    return segments.ids_BT if isinstance(segments, PackedTexts) else segments


def self_mask(length: int, segments: Segments, window: int | None) -> jax.Array:
    """[B or 1, T, T], True where query t may attend to key s."""
    segment_ids_BT = ids_of(segments)
    mask = causal_mask(length)[None] if segment_ids_BT is None else packed_mask(segment_ids_BT)
    if window is not None:
        # Positions of one text are consecutive, so slots can replace positions.
        slots = jnp.arange(length)[None]
        mask &= window_mask(window, slots, slots)
    return mask
