"""Adapters as a folder of the peft library, which adds them to the base model when it loads them.

peft stores A as [rank, inputs] and B as [outputs, rank], one pair for each matrix of each layer, and adds
B A alpha / rank to the matrix [outputs, inputs]. All adapters of a run belong to its M0: each round continues the
adapters of the round before. So one folder holds all that training changed.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from selfreward_jax import storage
from selfreward_jax.llm import hub
from selfreward_jax.llm.hf import HF_PARAM_MAP, write_safetensors
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_MODEL = "base_model.model."  # what peft puts in front of the base model's own names


class BaseModel(NamedTuple):
    """The model that adapters are added to.

    name: a hub id, or a folder; None if the run trained it, so that it has neither.
    revision: of the hub id.
    """

    name: str | None
    revision: str | None = None

    @property
    def hub_id(self) -> str | None:
        """The hub id; None if the model is not on the hub."""
        return self.name if self.revision else None


def base_model(init: str) -> BaseModel:
    """The base model of a run whose setting model.init is `init`."""
    init = hub.with_prefix(init)
    return BaseModel(*hub.parse_name(init)) if init.startswith(hub.HUB_PREFIX) else BaseModel(init or None)


def adapter_tensors(cfg: DecoderConfig, adapters: Params, dtype: str) -> dict[str, np.ndarray]:
    """The factors of every adapted matrix as peft stores them, by peft's names.

    Args:
      cfg: the model with its adapters.
      adapters: their parameters, as `lora.adapter_specs` declares them.
      dtype: of the result.
    """
    tensors = {}
    for name in cfg.lora_targets:
        matrix = _MODEL + HF_PARAM_MAP[name].name.removesuffix(".weight")
        for layer in range(cfg.num_layers):
            a, b = (np.asarray(adapters["layers"][f"{name}_{side}"][layer], jnp.dtype(dtype)) for side in "ab")
            a_RI, b_OR = a.reshape(-1, cfg.lora_rank).T, b.reshape(cfg.lora_rank, -1).T
            tensors[f"{matrix.format(layer)}.lora_A.weight"] = np.ascontiguousarray(a_RI)
            tensors[f"{matrix.format(layer)}.lora_B.weight"] = np.ascontiguousarray(b_OR)
    return tensors


def adapter_config(cfg: DecoderConfig, base: BaseModel) -> dict[str, Any]:
    """adapter_config.json: the fields that every version of peft knows."""
    alpha = cfg.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
        "r": cfg.lora_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,  # some readers accept only an integer
        "lora_dropout": 0.0,
        "target_modules": [HF_PARAM_MAP[name].name.split(".")[-2] for name in cfg.lora_targets],
        "fan_in_fan_out": False,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def save(path: epath.Path, cfg: DecoderConfig, adapters: Params, dtype: str, base: BaseModel) -> None:
    """Writes the adapters and their configuration into the existing folder `path`.

    Raises:
      StorageError: the file system refuses it.
    """
    storage.write_json(path / CONFIG_FILE, adapter_config(cfg, base))
    write_safetensors(path / ADAPTER_FILE, adapter_tensors(cfg, adapters, dtype))
