"""Keys and values of the new tokens: one contract, a layout for each kind of device.

layout    keys of a layer   a token is written by   for
columns   [B, K, H, W]      a loop over the rows    CPU: its products read keys in columns several times as fast
tokens    [B, K, W, H]      one scatter             TPU and GPU: no loop, and the cache is never copied

Values are [B, K, W, H] in both. Where layers are scanned, all arrays have a first axis L. Else a cache is a tuple over
layers. Array suffixes: the table in llm/decoder.py.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.parallel.sharding import BATCH_AXES, free_axes

# Keys and values of all layers.
Cache = tuple[Any, Any]


def kv_layout(platform: str) -> str:
    """The layout for devices of a JAX platform."""
    return "columns" if platform == "cpu" else "tokens"


def init_cache(cfg: DecoderConfig, rows: int, length: int, layout: str = "columns") -> Cache:
    """The cache of `length` tokens in each row, all zero."""
    K, H = cfg.num_kv_heads, cfg.head_dim

    def layers(*shape: int) -> Any:
        if cfg.scan_layers:
            return jnp.zeros((cfg.num_layers, *shape), cfg.dtype)
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))

    keys = (H, length) if layout == "columns" else (length, H)
    return layers(rows, K, *keys), layers(rows, K, length, H)


def as_segment(cfg: DecoderConfig, cache: Cache) -> Cache:
    """Keys and values in the axes of a `KVSegment`: keys [B, K, H, W]. No data is moved."""
    keys, values = cache
    if cfg.kv_layout == "tokens":
        keys = jax.tree.map(lambda k: k.swapaxes(-1, -2), keys)
    return keys, values


def write(cfg: DecoderConfig, cache: Cache, new: Cache, column_B: jax.Array) -> Cache:
    """The cache with one more token in each row, at `column_B`.

    new: keys [B, K, H, 1] and values [B, K, 1, H] of every layer, as the model returns them.
    """
    (keys, values), (k, v) = cache, new
    if cfg.kv_layout == "columns":
        return _write_rows(keys, k, column_B, axis=-1), _write_rows(values, v, column_B, axis=-2)
    new, old = (jax.tree.map(lambda x: x.swapaxes(-1, -2), k), v), (keys, values)
    if jax.sharding.get_abstract_mesh().empty:
        return _scatter(old, new, column_B)
    # Each device writes its own rows and heads.
    specs = jax.tree.map(lambda x: PartitionSpec(*(None,) * (x.ndim - 4), free_axes(), "tensor"), old)
    scatter = jax.shard_map(
        _scatter,
        in_specs=(specs, specs, PartitionSpec(free_axes())),
        out_specs=specs,
        check_vma=False,
        axis_names=set(free_axes((*BATCH_AXES, "tensor"))),
    )
    return scatter(old, new, column_B)


def _write_rows(old: Any, new: Any, column_B: jax.Array, axis: int) -> Any:
    """`axis` is the one of the tokens, from the end."""

    def update(old: jax.Array, x: jax.Array) -> jax.Array:
        update_row = partial(jax.lax.dynamic_update_slice_in_dim, axis=old.ndim - 1 + axis)
        rows = old.ndim - 4
        return jax.vmap(update_row, in_axes=(rows, rows, 0), out_axes=rows)(old, x, column_B)

    return jax.tree.map(update, old, new)


def _scatter(old: Any, new: Any, column_B: jax.Array) -> Any:
    """Tokens [..., B, K, 1, H] written into [..., B, K, W, H].

    All axes but H have an index, so that XLA for TPU scatters whole vectors and keeps the layout of the cache.
    """

    def update(old: jax.Array, x: jax.Array) -> jax.Array:
        *lead, num_rows, num_heads, _, _ = old.shape
        index = jnp.meshgrid(*map(jnp.arange, (*lead, num_rows, num_heads)), indexing="ij", sparse=True)
        column = column_B[:, None].reshape((1,) * len(lead) + (num_rows, 1))
        return old.at[*index, column].set(x[..., 0, :], mode="promise_in_bounds", unique_indices=True)

    return jax.tree.map(update, old, new)
