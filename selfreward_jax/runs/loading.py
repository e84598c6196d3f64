"""A model at rest: one of a run's, or a Hugging Face folder."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm import hf, hub
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import read_config, read_json_object
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.llama import LlamaConfig, Params, param_specs
from selfreward_jax.parallel.arrays import reshard
from selfreward_jax.parallel.mesh import make_mesh, num_slices, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, param_shardings
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Engine


class LoadedModel(NamedTuple):
    """A model with all that is needed to use it."""

    name: str  # "m3", or the folder's
    cfg: LlamaConfig
    params: Params
    chat: Chat
    mesh: Mesh
    sampling_mesh: Mesh
    max_length: int  # tokens
    hf_config: dict[str, Any] | None  # config.json of the Hugging Face folder that it is, or was trained from
    run: Run | None

    def engine(self, rows: int, max_length: int, raw: bool = False) -> Engine:
        """A generator of text with it; `max_length` is cut to the model's own. The rest as in `Engine`."""
        longest = min(max_length, self.max_length)
        lying = _shardings(self.cfg, self.sampling_mesh, SAMPLING)
        laid = reshard(self.params, lying, self.cfg.dtype)
        return Engine(self.cfg, laid, self.chat, self.sampling_mesh, max_concurrent=rows, max_length=longest, raw=raw)


def load_model(path: str, name: str = "", mesh_from: Run | None = None) -> LoadedModel:
    """Opens a model.

    Args:
      path: a working directory, a Hugging Face folder, or hub:OWNER/NAME@REVISION.
      name: which model of a working directory, such as "m3"; the last one if not given.
      like: the run that it is to serve, on whose meshes it is laid out; if not given, a folder's model lies whole on
        each device, and a run's own as it says itself.

    Raises:
      ConfigError: there is no such model, or the meshes do not divide it.
      HubError: the folder cannot be used.
    """
    if path.startswith(hub.HUB_PREFIX):
        return _of_folder(hub.resolve_model_dir(path), mesh_from)
    if _is_folder(path):
        return _of_folder(epath.Path(path), mesh_from)
    run, name = _in_run(path, name, mesh_from.cfg.parallel if mesh_from else None)
    origin = read_config(run.workdir / "tokenizer")[1] if run.cfg.model.init else None
    meshes = run.mesh, run.sampling_mesh
    return LoadedModel(
        name, run.model_config(), run.load_params(name), run.chat, *meshes, run.cfg.model.max_length, origin, run
    )


def resolve_model(path: str, name: str = "") -> tuple[str, str]:
    """The name of the model that `open_model` would open, and a digest of what it is, without loading it. The digest
    does not depend on where the model lies.

    Raises:
      ConfigError, HubError: there is no such model.
    """
    if path.startswith(hub.HUB_PREFIX):
        return path, _digest(path.encode())
    if _is_folder(path):
        folder = epath.Path(path)
        sizes = sorted((f.name, f.stat().length) for f in folder.glob("*.safetensors"))
        return folder.name, _digest((folder / "config.json").read_bytes(), repr(sizes).encode())
    run, name = _in_run(path, name)
    return name, _digest(name.encode(), run.weights_fingerprint(name).encode())


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def _is_folder(path: str) -> bool:
    described = epath.Path(path) / "config.json"
    return described.exists() and "architectures" in read_json_object(described)


def _in_run(path: str, name: str, parallel: ConfigDict | None = None) -> tuple[Run, str]:
    run = Run.reopen(path, parallel)
    models = run.models()
    if not models or (name and name not in models):
        raise ConfigError(f"workdir {path} holds {', '.join(models) or 'no model'}" + f", not {name}" * bool(name))
    return run, name or models[-1]


def _of_folder(folder: epath.Path, like: Run | None) -> LoadedModel:
    cfg, raw = read_config(folder)
    chat = read_chat(folder)
    cfg = dataclasses.replace(cfg, dtype=cfg.param_dtype)
    mesh = like.mesh if like else make_mesh(replicas=num_slices(jax.devices()))
    params = hf.load(folder, cfg, _shardings(cfg, mesh, TRAINING))
    sampling = like.sampling_mesh if like else sampling_mesh(mesh)
    return LoadedModel(
        folder.name, cfg, params, chat, mesh, sampling, raw.get("max_position_embeddings", 2048), raw, None
    )


def _shardings(cfg: LlamaConfig, mesh: Mesh, table: dict[str, str]) -> Any:
    try:
        return param_shardings(param_specs(cfg), mesh, table)
    except ValueError as error:
        raise ConfigError(str(error)) from None
