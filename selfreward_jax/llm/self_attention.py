"""Causal attention of a text to itself and to earlier segments: one contract, an implementation for each platform.

Array suffixes: the table in decoder.py.

name       runs on              stores scores [B, N, T, T]   note
reference  anything             yes                          attention.attend; the others are tested against it
xla        anything             yes                          jax.nn.dot_product_attention
cudnn      NVIDIA, half         no                           the same function, cuDNN's flash attention; packed rows
           precision                                         come as PackedTexts, or have a bias [B, 1, T, T]
splash     TPU; elsewhere       no                           Pallas splash attention
           interpreted, slowly
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import KVSegment, attend, causal_mask, packed_mask, window_mask
from selfreward_jax.llm.packed_texts import PackedTexts, attend_by_text
from selfreward_jax.parallel.hardware import Hardware
from selfreward_jax.parallel.sharding import BATCH_AXES

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
            return _splash_with_prefix(q_BTNH, k_BTKH, v_BTKH, past[0], scale, softcap)
        if takes_texts(impl, softcap):
            return _cudnn_with_prefix(q_BTNH, k_BTKH, v_BTKH, past[0], scale)
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
        attend_alone = partial(attend_by_text, partial(_cudnn, window=window, scale=scale))
        return _on_own_rows(attend_alone, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    segment_ids_BT = ids_of(segment_ids_BT)
    if impl == "splash":
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
        rule = ScoreRule(window, scale, softcap)
        return _splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, segment_ids_BT, rule)
    mask = self_mask(q_BTNH.shape[1], segment_ids_BT, window)
    if impl == "reference" or softcap is not None:
        return attend(q_BTNH, [KVSegment(*to_cache_layout(k_BTKH, v_BTKH), mask)], scale, softcap)
    if impl == "cudnn" and segment_ids_BT is None:
        return _cudnn(q_BTNH, k_BTKH, v_BTKH, None, window, scale)
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


def _cudnn(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    lengths_B: jax.Array | None,
    window: int | None,
    scale: float | None,
) -> jax.Array:
    """cuDNN's causal attention of rows of one text. Without a mask array it skips the blocks that are fully masked."""
    limits: dict[str, Any] = {}
    if window is not None:
        limits["local_window_size"] = (window - 1, 0)
    elif lengths_B is not None:  # padding follows the text, so it changes nothing; its blocks are skipped as well
        limits |= {"query_seq_lengths": lengths_B, "key_value_seq_lengths": lengths_B}
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation="cudnn", scale=scale, **limits
    )


