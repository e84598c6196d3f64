"""Keys and values in slots, of prompts and of new tokens: one contract, a layout for each kind of device.

layout    keys of prompts   of new tokens   a token is written by   for
columns   [B, K, H, S]      [B, K, H, W]    a loop over the rows    CPU: its products read keys in columns several times
                                                                    as fast
mixed     [B, K, H, S]      [B, K, W, H]    one scatter             TPU: no loop, and the cache is never copied
tokens    [B, K, S, H]      [B, K, W, H]    one scatter             GPU: the same; XLA multiplies with both in one
                                                                    product, and would transpose the keys of one

Values are [B, K, S, H] and [B, K, W, H] in all. Where layers are scanned, all arrays have a first axis L. Else a cache
is a tuple over layers. Array suffixes: the table in llm/decoder.py.
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
    return {"cpu": "columns", "tpu": "mixed"}.get(platform, "tokens")


def prompt_layout(cfg: DecoderConfig) -> str:
    """The layout of the keys of prompts, "columns" or "tokens"."""
    return "tokens" if cfg.kv_layout == "tokens" else "columns"


def token_layout(cfg: DecoderConfig) -> str:
    """The layout of the keys of new tokens, "columns" or "tokens"."""
    return "columns" if cfg.kv_layout == "columns" else "tokens"


def init_cache(cfg: DecoderConfig, rows: int, length: int, layout: str) -> Cache:
    """The cache of `length` tokens in each row, all zero."""
    K, H = cfg.num_kv_heads, cfg.head_dim

    def layers(*shape: int) -> Any:
        if cfg.scan_layers:
            return jnp.zeros((cfg.num_layers, *shape), cfg.dtype)
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))

    keys = (H, length) if layout == "columns" else (length, H)
    return layers(rows, K, *keys), layers(rows, K, length, H)


def as_segment(cache: Cache, layout: str) -> Cache:
    """Keys and values in the axes of a `KVSegment`: keys [B, K, H, W]. No data is moved."""
    keys, values = cache
    if layout == "tokens":
        keys = jax.tree.map(lambda k: k.swapaxes(-1, -2), keys)
    return keys, values


def from_segment(kv: Cache, layout: str) -> Cache:
    """The inverse of `as_segment`: keys and values as the model returns them, in a layout."""
    return as_segment(kv, layout)  # a transposition of two axes is its own inverse


def write(cfg: DecoderConfig, cache: Cache, new: Cache, column_B: jax.Array) -> Cache:
    """The cache with one more token in each row, at `column_B`.

    new: keys [B, K, H, 1] and values [B, K, 1, H] of every layer, as the model returns them.
    """
    if token_layout(cfg) == "columns":
        (keys, values), (k, v) = cache, new
        return _write_rows(keys, k, column_B, axis=-1), _write_rows(values, v, column_B, axis=-2)
    new, old = from_segment(new, "tokens"), cache
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
