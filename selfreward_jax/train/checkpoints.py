"""Orbax checkpoints. In a file system a checkpoint directory exists only when it is whole: Orbax writes beside it and
renames. In an object store, where nothing can be renamed, it is whole when it holds the mark that Orbax writes last."""

from typing import Any

import jax
from etils import epath
from orbax.checkpoint.experimental import v1 as ocp

from selfreward_jax import storage
from selfreward_jax.parallel import processes

COMMITTED = "commit_success.txt"


def save(path: epath.Path, tree: Any) -> None:
    """Writes a tree of arrays to the new directory `path`, and returns when it is whole on disk."""
    ocp.save(path, tree, overwrite=True)


def restore(path: epath.Path, like: Any, shardings: Any) -> Any:
    """Reads a tree with the structure, shapes and dtypes of `like`, straight into `shardings`."""
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
    return ocp.load(path, abstract)


def latest_step(path: epath.Path) -> int | None:
    """The highest step saved under `path`, None if there is none."""
    return processes.agreed(lambda: max(_steps(path), default=None))


def save_step(path: epath.Path, step: int, state: Any) -> None:
    """Writes `state` as step `step` under `path`, then removes the older ones."""
    save(path / str(step), state)
    for old in _steps(path) if processes.first() else []:
        if old < step:
            (path / str(old)).rmtree()


def _steps(path: epath.Path) -> list[int]:
    found = [p for p in path.iterdir() if p.name.isdigit()] if path.exists() else []
    whole = [p for p in found if not storage.is_remote(p) or (p / COMMITTED).exists()]
    return [int(p.name) for p in whole]
