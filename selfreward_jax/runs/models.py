"""The models of a run: their configurations, parameters and shardings, and the one engine that is held."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm import lora
from selfreward_jax.llm.capacity import check_capacity
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params, abstract_params, param_specs
from selfreward_jax.llm.self_attention import resolve_impl
from selfreward_jax.parallel import preemption
from selfreward_jax.parallel.arrays import reshard
from selfreward_jax.parallel.hardware import Hardware, hardware_of
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, param_shardings
from selfreward_jax.runs.workspace import Workspace
from selfreward_jax.sampling.engine import Engine
from selfreward_jax.sampling.kv_cache import kv_layout
from selfreward_jax.sampling.sampler import sampling_config, unstack_params
from selfreward_jax.train import checkpoints


class ModelStore:
    """The models of one working directory on one mesh.

    Args:
      cfg: the settings of the run.
      files: its working directory.
      mesh: the devices for training.
      sampling_mesh: the same devices for sampling.
    """

    def __init__(self, cfg: ConfigDict, files: Workspace, mesh: Mesh, sampling_mesh: Mesh) -> None:
        self.cfg, self.files, self.mesh, self.sampling_mesh = cfg, files, mesh, sampling_mesh
        self._chat: Chat | None = None
        self._held: tuple[str, Engine] | None = None

    @property
    def hardware(self) -> Hardware:
        """The kind of the devices."""
        return hardware_of(self.mesh.devices.flat[0])

    @property
    def platform(self) -> str:
        """The platform of the devices, as JAX names it: cpu, gpu or tpu."""
        return self.hardware.platform

    @property
    def chat(self) -> Chat:
        """The tokenizer and the chat template."""
        if self._chat is None:
            self._chat = read_chat(self.files.path / "tokenizer", self.cfg.chat.thinking == "on")
        return self._chat

    def model_config(self, dropout: float = 0.0, adapters: bool = False) -> DecoderConfig:
        """The model's configuration. With `adapters` it has those that lora.rank asks for: the model in training."""
        pretrained = read_config(self.files.path / "tokenizer")[0] if self.cfg.model.init else None
        vocab_size = 0 if pretrained else self.chat.tokenizer.vocab_size
        return build_model_config(self.cfg, pretrained, vocab_size, self.hardware, dropout, adapters)

    def shardings(self, specs: Any, sampling: bool = False) -> Any:
        """Shardings of a tree of ParamSpecs, for training or for sampling.

        Raises:
          ConfigError: the mesh does not divide a parameter.
        """
        mesh, table = (self.sampling_mesh, SAMPLING) if sampling else (self.mesh, TRAINING)
        try:
            return param_shardings(specs, mesh, table)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def check_divisible(self, pretrained: DecoderConfig | None) -> None:
        """Raises ConfigError where a mesh does not divide the model or the devices cannot hold it, before there is one.

        Args:
          pretrained: as in `build_model_config`. A vocabulary that is not trained yet counts as divisible and
            small.
        """
        specs = param_specs(build_model_config(self.cfg, pretrained, self.mesh.size, self.hardware))
        from_folder = pretrained is not None
        check_capacity(specs, self.shardings(specs), "float32", from_folder)
        check_capacity(specs, self.shardings(specs, sampling=True), self.cfg.model.dtype, from_folder)

    def restore(self, path: epath.Path, specs: Any) -> Params:
        """Float32 parameters of a checkpoint, sharded for training.

        Raises:
          ConfigError: they are larger than the memory.
        """
        shardings = self.shardings(specs)
        check_capacity(specs, shardings, "float32", bool(self.cfg.model.init))
        return checkpoints.restore(path, abstract_params(specs, "float32"), shardings)

    def init_params(self, make: Callable[[jax.Array], Params], specs: Any, name: str) -> Params:
        """Fresh parameters `make(key)`, with a key of the seed and `name`. Each device makes its own shard.

        Raises:
          ConfigError: they are larger than the memory.
        """
        shardings = self.shardings(specs)
        check_capacity(specs, shardings, "float32")
        key_data = np.asarray(jax.random.key_data(self.files.stage_key(name, "init")))
        return jax.jit(lambda: make(jax.random.wrap_key_data(key_data)), out_shardings=shardings)()

    def frozen_base(self) -> Params | None:
        """M0's parameters in the compute dtype, under the adapters; None without adapters."""
        if not self.cfg.lora.rank:
            return None
        specs = param_specs(self.model_config())
        params = self.restore(self.files.path / "m0" / "checkpoint", specs)
        return reshard(params, self.shardings(specs), self.cfg.model.dtype)

    def load_trainable(self, model: str, path: epath.Path | None = None) -> Params:
        """What training changes of a model, its adapters or all parameters; from `path` instead of its final
        checkpoint, if given."""
        specs = lora.trainable_specs(self.model_config(adapters=model != "m0"))
        return self.restore(path or self.files.path / model / "checkpoint", specs)

    def merge_lora(self, trainable: Params) -> Params:
        """The full parameters of a model without adapters: float32, sharded for training."""
        if not self.cfg.lora.rank:
            return trainable
        cfg, shardings = self.model_config(adapters=True), self.shardings(param_specs(self.model_config()))

        def merge(base: Params, adapters: Params) -> Params:
            return lora.merge(cfg, lora.combine(base, adapters))

        # M0 is read for this alone and donated. The adapters may be in use.
        return jax.jit(merge, out_shardings=shardings, donate_argnums=0)(self.load_trainable("m0"), trainable)

    def load_params(self, model: str) -> Params:
        """The full parameters of a finished model, such as "m1": float32, sharded for training."""
        trainable = self.load_trainable(model)
        return trainable if model == "m0" else self.merge_lora(trainable)

    def engine(self, model: str) -> Engine:
        """A sampler of a finished model. The last one asked for stays in memory."""
        if self._held is None or self._held[0] != model:
            self.drop_engine()  # first: two models may not fit
            self._held = (model, self.make_engine(self.load_params(model)))
        return self._held[1]

    def drop_engine(self) -> None:
        """Frees the engine in memory."""
        self._held = None

    def make_engine(self, params: Params) -> Engine:
        """A sampler of full parameters, resharded for sampling and cast to the compute dtype."""
        cfg = sampling_config(self.model_config(), self.platform)
        params = reshard(params, self.shardings(param_specs(cfg), sampling=True), self.cfg.model.dtype)
        return Engine(
            cfg,
            unstack_params(cfg, params),
            self.chat,
            self.sampling_mesh,
            max_concurrent=self.cfg.sampling.max_concurrent,
            max_length=self.cfg.model.max_length,
            should_stop=preemption.stop_requested,
        )


