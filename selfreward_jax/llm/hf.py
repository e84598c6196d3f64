"""A Hugging Face folder <-> (LlamaConfig, params). safetensors alone, one file or shards with an index.

Our weights are stacked over layers and split by head; theirs are one matrix [out, in] a layer. One table says which
is which; loading reads, for each device, the bytes of its own part and nothing else.
"""

import json
import math
import re
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

from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.llm.llama import LlamaConfig, Params, ParamSpec, param_specs
from selfreward_jax.parallel.arrays import fetch

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"


class HfParam(NamedTuple):
    """Where one of our weights is in a folder: its name, with {} for the layer, and how many of our leading dimensions
    are inputs. Theirs is [outputs, inputs] with each side flattened; None: the same shape, flattened."""

    name: str
    inputs: int | None


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
# Tensors that some folders carry and no model reads.
_IGNORED_TENSORS = re.compile(r".*\.rotary_emb\.inv_freq")


def hf_shape(param: HfParam, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the folder of one layer of a weight whose own shape is `shape`."""
    if param.name.endswith("bias"):
        return (math.prod(shape),)
    if param.inputs is None:
        return shape
    return math.prod(shape[param.inputs :]), math.prod(shape[: param.inputs])


def expected_tensors(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a folder with its shape, by name."""
    shapes = {}
    for name, layer, weight in _declared(cfg):
        shape = weight.shape if layer is None else weight.shape[1:]
        shapes[HF_PARAM_MAP[name].name.format(layer)] = hf_shape(HF_PARAM_MAP[name], shape)
    return shapes


def _declared(cfg: LlamaConfig) -> Iterator[tuple[str, int | None, ParamSpec]]:
    for name, declared in param_specs(cfg).items():
        if name == "layers":
            yield from ((n, i, w) for n, w in declared.items() for i in range(cfg.num_layers))
        else:
            yield name, None, declared


class StoredTensor(NamedTuple):
    """What a file's header says of a tensor."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class SafetensorsFolder:
    """The tensors of a model folder: opened and checked against each other, not read.

    Raises:
      HubError: there are no safetensors, a file is damaged, or the index does not describe them.
    """

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self._tensors: dict[str, StoredTensor] = {}
        where = self._index()
        for file in sorted(set(where.values())) if where is not None else [ONE_FILE]:
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dictionary)
                    tensor = opened.get_slice(name)
                    self._tensors[name] = StoredTensor(file, tuple(tensor.get_shape()), tensor.get_dtype())
        for name, file in (where or {}).items():
            if name not in self._tensors or self._tensors[name].file != file:
                raise ModelFormatError(
                    f"{path / INDEX} places {name} in {file}, which does not hold it: download the folder again"
                )

    def _index(self) -> dict[str, str] | None:
        index = self.path / INDEX
        if not index.exists():
            return None
        try:
            where = json.loads(index.read_text())["weight_map"]
            assert isinstance(where, dict)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise ModelFormatError(f"{index} cannot be read ({error!r}): it must be JSON with a weight_map") from None
        for name, file in where.items():
            # A name alone: a path could point at any file of the machine.
            if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
                raise ModelFormatError(
                    f"{index} places {name} in {file!r}: only plain names of .safetensors files are read"
                )
        return where

    def _open(self, file: str) -> Any:
        path = self.path / file
        if not path.exists():
            pickled = [p.name for p in sorted(self.path.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
            instead = f"; {pickled[0]} is a pickle, which runs code when it is read: convert it to safetensors"
            raise ModelFormatError(f"{path} is not there{instead if pickled else ''}")
        try:
            return safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelFormatError(f"{path} is damaged ({error}): download it again") from None

    def check(self, cfg: LlamaConfig) -> None:
        """Compares names, shapes and dtypes with what `cfg` asks for.

        Raises:
          HubError: on the first difference.
        """
        wanted = expected_tensors(cfg)
        for name, shape in wanted.items():
            if name not in self._tensors:
                tied = (
                    "; if the model shares it with the embedding, set tie_word_embeddings" if "lm_head" in name else ""
                )
                raise ModelFormatError(f"{self.path} lacks the tensor {name} that its config.json asks for{tied}")
            file, found, dtype = self._tensors[name]
            if found != shape:
                raise ModelFormatError(f"{self.path / file}: {name} has shape {found}, config.json asks for {shape}")
            if dtype not in ("F32", "BF16", "F16"):
                raise ModelFormatError(
                    f"{self.path / file}: {name} is stored as {dtype}; F32, BF16 and F16 are supported"
                )
        idle = {"lm_head.weight"} if cfg.tie_embeddings else set()
        for name, (file, *_) in self._tensors.items():
            if name not in wanted | dict.fromkeys(idle) and not _IGNORED_TENSORS.fullmatch(name):
                raise ModelFormatError(
                    f"{self.path / file} has the tensor {name}, which this architecture has no use for"
                )

    def read(self, name: str, place: HfParam, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of one layer's weight, in our layout; `shape` is the whole weight's."""
        bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
        # Opened for each tensor: what a mapping has touched counts as ours until it is closed.
        with self._open(self._tensors[name].file) as opened:
            tensor = opened.get_slice(name)
            if place.name.endswith("bias"):
                part = tensor[_flat(bounds, shape)]
            elif place.inputs is None:
                part = tensor[tuple(slice(a, b) for a, b in bounds)]
            else:
                i = place.inputs
                part = tensor[_flat(bounds[i:], shape[i:]), _flat(bounds[:i], shape[:i])].T
            return part.reshape([b - a for a, b in bounds])


def _flat(bounds: list[tuple[int, int]], shape: tuple[int, ...]) -> slice:
    """The range of flattened dimensions of which the first alone may be cut."""
    (start, stop), rest = bounds[0], math.prod(shape[1:])
    assert all(b == (0, n) for b, n in zip(bounds[1:], shape[1:], strict=True)), "only whole heads are split"
    return slice(start * rest, stop * rest)


def load(path: epath.Path, cfg: LlamaConfig, shardings: Any) -> Params:
    """Reads the weights of a folder into `shardings`, as `cfg.param_dtype`.

    Each device's part is read by itself, a layer at a time: host memory holds one layer's tensor beside the result.

    Raises:
      HubError: the folder does not hold what `cfg` asks for, or a weight is not finite.
    """
    folder, dtype = SafetensorsFolder(path), jnp.dtype(cfg.param_dtype)
    folder.check(cfg)

    def tensor(name: str, place: HfParam, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return folder.read(name, place, shape, index).astype(dtype, copy=False)

        return jax.make_array_from_callback(shape, sharding, part)

    def weight(key_path: Any, declared: ParamSpec, sharding: NamedSharding) -> jax.Array:
        place, shape = HF_PARAM_MAP[key_path[-1].key], declared.shape
        if "{}" not in place.name:
            return tensor(place.name, place, shape, sharding)
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        stack = jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
        put = jax.jit(jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0, out_shardings=sharding)
        for i in range(cfg.num_layers):
            # One layer at a time: without waiting, the host would run ahead and hold them all.
            stack = jax.block_until_ready(put(stack, tensor(place.name.format(i), place, shape[1:], of_layer), i, 0))
        return stack

    is_weight = lambda x: isinstance(x, ParamSpec)  # noqa: E731
    params = jax.tree_util.tree_map_with_path(weight, param_specs(cfg), shardings, is_leaf=is_weight)
    _check_finite(path, params)
    return params


def _check_finite(path: epath.Path, params: Params) -> None:
    # The largest magnitude tells (NaN stays NaN), without an array of truth values as large as the weights.
    largest = jax.jit(lambda p: jax.tree.map(lambda x: jnp.abs(x).max(tuple(range(1, x.ndim))), p))
    good = jax.tree.map(np.isfinite, fetch(largest(params)))
    for key_path, rows in jax.tree_util.tree_leaves_with_path(good):
        if not rows.all():
            name = HF_PARAM_MAP[key_path[-1].key].name.format(int(np.argmin(rows)))
            raise ModelFormatError(
                f"{path}: {name} has weights that are not finite: the folder is damaged, or its training was"
            )


def save(path: epath.Path, cfg: LlamaConfig, params: Params, dtype: str, shard_bytes: float = 5e9) -> None:
    """Writes the weights into the existing folder `path`: one file, or shards of at most `shard_bytes` and an index."""
    size = {name: math.prod(shape) * jnp.dtype(dtype).itemsize for name, shape in expected_tensors(cfg).items()}
    shards: list[list[tuple[str, int | None, str]]] = [[]]
    filled = 0
    for ours, layer, _ in _declared(cfg):
        theirs = HF_PARAM_MAP[ours].name.format(layer)
        if shards[-1] and filled + size[theirs] > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((ours, layer, theirs))
        filled += size[theirs]
    where = {}
    for number, shard in enumerate(shards, 1):
        file = ONE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(
            {theirs: _to_hf(params, ours, layer, dtype) for ours, layer, theirs in shard},
            path / file,
            {"format": "pt"},
        )
        where |= {theirs: file for _, _, theirs in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(size.values())}, "weight_map": dict(sorted(where.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _to_hf(params: Params, ours: str, layer: int | None, dtype: str) -> np.ndarray:
    x = np.asarray(params[ours] if layer is None else params["layers"][ours][layer]).astype(jnp.dtype(dtype))
    place = HF_PARAM_MAP[ours]
    shape = hf_shape(place, x.shape)
    return np.ascontiguousarray(x.reshape(shape) if place.inputs is None else x.reshape(shape[::-1]).T)
