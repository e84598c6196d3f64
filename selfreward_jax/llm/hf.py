"""A Hugging Face folder <-> (DecoderConfig, params). Only safetensors: one file, or shards with an index.

Parameters here are stacked over layers and split by head. A folder stores one matrix [out, in] for each layer. One
table maps one to the other. Loading reads, for each device, only the bytes of that device's shard.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from selfreward_jax import foreign, storage
from selfreward_jax.config.errors import brief
from selfreward_jax.llm.capacity import check_capacity
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params, ParamSpec, is_param_spec, param_specs
from selfreward_jax.parallel.arrays import fetch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class HfParam(NamedTuple):
    """Where a parameter is stored in a folder.

    name: the tensor's name, with {} for the layer, and a second {} for the expert.
    inputs: how many leading dimensions of the parameter are inputs. The stored matrix is [outputs, inputs], with the
      dimensions of each side flattened. None: the stored tensor has the same shape (a bias or a norm is flattened).
    first_row, rows: where several parameters are stored as one matrix, the first row of this one, and all rows.
    """

    name: str
    inputs: int | None
    first_row: int = 0
    rows: int = 0

    @property
    def is_vector(self) -> bool:
        """Whether the stored tensor has one dimension."""
        return self.name.endswith("bias") or "norm" in self.name


_ATTENTION = "model.layers.{}.self_attn."
_MLP = "model.layers.{}.mlp."
HF_PARAM_MAP = {
    "embed": HfParam("model.embed_tokens.weight", None),
    "norm": HfParam("model.norm.weight", None),
    "head": HfParam("lm_head.weight", 1),
    "attn_norm": HfParam("model.layers.{}.input_layernorm.weight", None),
    "wq": HfParam(_ATTENTION + "q_proj.weight", 1),
    "wk": HfParam(_ATTENTION + "k_proj.weight", 1),
    "wv": HfParam(_ATTENTION + "v_proj.weight", 1),
    "wo": HfParam(_ATTENTION + "o_proj.weight", 2),
    "bq": HfParam(_ATTENTION + "q_proj.bias", None),
    "bk": HfParam(_ATTENTION + "k_proj.bias", None),
    "bv": HfParam(_ATTENTION + "v_proj.bias", None),
    "q_norm": HfParam(_ATTENTION + "q_norm.weight", None),
    "k_norm": HfParam(_ATTENTION + "k_norm.weight", None),
    "mlp_norm": HfParam("model.layers.{}.post_attention_layernorm.weight", None),
    "w_gate": HfParam(_MLP + "gate_proj.weight", 1),
    "w_up": HfParam(_MLP + "up_proj.weight", 1),
    "w_down": HfParam(_MLP + "down_proj.weight", 1),
}


def hf_params(cfg: DecoderConfig) -> dict[str, HfParam]:
    """Where each parameter of this model is stored."""
    params = dict(HF_PARAM_MAP)
    if cfg.post_norm:  # "behind attention" is then meant literally
        params |= {
            "attn_post_norm": HfParam("model.layers.{}.post_attention_layernorm.weight", None),
            "mlp_norm": HfParam("model.layers.{}.pre_feedforward_layernorm.weight", None),
            "mlp_post_norm": HfParam("model.layers.{}.post_feedforward_layernorm.weight", None),
        }
    if cfg.num_experts:
        params["router"] = HfParam(_MLP + "gate.weight", 1)
        for name in ("gate", "up", "down"):
            params[f"w_{name}"] = HfParam(f"{_MLP}experts.{{}}.{name}_proj.weight", 1)
    if cfg.fused_weights:
        for name, parts in (
            (_ATTENTION + "qkv_proj.weight", {"wq": cfg.num_heads, "wk": cfg.num_kv_heads, "wv": cfg.num_kv_heads}),
            (_MLP + "gate_up_proj.weight", {"w_gate": cfg.mlp_dim, "w_up": cfg.mlp_dim}),
        ):
            size = cfg.head_dim if "wq" in parts else 1
            first, total = 0, size * sum(parts.values())
            for part, count in parts.items():
                params[part] = HfParam(name, 1, first, total)
                first += size * count
    return params


# Tensors that some folders hold and no model reads.
_IGNORED_TENSORS = re.compile(r".*\.rotary_emb\.inv_freq")


def hf_shape(param: HfParam, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the folder of one layer of a parameter whose own shape is `shape`."""
    if param.is_vector:
        return (math.prod(shape),)
    if param.inputs is None:
        return shape
    return param.rows or math.prod(shape[param.inputs :]), math.prod(shape[: param.inputs])


