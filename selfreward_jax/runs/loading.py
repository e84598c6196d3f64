"""Loads a finished model of a run, or a Hugging Face folder."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from selfreward_jax import foreign
from selfreward_jax.config import ConfigError
from selfreward_jax.llm import hf, hub
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import check_no_adapter, read_config, read_json_object
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params, param_specs
from selfreward_jax.parallel.arrays import reshard
from selfreward_jax.parallel.mesh import make_mesh, num_slices, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, param_shardings
from selfreward_jax.runs import owner
from selfreward_jax.runs.run import Run, open_run
from selfreward_jax.sampling.engine import Engine
from selfreward_jax.sampling.kv_cache import kv_layout
from selfreward_jax.sampling.sampler import sampling_config, unstack_params


class LoadedModel(NamedTuple):
    """A model with all that is needed to use it."""

    name: str  # such as "m3", or the name of the folder
    cfg: DecoderConfig
    params: Params
    chat: Chat
    mesh: Mesh
    sampling_mesh: Mesh
    max_length: int  # tokens
    hf_config: dict[str, Any] | None  # config.json of its Hugging Face folder, or of the one it was trained from
    run: Run | None  # None for a folder

    def engine(self, max_concurrent: int, max_length: int, raw: bool = False, take_params: bool = False) -> Engine:
        """An engine that samples from the model; `max_length` is limited to the model's. Arguments as in `Engine`.

        take_params: the engine takes the parameters, and the memory holds them once. `params` then has no arrays, so
          no other engine can be made.
        """
        shardings = _shardings(self.cfg, self.sampling_mesh, SAMPLING)
        move = _take if take_params else reshard
        cfg = sampling_config(self.cfg, self.mesh.devices.flat[0].platform)
        return Engine(
            cfg,
            unstack_params(cfg, move(self.params, shardings, cfg.dtype)),
            self.chat,
            self.sampling_mesh,
            max_concurrent=max_concurrent,
            max_length=min(max_length, self.max_length),
            raw=raw,
        )


def _take(params: Params, shardings: Params, dtype: Any) -> Params:
    """`reshard`, which removes each array from `params` as it moves."""
    return {
        name: _take(params[name], shardings[name], dtype)
        if isinstance(params[name], dict)
        else reshard(params.pop(name), shardings[name], dtype)
        for name in list(params)
    }


def load_model(path: str, name: str = "", mesh_from: Run | None = None) -> LoadedModel:
    """Loads a model.

    Args:
      path: a working directory, a Hugging Face folder, or OWNER/NAME@REVISION on the hub, with or without "hub:" in
        front.
      name: which model of a working directory, such as "m3"; the last one if not given.
      mesh_from: the run whose meshes the model is sharded over. If not given, a folder's model is replicated on every
        device, and a run's model uses the meshes of that run's settings.

    Raises:
      ConfigError: there is no such model, or the meshes do not divide it.
      ModelFormatError: the folder cannot be used.
    """
    path = _with_hub_prefix(path)
    if path.startswith(hub.HUB_PREFIX) or _is_hf_folder(path):
        if name and name != epath.Path(path).name:
            raise ConfigError(f"model is {name!r}, but {path} is one model, not a workdir: leave the name out")
        return _load_folder(hub.resolve_model_dir(path), mesh_from)
    _check_is_run(path)
    run, name = open_run_model(path, name, mesh_from.cfg.parallel if mesh_from else None)
    return LoadedModel(
        name,
        run.models.model_config(),
        run.models.load_params(name),
        run.models.chat,
        run.models.mesh,
        run.models.sampling_mesh,
        max_length=run.cfg.model.max_length,
        hf_config=read_config(run.workdir / "tokenizer")[1] if run.cfg.model.init else None,
        run=run,
    )


def resolve_model(path: str, name: str = "") -> tuple[str, str]:
    """The name of the model that `load_model` would load, and a digest that identifies it, without loading it.

    The digest does not depend on the directory that the model is in.

    Raises:
      ConfigError, ModelFormatError: there is no such model.
    """
    path = _with_hub_prefix(path)
    if path.startswith(hub.HUB_PREFIX):
        return path, _digest(path.encode())
    if _is_hf_folder(path):
        folder = epath.Path(path)
        sizes = sorted((f.name, foreign.size(f)) for f in folder.iterdir() if f.name.endswith(".safetensors"))
        return folder.name, _digest(foreign.read_bytes(folder / "config.json"), repr(sizes).encode())
    run, name = open_run_model(path, name)
    return name, _digest(name.encode(), run.files.weights_fingerprint(name).encode())


def check_meshes(path: str, name: str, run: Run) -> None:
    """Raises ConfigError where the meshes of a run do not divide a model of a folder or of another run. A model of the
    hub is not looked at before it is used.

    path, name: as in `load_model`.
    """
    path = _with_hub_prefix(path)
    if path.startswith(hub.HUB_PREFIX):
        return
    if _is_hf_folder(path):
        cfg = read_config(epath.Path(path))[0]
    else:
        cfg = open_run_model(path, name, run.cfg.parallel)[0].models.model_config()
    for mesh, rules in ((run.models.mesh, TRAINING), (run.models.sampling_mesh, SAMPLING)):
        _shardings(cfg, mesh, rules)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def _with_hub_prefix(path: str) -> str:
    """`hub.with_prefix` of a path that must be a model.

    Raises:
      ConfigError: it is neither a folder with a config.json nor of the hub.
    """
    path = hub.with_prefix(path)
    if path.startswith(hub.HUB_PREFIX) or (epath.Path(path) / "config.json").exists():
        return path
    folder = epath.Path(path)
    check_no_adapter(folder)
    if (folder.parent / "config.json").exists():
        raise ConfigError(
            f"model {path!r} is inside a run: give the workdir {folder.parent}, and the model by its name"
        )
    fault = "has no config.json" if folder.exists() else "does not exist"
    raise ConfigError(
        f"model {path!r}: the folder {fault}; give a workdir, a Hugging Face folder, or on the hub OWNER/NAME@REVISION"
    )


def _is_hf_folder(path: str) -> bool:
    config_path = epath.Path(path) / "config.json"
    return config_path.exists() and "architectures" in read_json_object(config_path)


def _check_is_run(path: str) -> None:
    """Raises ConfigError where a folder's config.json is neither that of a run nor that of a model."""
    config_path = epath.Path(path) / "config.json"
    if config_path.exists() and "iterations" not in read_json_object(config_path):
        raise ConfigError(
            f"model {path!r}: its config.json has neither 'architectures', as of a Hugging Face model, nor settings "
            "of a run; give a complete folder"
        )


