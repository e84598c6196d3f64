"""Rotary position embeddings (RoFormer, arXiv 2104.09864) that rotate the two halves of a head as pairs.

Array suffixes: the table in llama.py.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class RopeScaling(NamedTuple):
    """Lower rotation frequencies, for texts longer than those the model was first trained on.

    With `factor` alone, every frequency is divided by it ("linear"). With the other three, Llama 3.1's rule:
    wavelengths below original / high_freq_factor tokens are unchanged, wavelengths above original / low_freq_factor
    are multiplied by the factor, and those between are interpolated.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Radians per position [H/2], float32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    factor, low, high, original = scaling
    if low is None:
        return frequency / factor
    periods = original * frequency / (2 * math.pi)  # full rotations within the original context
    unscaled_weight = jnp.clip((periods - low) / (high - low), 0, 1)
    return unscaled_weight * frequency + (1 - unscaled_weight) * frequency / factor


def rope_cos_sin(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, H/2] in float32."""
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequencies(head_dim, theta, scaling)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair (x[i], x[i + H/2]) by the angle of its position."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
