"""Low-rank adapters (LoRA, arXiv 2106.09685): a few weights that are trained in place of all.

The model's declarations hold the adapters beside the matrices they belong to; here the two are taken apart (what is
trained and saved, what is frozen), put together (for the loss) and merged (for sampling and export).
"""

from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.llm.llama import MATRICES, LlamaConfig, Params, param_specs


def adapter_specs(cfg: LlamaConfig) -> dict[str, Any]:
    """The declarations of the adapters alone."""
    return {"layers": {name: w for name, w in param_specs(cfg)["layers"].items() if _is_adapter(name)}}


def trainable_specs(cfg: LlamaConfig) -> dict[str, Any]:
    """The declarations of what training changes: the adapters, or all weights where there are none."""
    return adapter_specs(cfg) if cfg.lora_rank else param_specs(cfg)


def _is_adapter(name: str) -> bool:
    return name[:-2] in MATRICES and name.endswith(("_a", "_b"))


def combine(frozen: Params | None, trained: Params) -> Params:
    """The parameters of the model: the frozen ones with the adapters in their places; without frozen ones, `trained`
    itself."""
    if frozen is None:
        return trained
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}}


def merge(cfg: LlamaConfig, params: Params) -> Params:
    """The same model without adapters: each matrix with its adapter's product added, in float32, as the matrix's own
    dtype."""
    layers = dict(params["layers"])
    for name in cfg.lora_targets if cfg.lora_rank else ():
        a, b = layers.pop(f"{name}_a"), layers.pop(f"{name}_b")
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(a.astype(jnp.float32), b.astype(jnp.float32))
        whole = layers[name].astype(jnp.float32) + product * (cfg.lora_alpha / cfg.lora_rank)
        layers[name] = whole.astype(layers[name].dtype)
    return {**params, "layers": layers}
