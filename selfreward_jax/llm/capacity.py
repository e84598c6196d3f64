"""Refuses a model whose parameters alone are larger than the memory, before any of it is allocated."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.config import ConfigError
from selfreward_jax.llm.parameters import ParamSpec, is_param_spec, parameter_count
from selfreward_jax.parallel.device_memory import device_memory

# What decides the size of a dimension: a setting, and a field of a model folder's config.json.
_SETTINGS = {
    "layers": ("model.num_layers", "num_hidden_layers"),
    "embed": ("model.dim", "hidden_size"),
    "mlp": ("model.mlp_dim", "intermediate_size"),
    "heads": ("model.num_heads", "num_attention_heads"),
    "kv_heads": ("model.num_kv_heads", "num_key_value_heads"),
    "head": ("model.head_dim", "head_dim"),
    "vocab": ("tokenizer.vocab_size", "vocab_size"),
    "experts": ("model.init", "num_experts"),
    "router": ("model.init", "num_experts"),
    "expert_mlp": ("model.init", "moe_intermediate_size"),
    "rank": ("lora.rank", "lora.rank"),
}


def check_capacity(specs: Any, shardings: Any, dtype: str, from_folder: bool = False) -> None:
    """Compares a device's part of the parameters with the device's memory, if that is known.

    Args:
      specs: a tree of ParamSpecs.
      shardings: their shardings.
      dtype: of the parameters.
      from_folder: whether a model folder decides the shapes, and not the settings.

    Raises:
      ConfigError: they do not fit. The message names what makes the largest parameter large.
    """
    have, device = device_memory()
    sizes = [math.prod(s.shard_shape(w.shape)) for w, s in zip(_leaves(specs), jax.tree.leaves(shardings), strict=True)]
    needed = sum(sizes) * jnp.dtype(dtype).itemsize
    if not have or needed <= have:
        return
    largest = max(_leaves(specs), key=lambda w: math.prod(w.shape))
    settings = sorted(zip(largest.shape, largest.axes, strict=True), reverse=True)
    named = ", ".join(f"{_SETTINGS[axis][from_folder]} {size:,}" for size, axis in settings)
    raise ConfigError(
        f"the model has {parameter_count(specs):,} parameters, {needed / 1e9:,.1f} GB in {dtype} on each device, which "
        f"has {have / 1e9:,.1f} GB ({device}); its size comes from {named}: "
        + ("use a smaller model" if from_folder else "lower these")
        + ", raise parallel.fsdp or parallel.tensor, or use devices with more memory"
    )


def _leaves(specs: Any) -> list[ParamSpec]:
    return jax.tree.leaves(specs, is_leaf=is_param_spec)