def expected_tensors(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the folder of this model holds, by the tensor's name."""
    shapes, params = {}, hf_params(cfg)
    for name, index, spec in _iter_specs(cfg):
        shapes[params[name].name.format(*index)] = hf_shape(params[name], spec.shape[len(index) :])
    return shapes


def _iter_specs(cfg: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...], ParamSpec]]:
    """The parameter's name, index and declaration for each stored tensor. The index is empty outside of layers; else it
    is the layer, and for experts also the expert."""
    for name, specs in param_specs(cfg).items():
        if name == "layers":
            for n, spec in specs.items():
                stacked = spec.shape[: 2 if "experts" in spec.axes else 1]
                yield from ((n, index, spec) for index in np.ndindex(stacked))
        else:
            yield name, (), specs


class StoredTensor(NamedTuple):
    """A tensor as described in the header of its file."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str


class SafetensorsFolder:
    """The tensors of a model folder. Headers and index are read and compared; tensor data is not read.

    Raises:
      ModelFormatError: there are no safetensors files, a file is damaged, or the index does not match the files.
    """

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self._tensors: dict[str, StoredTensor] = {}
        weight_map = self._read_index()
        for file in sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_FILE]:
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dictionary)
                    tensor = opened.get_slice(name)
                    self._tensors[name] = StoredTensor(name, file, tuple(tensor.get_shape()), tensor.get_dtype())
        for name, file in (weight_map or {}).items():
            if name not in self._tensors or self._tensors[name].file != file:
                raise ModelFormatError(
                    f"{path / INDEX_FILE} lists {brief(name)} in {file}, which does not hold it: download the folder "
                    "again"
                )

    def _read_index(self) -> dict[str, str] | None:
        """The file of each tensor; None if there is no index."""
        index = self.path / INDEX_FILE
        if not index.exists():
            return None
        try:
            weight_map = json.loads(foreign.read_text(index))["weight_map"]
            assert isinstance(weight_map, dict)
        except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
            raise ModelFormatError(f"{index} cannot be read ({error!r}): it must be JSON with a weight_map") from None
        for name, file in weight_map.items():
            # Only a file name: a path could point at any file of the machine.
            if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
                raise ModelFormatError(
                    f"{index} lists {brief(name)} in {brief(file)}: only plain names of .safetensors files are read"
                )
        return weight_map

    def _open(self, file: str) -> Any:
        path = self.path / file
        if not path.exists():
            pickled = [p.name for p in sorted(self.path.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
            remedy = "download the folder again"
            if pickled:
                remedy = f"{pickled[0]} is a pickle, which runs code when it is read: convert it to safetensors"
            raise ModelFormatError(f"{path} does not exist: {remedy}")
        try:
            foreign.open_regular(path).close()  # a pipe would wait
            return safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelFormatError(f"{path} is damaged ({ascii(str(error))[:200]}): download it again") from None

    def check(self, cfg: DecoderConfig) -> None:
        """Compares names, shapes and dtypes with those that `cfg` requires.

        Raises:
          ModelFormatError: on the first difference.
        """
        self._tensors = _canonical(self._tensors, cfg)
        expected = expected_tensors(cfg)
        for name, expected_shape in expected.items():
            if name not in self._tensors:
                tied = "; if it is shared with the embedding, set tie_word_embeddings" if "lm_head" in name else ""
                raise ModelFormatError(f"{self.path} lacks the tensor {name}, which its config.json requires{tied}")
            _, file, shape, dtype = self._tensors[name]
            if shape != expected_shape:
                raise ModelFormatError(
                    f"{self.path / file}: {name} has shape {brief(shape)}, config.json requires {expected_shape}"
                )
            if dtype not in ("F32", "BF16", "F16"):
                raise ModelFormatError(
                    f"{self.path / file}: {name} is stored as {dtype}; F32, BF16 and F16 are supported"
                )
        unused = {"lm_head.weight"} if cfg.tie_embeddings else set()
        for name, (_, file, *_) in self._tensors.items():
            if name not in expected and name not in unused and not _IGNORED_TENSORS.fullmatch(name):
                raise ModelFormatError(
                    f"{self.path / file} has the tensor {brief(name)}, which this architecture has no use for: check "
                    "architectures in config.json"
                )

    def read(self, name: str, param: HfParam, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """The slice `index` of one layer's parameter, in the parameter's own layout; `shape` is its full shape."""
        bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
        # Opened for each tensor: pages that a memory mapping has read count as used memory until it is closed.
        with self._open(self._tensors[name].file) as opened:
            tensor = opened.get_slice(self._tensors[name].name)
            if param.is_vector:
                part = tensor[_flat(bounds, shape)]
            elif param.inputs is None:
                part = tensor[tuple(slice(a, b) for a, b in bounds)]
            else:
                i = param.inputs
                rows = _flat(bounds[i:], shape[i:])
                rows = slice(param.first_row + rows.start, param.first_row + rows.stop)
                part = tensor[rows, _flat(bounds[:i], shape[:i])].T
            return part.reshape([b - a for a, b in bounds])


def _canonical(tensors: dict[str, StoredTensor], cfg: DecoderConfig) -> dict[str, StoredTensor]:
    """The tensors under the names of a text model. Other parts of a model, such as one that sees images, are left out.
    A head that is stored in place of the embedding it is tied to serves as the embedding."""
    for prefix in ("language_model.model.", "model.language_model.", ""):
        if "model.embed_tokens.weight" not in tensors and f"{prefix}embed_tokens.weight" in tensors:
            text = {
                f"model.{name.removeprefix(prefix)}": tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and not name.startswith("lm_head.")
            }
            head = next((tensor for name, tensor in tensors.items() if name.endswith("lm_head.weight")), None)
            tensors = text | ({"lm_head.weight": head} if head else {})
    if cfg.tie_embeddings and "model.embed_tokens.weight" not in tensors and "lm_head.weight" in tensors:
        tensors = tensors | {"model.embed_tokens.weight": tensors["lm_head.weight"]}
    return tensors


def _flat(bounds: list[tuple[int, int]], shape: tuple[int, ...]) -> slice:
    """The range within flattened dimensions, of which only the first may be sliced."""
    (start, stop), rest = bounds[0], math.prod(shape[1:])
    assert all(b == (0, n) for b, n in zip(bounds[1:], shape[1:], strict=True)), (
        "only the first dimension may be sliced: heads are not divided"
    )
    return slice(start * rest, stop * rest)


def load(path: epath.Path, cfg: DecoderConfig, shardings: Any) -> Params:
    """Reads the weights of a folder into `shardings`, as `cfg.param_dtype`.

    Each device's shard is read separately, one layer at a time. So host memory holds one layer's tensor in addition to
    the result.

    Raises:
      ModelFormatError: the folder does not hold the tensors that `cfg` requires, or a weight is not finite.
      ConfigError: the weights are larger than the memory.
    """
    folder, dtype = SafetensorsFolder(path), jnp.dtype(cfg.param_dtype)
    folder.check(cfg)
    check_capacity(param_specs(cfg), shardings, cfg.param_dtype, from_folder=True)
    hf_params_of = hf_params(cfg)

    def read_tensor(name: str, param: HfParam, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        def read_shard(index: tuple[slice, ...]) -> np.ndarray:
            if "{}" not in name:
                return folder.read(name, param, shape, index).astype(dtype, copy=False)
            experts = [name.format(e) for e in range(shape[0])[index[0]]]
            return np.stack([folder.read(n, param, shape[1:], index[1:]).astype(dtype, copy=False) for n in experts])

        return jax.make_array_from_callback(shape, sharding, read_shard)

    def read_param(key_path: Any, spec: ParamSpec, sharding: NamedSharding) -> jax.Array:
        param, shape = hf_params_of[key_path[-1].key], spec.shape
        if "{}" not in param.name:
            return read_tensor(param.name, param, shape, sharding)
        layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        stack = jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
        update = jax.jit(
            jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0, out_shardings=sharding
        )
        for i in range(cfg.num_layers):
            layer = read_tensor(param.name.format(i, "{}"), param, shape[1:], layer_sharding)
            # Wait for each layer: otherwise the host would run ahead and hold all of them.
            stack = jax.block_until_ready(update(stack, layer, i, 0))
        return stack

    params = jax.tree_util.tree_map_with_path(read_param, param_specs(cfg), shardings, is_leaf=is_param_spec)
    _check_finite(path, cfg, params)
    return params


def _check_finite(path: epath.Path, cfg: DecoderConfig, params: Params) -> None:
    # Test the largest magnitude, which keeps NaN. This needs no boolean array as large as the weights.
    max_abs = jax.jit(lambda p: jax.tree.map(lambda x: jnp.abs(x).max(tuple(range(1, x.ndim))), p))
    finite = jax.tree.map(np.isfinite, fetch(max_abs(params)))
    for key_path, is_finite in jax.tree_util.tree_leaves_with_path(finite):
        if not is_finite.all():
            name = hf_params(cfg)[key_path[-1].key].name.format(int(np.argmin(is_finite)), "*")
            if jnp.dtype(cfg.param_dtype) == jnp.float16:
                raise ModelFormatError(
                    f"{path}: {name} has weights beyond {jnp.finfo(jnp.float16).max:g}, which float16 cannot hold: set "
                    "torch_dtype in its config.json to float32 or bfloat16"
                )
            raise ModelFormatError(
                f"{path}: {name} has weights that are not finite: the folder is damaged (download it again), or the "
                "model diverged in training"
            )


def write_safetensors(path: epath.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file with the permissions of any new file.

    Raises:
      StorageError: the file system refuses it.
    """
    with storage.translate_os_errors(path, sum(x.nbytes for x in tensors.values())):
        # The library makes a file that only its owner can read, whatever the umask. So let the file system choose.
        path.touch()
        mode = stat.S_IMODE(os.stat(path).st_mode)
        try:
            save_file(tensors, path, {"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from None
        os.chmod(path, mode)


def save(path: epath.Path, cfg: DecoderConfig, params: Params, dtype: str, shard_bytes: float = 5e9) -> None:
    """Writes the weights into the existing folder `path`: one file, or shards of at most `shard_bytes` and an index.

    Raises:
      StorageError: the file system refuses it.
    """
    num_bytes = {name: math.prod(shape) * jnp.dtype(dtype).itemsize for name, shape in expected_tensors(cfg).items()}
    hf_params_of = hf_params(cfg)
    # The parameters that a tensor is made of, one below the other.
    parts: dict[str, list[tuple[str, tuple[int, ...]]]] = {name: [] for name in num_bytes}
    for name, index, _ in _iter_specs(cfg):
        parts[hf_params_of[name].name.format(*index)].append((name, index))
    shards: list[list[str]] = [[]]
    filled = 0
    for hf_name in parts:
        if shards[-1] and filled + num_bytes[hf_name] > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(hf_name)
        filled += num_bytes[hf_name]
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            hf_name: np.concatenate([_to_hf(params, hf_params_of[n], n, index, dtype) for n, index in parts[hf_name]])
            for hf_name in shard
        }
        write_safetensors(path / file, tensors)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (path / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _to_hf(params: Params, param: HfParam, name: str, index: tuple[int, ...], dtype: str) -> np.ndarray:
    x = np.asarray(params["layers"][name][index] if index else params[name]).astype(jnp.dtype(dtype))
    shape = hf_shape(param._replace(rows=0), x.shape)
    return np.ascontiguousarray(x.reshape(shape) if param.inputs is None else x.reshape(shape[::-1]).T)