def build_model_config(
    cfg: ConfigDict,
    pretrained: DecoderConfig | None,
    vocab_size: int,
    hardware: Hardware,
    dropout: float = 0.0,
    adapters: bool = False,
) -> DecoderConfig:
    """The model's configuration for some settings.

    Args:
      cfg: the settings.
      pretrained: what the folder of model.init describes; None without one.
      vocab_size: of the tokenizer, used without `pretrained`.
      hardware: the kind of device.
      dropout: dropout rate.
      adapters: whether to add the adapters that lora.rank asks for.
    """
    c = cfg.model
    runtime: dict[str, Any] = {k: c[k] for k in ("dtype", "scan_layers", "remat")}
    head_dim = pretrained.head_dim if pretrained else c.head_dim
    runtime |= {"attention": resolve_impl(c.attention, hardware, c.dtype, head_dim), "dropout": dropout}
    runtime |= {"kv_layout": kv_layout(hardware.platform)}
    if adapters and cfg.lora.rank:
        runtime |= {f"lora_{k}": v for k, v in cfg.lora.items()}
    if pretrained:
        return dataclasses.replace(pretrained, param_dtype="float32", **runtime)
    shapes = {k: v for k, v in c.items() if k not in ("init", "max_length", *runtime)}
    shapes["qk_norm"] = "head" if c.qk_norm else ""
    return DecoderConfig(vocab_size=vocab_size, **shapes, **runtime)
