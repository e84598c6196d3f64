"""Causal attention, to the text itself and to what came before it: one contract, an implementation for each platform.
Letters as in llama.py.

name       runs on              keeps scores [B, N, T, T]   note
reference  anything             yes                         attention.attend, what the others are measured by
xla        anything             yes                         jax.nn.dot_product_attention
cudnn      NVIDIA, half         no                          the same function, cuDNN's flash attention
           precision
splash     TPU; elsewhere       no                          Pallas splash attention
           interpreted, slowly
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import KVSegment, attend, causal_mask, packed_mask, window_mask
from selfreward_jax.parallel.sharding import BATCH_AXES

IMPLEMENTATIONS = ("reference", "xla", "cudnn", "splash")


def resolve_impl(impl: str, platform: str, dtype: str) -> str:
    """The implementation for `asked` ("auto" or a name) on devices of a JAX platform (cpu, gpu, cuda, tpu)."""
    if impl != "auto":
        return impl
    if platform == "tpu":
        return "splash"
    if platform in ("gpu", "cuda"):
        return "cudnn" if dtype in ("bfloat16", "float16") else "xla"
    return "reference"


def attention(
    impl: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
    past: Sequence[KVSegment],
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v, [B, T, N, H]; a token looks at `past`, at itself and at earlier ones.

    Args:
      how: one of IMPLEMENTATIONS.
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values, after rotation.
      segments_BT: a token looks only at tokens of the same number; None: all of a row are one text.
      window: a token looks at this many tokens, itself included; None: at all.
      past: what came before, whose masks hold the window.
    """
    if not past:
        return self_attention(impl, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, window)
    # One token needs no blocks; and keys that many rows share are not to be copied for each of them.
    blocks = len(past) == 1 and q_BTNH.shape[1] > 1 and q_BTNH.shape[0] <= 2 * past[0].k.shape[0]
    if impl == "splash" and blocks and segment_ids_BT is None and supports_prefix(impl, window):
        return _splash_with_prefix(q_BTNH, k_BTKH, v_BTKH, past[0])
    mask = self_mask(q_BTNH.shape[1], segment_ids_BT, window)
    return attend(q_BTNH, [*past, KVSegment(*to_cache_layout(k_BTKH, v_BTKH), mask)])


def supports_prefix(impl: str, window: int | None) -> bool:
    """Whether an implementation is as good for a text that goes on from another as for one alone. Splash counts slots
    and not positions, between which padding may lie: it knows no window then. For cuDNN it is not written."""
    return impl in ("reference", "xla") or (impl == "splash" and window is None)


