"""Low-rank adapters (LoRA, arXiv 2106.09685): training changes a few added weights instead of all.

`llama.param_specs` declares the adapters next to the matrices they belong to. This module separates the two (trained
and saved, or frozen), combines them (for the loss), and merges them (for sampling and export).
"""

from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.llm.matmul import matmul
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import MATRICES, Params, param_specs


def adapter_specs(cfg: DecoderConfig) -> dict[str, Any]:
    """The parameter declarations of the adapters alone."""
    return {"layers": {name: w for name, w in param_specs(cfg)["layers"].items() if _is_adapter(name)}}


def trainable_specs(cfg: DecoderConfig) -> dict[str, Any]:
    """The parameter declarations of what training changes: the adapters, or all weights where there are none."""
    return adapter_specs(cfg) if cfg.lora_rank else param_specs(cfg)


def _is_adapter(name: str) -> bool:
    return name[:-2] in MATRICES and name.endswith(("_a", "_b"))


def combine(frozen: Params | None, trained: Params) -> Params:
    """The parameters of the model: the frozen ones plus the adapters. Without frozen ones, `trained` itself."""
    if frozen is None:
        return trained
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}}


def merge(cfg: DecoderConfig, params: Params) -> Params:
    """The same model without adapters.

    Each adapter's product is added to its matrix in float32. The sum has the matrix's own dtype.
    """
    layers = dict(params["layers"])
    for name in cfg.lora_targets if cfg.lora_rank else ():
        a, b = layers.pop(f"{name}_a"), layers.pop(f"{name}_b")
        product = jax.vmap(lambda a, b: matmul(a, b, 1))(a.astype(jnp.float32), b.astype(jnp.float32))
        merged = layers[name].astype(jnp.float32) + product * (cfg.lora_alpha / cfg.lora_rank)
        layers[name] = merged.astype(layers[name].dtype)
    return {**params, "layers": layers}
