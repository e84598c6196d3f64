"""Orbax checkpoints that are read back only as they were written.

Beside a checkpoint's directory NAME lies NAME.json, written last: a hash of each file, and a fingerprint of the arrays
taken on the devices before they were saved. Without it a checkpoint does not count; with it, what is read back is
compared with both.
"""

import contextlib
import errno
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint.experimental import v1 as ocp

from selfreward_jax import storage
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing
from selfreward_jax.train.fingerprint import fingerprint

# What file systems answer when they refuse to write.
_REFUSALS = tuple(
    map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE))
)
FS_SYNC_TIMEOUT = 60.0  # seconds within which a shared file system must show what another process wrote


@timing.timed("saving")
def save(path: epath.Path, tree: Any) -> str:
    """Writes a tree of arrays to the directory `path`, and returns its fingerprint when it is whole on disk."""
    found = fingerprint(tree)
    storage.remove(manifest_path(path))
    remove_stale_tmp(path)
    said_before = logging.get_verbosity()
    # Threads of Orbax's print the traceback of what they raise, too; one may do so after the first has ended the save,
    # and with it the run: then nothing is to be heard of them any more.
    logging.set_verbosity(logging.FATAL)
    try:
        with _without_timeouts():
            ocp.save(path, tree, overwrite=True)
    except Exception as error:  # of several kinds; what the file system said is in their words
        said = next((words for words in _REFUSALS if words.lower() in str(error).lower()), None)
        if said is None:
            logging.set_verbosity(said_before)
            raise
        remove_stale_tmp(path)
        size = sum(x.nbytes for x in jax.tree.leaves(tree))
        raise storage.StorageError(storage.cannot_write(path, size, said)) from None
    logging.set_verbosity(said_before)
    storage.write_checksummed(manifest_path(path), {"fingerprint": found, "files": _hashes(path)})
    return found


def _without_timeouts() -> ocp.Context:
    """Orbax measures its limits by the clock on the wall, which may be set while it saves: limits that no such step
    comes near. What waits in a thread until another has made the directories has one of its own, so they are made
    before."""
    context = ocp.Context()
    context.asynchronous.timeout_secs = 2**31
    context.asynchronous.create_directories_asynchronously = False
    return context


def remove_stale_tmp(path: epath.Path) -> None:
    """Removes what a save that never ended left beside `path`; the next save tries again what cannot be removed yet,
    for a thread of Orbax's still writes there."""
    if processes.is_primary() and path.parent.exists():
        for found in path.parent.iterdir():
            if found.name.startswith(f"{path.name}.orbax-checkpoint-tmp"):
                with contextlib.suppress(OSError):
                    found.rmtree()


@timing.timed("loading")
def restore(path: epath.Path, like: Any, shardings: Any) -> Any:
    """Reads a tree with the structure, shapes and dtypes of `like`, straight into `shardings`.

    Raises:
      storage.Damaged: it is not what was saved.
    """
    seal = storage.read_checksummed(manifest_path(path))
    fault = f"{manifest_path(path)} is not there"
    if seal is not None:
        fault = _difference(seal["files"], _hashes(path))
    if fault:
        raise storage.CorruptionError(f"checkpoint {path} is not what was saved ({fault})", path, manifest_path(path))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
    tree = ocp.load(path, abstract)
    if (found := fingerprint(tree)) != seal["fingerprint"]:
        fault = f"arrays of fingerprint {found} were read, and {seal['fingerprint']} saved"
        raise storage.CorruptionError(f"checkpoint {path} is not what was saved ({fault})", path, manifest_path(path))
    return tree


def latest_step(path: epath.Path) -> int | None:
    """The highest step saved under `path`, None if there is none."""
    return processes.broadcast_from_primary(lambda: max(_steps(path), default=None))


def restore_latest(path: epath.Path, like: Any, shardings: Any) -> Any:
    """The state of the highest step that is what was saved; one that is not gets another name, with a warning. None if
    there is no step."""
    while (step := latest_step(path)) is not None:
        try:
            return restore(path / str(step), like, shardings)
        except storage.CorruptionError as error:
            # What names a step counts it: the seal goes last.
            names = [storage.quarantine(p) for p in (path / str(step), manifest_path(path / str(step)))]
            storage.warn(f"{error.why}; set aside as {' and '.join(filter(None, names))}, going on from before it")
    return None


def save_step(path: epath.Path, step: int, state: Any, keep: int = 2) -> None:
    """Writes `state` as step `step` under `path`, then removes all but the last `keep`."""
    save(path / str(step), state)
    for old in sorted(_steps(path))[:-keep] if processes.is_primary() else []:
        storage.remove(manifest_path(path / str(old)))
        storage.remove(path / str(old))


def _steps(path: epath.Path) -> list[int]:
    found = path.iterdir() if path.exists() else ()
    return [int(p.stem) for p in found if p.suffix == ".json" and p.stem.isdigit()]


def manifest_path(path: epath.Path) -> epath.Path:
    return path.with_name(f"{path.name}.json")


def _hashes(path: epath.Path) -> dict[str, str]:
    """SHA-256 of each file below `path`, by its name from there: each process reads its share."""
    names = processes.broadcast_from_primary(lambda: sorted(_files(path, "")))
    mine = names[processes.process_index() :: processes.process_count()]
    with ThreadPoolExecutor(4) as threads:
        hashes = list(threads.map(lambda name: _hash(path / name), mine))
    shares = processes.all_gather_json(dict(zip(mine, hashes, strict=True)))
    return {name: found for share in shares for name, found in share.items()}


def _files(path: epath.Path, within: str) -> list[str]:
    found = list(path.iterdir()) if path.exists() else []
    folders = [p for p in found if p.is_dir()]
    below = [name for p in folders for name in _files(p, f"{within}{p.name}/")]
    return [within + p.name for p in found if p not in folders] + below


def _hash(path: epath.Path) -> str:
    given_up = time.monotonic() + FS_SYNC_TIMEOUT
    while not path.exists() and time.monotonic() < given_up:  # another process saw it
        time.sleep(0.2)
    found = hashlib.sha256()
    with path.open("rb") as f:
        while part := f.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _difference(saved: dict[str, str], found: dict[str, str]) -> str:
    """The first file that is not as it was saved; "" if all are."""
    for name in sorted(saved.keys() | found.keys()):
        if name not in found:
            return f"{name} is not there"
        if saved.get(name) != found[name]:
            return f"{name} has changed" if name in saved else f"{name} was not saved"
    return ""