def to_cache_layout(k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B, K, H, T] and values [B, K, T, H]. Keys are transposed: decoding reads them along T many times and writes
    one column at a time."""
    return k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)


def self_attention(
    impl: str,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """The same with nothing before it."""
    if impl == "splash":
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
        return _splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, segment_ids_BT, window)
    mask = self_mask(q_BTNH.shape[1], segment_ids_BT, window)
    if impl == "reference":
        return attend(q_BTNH, [KVSegment(*to_cache_layout(k_BTKH, v_BTKH), mask)])
    if impl == "cudnn" and segment_ids_BT is None:
        # Without an array for a mask, cuDNN skips the blocks that it leaves nothing of.
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, is_causal=True, local_window_size=local, implementation="cudnn"
        )
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask[:, None], implementation=impl)


def self_mask(length: int, segment_ids_BT: jax.Array | None, window: int | None) -> jax.Array:
    """[B or 1, T, T], True where query t may look at key s."""
    mask = causal_mask(length)[None] if segment_ids_BT is None else packed_mask(segment_ids_BT)
    if window is not None:
        # Positions of one text are consecutive, so that slots are as good as positions.
        slots = jnp.arange(length)[None]
        mask &= window_mask(window, slots, slots)
    return mask


def _splash_with_prefix(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, past: KVSegment) -> jax.Array:
    """Splash attention to another text and then to itself: one row of keys, in which padding has a number of its own.

    past of 3 slots, 2 filled; T 2:   keys      a b . c d     a query looks at slots up to its own, counted from
                                      numbers   1 1 0 1 1     the end, that have its number
                                      queries         c d
    """
    B, T = q_BTNH.shape[:2]
    S = past.k.shape[-1]

    def joined(before_PS: jax.Array, own_BT: jax.Array) -> jax.Array:
        gap = ((0, 0), (0, -S % BLOCK), *((0, 0),) * (before_PS.ndim - 2))
        return jnp.concatenate([jnp.repeat(jnp.pad(before_PS, gap), B // before_PS.shape[0], axis=0), own_BT], axis=1)

    k, v = joined(past.k.transpose(0, 3, 1, 2), k_BTKH), joined(past.v.transpose(0, 2, 1, 3), v_BTKH)
    own = jnp.ones((B, T), jnp.int32)
    return _splash(q_BTNH, k, v, own, joined(past.mask[:, 0].astype(jnp.int32), own), None)


def _splash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    queries_BT: jax.Array,
    keys_BS: jax.Array,
    window: int | None,
) -> jax.Array:
    """Splash attention, each device on its own rows and heads. The queries are those of the last T keys; each looks at
    keys of its own number up to its own."""
    mesh = jax.sharding.get_abstract_mesh()
    # Off a TPU the kernel is interpreted. What it will run on, the trace cannot tell: the lowering decides.
    run = partial(_by_platform, window=window)
    if mesh.empty:
        return run(q_BTNH, k_BSKH, v_BSKH, queries_BT, keys_BS)
    heads, rows = PartitionSpec(BATCH_AXES, None, "tensor"), PartitionSpec(BATCH_AXES)
    # Pallas says nothing of how its results vary over the mesh, so that the check of it has to be off.
    return jax.shard_map(run, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)(
        q_BTNH, k_BSKH, v_BSKH, queries_BT, keys_BS
    )


def _by_platform(*arrays: jax.Array, window: int | None) -> jax.Array:
    compiled, interpreted = (partial(_kernel_on, window=window, interpret=i) for i in (False, True))
    return jax.lax.platform_dependent(*arrays, tpu=compiled, default=interpreted)


BLOCK = 128  # the kernel wants lengths and head sizes that are multiples of it


def _kernel_on(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    queries_BT: jax.Array,
    keys_BS: jax.Array,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """The kernel on one device's arrays, with S - T a multiple of BLOCK. What is added at the end of a row comes after
    every real query, and zeros added to a head change no product."""
    _, T, N, H = q_BTNH.shape
    more, size = -T % BLOCK, -H % BLOCK

    def ready(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, size))).transpose(0, 2, 1, 3)

    ids = splash.SegmentIds(*(jnp.pad(numbers, ((0, 0), (0, more))) for numbers in (queries_BT, keys_BS)))
    kernel = _kernel(N, T + more, k_BSKH.shape[1] + more, window, interpret)
    out = jax.vmap(kernel)(ready(q_BTNH / math.sqrt(H)), ready(k_BSKH), ready(v_BSKH), ids)
    return out.transpose(0, 2, 1, 3)[:, :T, :, :H].astype(q_BTNH.dtype)


def _kernel(heads: int, queries: int, keys: int, window: int | None, interpret: bool) -> splash.SplashAttentionKernel:
    shape, offset = (queries, keys), keys - queries
    one = splash_mask.CausalMask(shape, offset)
    if window is not None:
        one = splash_mask.LocalMask(shape, (window - 1, 0), offset)
    block = max(b for b in (BLOCK, 2 * BLOCK, 4 * BLOCK) if queries % b == keys % b == 0)
    masks, sizes = splash_mask.MultiHeadMask([one] * heads), splash.BlockSizes(*[block] * 8)
    return splash.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
