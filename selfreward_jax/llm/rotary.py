"""Rotary position embeddings (RoFormer, arXiv 2104.09864) that rotate the two halves of a head as pairs.

Array suffixes: the table in decoder.py.
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


class Yarn(NamedTuple):
    """YaRN (arXiv 2309.00071): frequencies that rotate less than `beta_slow` times within the original context are
    divided by the factor, those that rotate more than `beta_fast` times are unchanged, and those between are
    interpolated. Cosines and sines are multiplied by `attention_factor`."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # the range in between begins and ends at a whole index


def frequencies(head_dim: int, theta: float | None, scaling: RopeScaling | Yarn | None = None) -> jax.Array:
    """Radians per position [H/2], float32. Without a base, nothing rotates."""
    if theta is None:
        return jnp.zeros(head_dim // 2)
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    if isinstance(scaling, Yarn):
        return frequency * _yarn_divisors(head_dim, theta, scaling)
    factor, low, high, original = scaling
    if low is None:
        return frequency / factor
    periods = original * frequency / (2 * math.pi)  # full rotations within the original context
    unscaled_weight = jnp.clip((periods - low) / (high - low), 0, 1)
    return unscaled_weight * frequency + (1 - unscaled_weight) * frequency / factor


def _yarn_divisors(head_dim: int, theta: float, scaling: Yarn) -> jax.Array:
    """What each frequency is multiplied by [H/2]: from 1 / factor to 1."""

    def index(rotations: float) -> float:
        """The pair that rotates so often within the original context."""
        context = scaling.original_max_position_embeddings
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (jnp.arange(head_dim // 2, dtype=jnp.float32) - low) / (high - low or 0.001)
    divided = jnp.clip(ramp, 0, 1)
    return divided / scaling.factor + (1 - divided)


def rope_cos_sin(
    positions_BT: jax.Array, head_dim: int, theta: float | None, scaling: RopeScaling | Yarn | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, H/2] in float32."""
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequencies(head_dim, theta, scaling)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos * scaling.attention_factor, sin * scaling.attention_factor) if isinstance(scaling, Yarn) else (cos, sin)


def apply_rope(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair (x[i], x[i + R/2]) of the first R entries of a head by the angle of its position; R is twice
    the size of the last axis of `cos`."""
    R = 2 * cos.shape[-1]
    a, b = jnp.split(x_BTNH[..., :R].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
    return rotated if x_BTNH.shape[-1] == R else jnp.concatenate([rotated, x_BTNH[..., R:]], axis=-1)