def _cudnn_with_prefix(
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
    row, text = jnp.arange(S + T), jnp.arange(S + T)
    slots = jnp.where(text < lengths_B1, text, jnp.where(text < lengths_B1 + T, text - lengths_B1 + S, -1))
    places = jnp.where(row >= S, row - S + lengths_B1, jnp.where(row < lengths_B1, row, -1))
    texts = PackedTexts(jnp.ones_like(places), (slots[:, None],), places)
    attend_alone = partial(attend_by_text, partial(_cudnn, window=None, scale=scale))
    return _on_own_rows(attend_alone, q, k, v, texts)[:, S:]


def self_mask(length: int, segments: Segments, window: int | None) -> jax.Array:
    """[B or 1, T, T], True where query t may attend to key s."""
    segment_ids_BT = ids_of(segments)
    mask = causal_mask(length)[None] if segment_ids_BT is None else packed_mask(segment_ids_BT)
    if window is not None:
        # Positions of one text are consecutive, so slots can replace positions.
        slots = jnp.arange(length)[None]
        mask &= window_mask(window, slots, slots)
    return mask


class ScoreRule(NamedTuple):
    """How splash attention computes scores; arguments as in `attention`."""

    window: int | None
    scale: float | None
    softcap: float | None


def _splash_with_prefix(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    past: KVSegment,
    scale: float | None,
    softcap: float | None,
) -> jax.Array:
    """Splash attention to a prefix segment and then to the text itself: one row of keys, with segment id 0 for padding.

    past of 3 slots, 2 filled; T 2:   keys      a b . c d     a query attends to slots up to its own, counted from
                                      ids       1 1 0 1 1     the end, that have the same id
                                      queries         c d
    """
    B, T = q_BTNH.shape[:2]
    S = past.k.shape[-1]

    def concat(past_PS: jax.Array, own_BT: jax.Array) -> jax.Array:
        pad_width = ((0, 0), (0, -S % BLOCK), *((0, 0),) * (past_PS.ndim - 2))
        past_BS = jnp.repeat(jnp.pad(past_PS, pad_width), B // past_PS.shape[0], axis=0)
        return jnp.concatenate([past_BS, own_BT], axis=1)

    k, v = concat(past.k.transpose(0, 3, 1, 2), k_BTKH), concat(past.v.transpose(0, 2, 1, 3), v_BTKH)
    ids_BT = jnp.ones((B, T), jnp.int32)
    key_ids = concat(past.mask[:, 0].astype(jnp.int32), ids_BT)
    return _splash(q_BTNH, k, v, ids_BT, key_ids, ScoreRule(None, scale, softcap))


def _splash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_ids_BT: jax.Array,
    key_ids_BS: jax.Array,
    rule: ScoreRule,
) -> jax.Array:
    """Splash attention.

    The queries belong to the last T keys. Each attends to keys with its own segment id, up to its own key.
    """
    # Off a TPU the kernel is interpreted. The platform is unknown while tracing: the lowering decides.
    attend_fn = partial(_by_platform, rule=rule)
    return _on_own_rows(attend_fn, q_BTNH, k_BSKH, v_BSKH, query_ids_BT, key_ids_BS)


def _on_own_rows(
    attend_fn: Callable[..., jax.Array], q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *of_rows: Any
) -> jax.Array:
    """`attend_fn` of each device's rows and heads; `of_rows` has an entry for each row."""
    if jax.sharding.get_abstract_mesh().empty:
        return attend_fn(q_BTNH, k_BSKH, v_BSKH, *of_rows)
    heads, rows = PartitionSpec(BATCH_AXES, None, "tensor"), PartitionSpec(BATCH_AXES)
    in_specs = (heads, heads, heads, *[rows] * len(of_rows))
    # Neither Pallas nor cuDNN declares how its results vary over the mesh, so the check must be disabled.
    on_each = jax.shard_map(attend_fn, in_specs=in_specs, out_specs=heads, check_vma=False)
    return on_each(q_BTNH, k_BSKH, v_BSKH, *of_rows)


def _by_platform(*arrays: jax.Array, rule: ScoreRule) -> jax.Array:
    compiled, interpreted = (partial(_kernel_on, rule=rule, interpret=i) for i in (False, True))
    return jax.lax.platform_dependent(*arrays, tpu=compiled, default=interpreted)


BLOCK = 128  # the kernel requires lengths and head sizes that are multiples of this
MAX_BLOCK = 512  # larger blocks of two passes do not fit the fast memory of every TPU


def _kernel_on(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_ids_BT: jax.Array,
    key_ids_BS: jax.Array,
    rule: ScoreRule,
    interpret: bool,
) -> jax.Array:
    """The kernel on one device's arrays, with S - T a multiple of BLOCK.

    Rows are padded at the end, after every real query. Heads are padded with zeros, which change no product.
    """
    _, T, N, H = q_BTNH.shape
    pad_T, pad_H = -T % BLOCK, -H % BLOCK

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, pad_T), (0, 0), (0, pad_H))).transpose(0, 2, 1, 3)

    ids = splash.SegmentIds(*(jnp.pad(x, ((0, 0), (0, pad_T))) for x in (query_ids_BT, key_ids_BS)))
    kernel = _kernel(N, T + pad_T, k_BSKH.shape[1] + pad_T, rule, interpret)
    q_BTNH = q_BTNH / math.sqrt(H) if rule.scale is None else q_BTNH * rule.scale
    out = jax.vmap(kernel)(pad(q_BTNH), pad(k_BSKH), pad(v_BSKH), ids)
    return out.transpose(0, 2, 1, 3)[:, :T, :, :H].astype(q_BTNH.dtype)


def _kernel(N: int, T: int, S: int, rule: ScoreRule, interpret: bool) -> splash.SplashAttentionKernel:
    shape, offset = (T, S), S - T
    mask = splash_mask.CausalMask(shape, offset)
    if rule.window is not None:
        mask = splash_mask.LocalMask(shape, (rule.window - 1, 0), offset)
    q, kv = (max(b for b in range(BLOCK, MAX_BLOCK + 1, BLOCK) if length % b == 0) for length in shape)
    block_sizes = splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    masks = splash_mask.MultiHeadMask([mask] * N)
    return splash.make_splash_mha(
        masks,
        block_sizes=block_sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.softcap,
        interpret=interpret,
    )
