"""Attention of a text to itself, causal: one contract, an implementation for each platform. Letters as in llama.py.

name       runs on              keeps scores [B, N, T, T]   note
reference  anything             yes                         attention.attend, what the others are measured by
xla        anything             yes                         jax.nn.dot_product_attention
cudnn      NVIDIA, half         no                          the same function, cuDNN's flash attention
           precision
splash     TPU; elsewhere       no                          Pallas splash attention
           interpreted, slowly
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import Segment, attend, causal_mask, packed_mask, within
from selfreward_jax.parallel.sharding import ROWS

IMPLEMENTATIONS = ("reference", "xla", "cudnn", "splash")
FLASH = ("cudnn", "splash")  # those that keep no scores; over a text and what came before it, they do not work yet


def choose(asked: str, platform: str, dtype: str) -> str:
    """The implementation for `asked` ("auto" or a name) on devices of a JAX platform (cpu, gpu, cuda, tpu)."""
    if asked != "auto":
        return asked
    if platform == "tpu":
        return "splash"
    if platform in ("gpu", "cuda"):
        return "cudnn" if dtype in ("bfloat16", "float16") else "xla"
    return "reference"


def self_attention(
    how: str, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array | None, window: int | None
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v, [B, T, N, H]; a token looks at itself and at earlier ones.

    Args:
      how: one of IMPLEMENTATIONS.
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values, after rotation.
      segments_BT: a token looks only at tokens of the same number; None: all of a row are one text.
      window: a token looks at this many tokens, itself included; None: at all.
    """
    if how == "splash":
        return _splash(q_BTNH, k_BTKH, v_BTKH, segments_BT, window)
    mask = self_mask(q_BTNH.shape[1], segments_BT, window)
    if how == "reference":
        return attend(q_BTNH, [Segment(k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3), mask)])
    if how == "cudnn" and segments_BT is None:
        # Without an array for a mask, cuDNN skips the blocks that it leaves nothing of.
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, is_causal=True, local_window_size=local, implementation="cudnn"
        )
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask[:, None], implementation=how)


def self_mask(length: int, segments_BT: jax.Array | None, window: int | None) -> jax.Array:
    """[B or 1, T, T], True where query t may look at key s."""
    mask = causal_mask(length)[None] if segments_BT is None else packed_mask(segments_BT)
    if window is not None:
        # Positions of one text are consecutive, so that slots are as good as positions.
        slots = jnp.arange(length)[None]
        mask &= within(window, slots, slots)
    return mask


def _splash(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array | None, window: int | None
) -> jax.Array:
    """Splash attention, each device on its own rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    # Off a TPU the kernel is interpreted. What it will run on, the trace cannot tell: the lowering decides.
    run = partial(_by_platform, window=window)
    if segments_BT is None:
        segments_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
    if mesh.empty:
        return run(q_BTNH, k_BTKH, v_BTKH, segments_BT)
    heads, rows = PartitionSpec(ROWS, None, "tensor"), PartitionSpec(ROWS)
    # Pallas says nothing of how its results vary over the mesh, so that the check of it has to be off.
    return jax.shard_map(run, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)(
        q_BTNH, k_BTKH, v_BTKH, segments_BT
    )


def _by_platform(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int | None) -> jax.Array:
    compiled, interpreted = (partial(_kernel_on, window=window, interpret=i) for i in (False, True))
    return jax.lax.platform_dependent(q, k, v, segments, tpu=compiled, default=interpreted)


def _kernel_on(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array, window: int | None, interpret: bool
) -> jax.Array:
    """The kernel on one device's arrays. It wants lengths and head sizes that are multiples of 128: what is added at
    the end of a row comes after every real query, and zeros added to a head change no product."""
    _, T, N, H = q_BTNH.shape
    length, size = (-(-n // 128) * 128 for n in (T, H))

    def ready(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, length - T), (0, 0), (0, size - H))).transpose(0, 2, 1, 3)

    segments = jnp.pad(segments_BT, ((0, 0), (0, length - T)))
    kernel = _kernel(N, length, window, interpret)
    ids = splash.SegmentIds(segments, segments)
    out = jax.vmap(kernel)(ready(q_BTNH / math.sqrt(H)), ready(k_BTKH), ready(v_BTKH), ids)
    return out.transpose(0, 2, 1, 3)[:, :T, :, :H].astype(q_BTNH.dtype)


def _kernel(heads: int, length: int, window: int | None, interpret: bool) -> splash.SplashAttentionKernel:
    one = splash_mask.CausalMask((length, length))
    if window is not None:
        one = splash_mask.LocalMask((length, length), (window - 1, 0), 0)
    block = max(b for b in (128, 256, 512) if length % b == 0)
    masks, sizes = splash_mask.MultiHeadMask([one] * heads), splash.BlockSizes(*[block] * 8)
    return splash.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
