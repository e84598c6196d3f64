"""Pallas splash attention: flash attention for TPUs that knows segments, windows and caps of scores.

Elsewhere the kernel is interpreted, slowly. Array suffixes: the table in decoder.py.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.parallel.sharding import on_own_rows


class ScoreRule(NamedTuple):
    """How scores are computed; arguments as in `self_attention.attention`."""

    window: int | None
    scale: float | None
    softcap: float | None


def attend_with_prefix(
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
    return attend_segments(q_BTNH, k, v, ids_BT, key_ids, ScoreRule(None, scale, softcap))


def attend_segments(
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
    return on_own_rows(attend_fn, q_BTNH, k_BSKH, v_BSKH, query_ids_BT, key_ids_BS)


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