def open_run_model(path: str, name: str, parallel: ConfigDict | None = None) -> tuple[Run, str]:
    """The run of a working directory, and the name of one of its models: `name`, or the last one.

    Raises:
      ConfigError: there is no such model.
      StorageError: the model is of another run.
    """
    run = open_run(path, parallel)
    names = run.files.model_names()
    if not names:
        raise ConfigError(
            f"workdir {path} holds no model yet" + f", not {name}" * bool(name) + ": finish its run first"
        )
    if name and name not in names:
        raise ConfigError(f"workdir {path} holds {', '.join(names)}, not {name}: name one of these")
    name = name or names[-1]
    owner.check_model(run, name)
    return run, name


def _load_folder(folder: epath.Path, mesh_from: Run | None) -> LoadedModel:
    cfg, hf_config = read_config(folder)
    chat = read_chat(folder, mesh_from is not None and mesh_from.cfg.chat.thinking == "on")
    mesh = mesh_from.models.mesh if mesh_from else make_mesh(replicas=num_slices(jax.devices()))
    cfg = dataclasses.replace(cfg, dtype=cfg.param_dtype, kv_layout=kv_layout(mesh.devices.flat[0].platform))
    return LoadedModel(
        folder.name,
        cfg,
        hf.load(folder, cfg, _shardings(cfg, mesh, TRAINING)),
        chat,
        mesh,
        mesh_from.models.sampling_mesh if mesh_from else sampling_mesh(mesh),
        max_length=hf_config.get("max_position_embeddings", 2048),
        hf_config=hf_config,
        run=None,
    )


def _shardings(cfg: DecoderConfig, mesh: Mesh, rules: dict[str, str]) -> Any:
    try:
        return param_shardings(param_specs(cfg), mesh, rules)
    except ValueError as error:
        raise ConfigError(str(error)) from None
