"""Orbax checkpoints with a manifest that detects any damage.

Each checkpoint directory NAME has a manifest NAME.json, which is written last. It holds a hash of each file and a
fingerprint of the arrays, computed on the devices before saving. A checkpoint without a manifest is ignored. Restoring
compares files and arrays with the manifest.
"""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
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

# Messages of the operating system for failed writes.
_WRITE_ERRORS = tuple(
    map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE))
)
FS_SYNC_TIMEOUT = 60.0  # seconds within which a shared file system must show what another process wrote


@timing.timed("saving")
def save(path: epath.Path, tree: Any, owner: str = "") -> str:
    """Writes a tree of arrays to the directory `path`; returns its fingerprint once all of it is on disk.

    The manifest has the digest of the step that made the arrays, `owner`.

    Raises:
      storage.StorageError: the file system refused to write; the message has the path, the size and the reason.
    """
    digest = fingerprint(tree)
    storage.remove(manifest_path(path))
    remove_stale_tmp(path)
    verbosity = logging.get_verbosity()
    # Orbax's threads log a traceback for each error, also after the first one has ended the save and the run. A failed
    # write has one line of its own, so these logs stay off.
    logging.set_verbosity(logging.FATAL)
    try:
        with _without_timeouts(), _plain_path(path) as plain:
            ocp.save(plain, tree, overwrite=True)
    except Exception as error:  # of several types; their message has the operating system's
        reason = next((message for message in _WRITE_ERRORS if message.lower() in str(error).lower()), None)
        if reason is None:
            logging.set_verbosity(verbosity)
            raise
        remove_stale_tmp(path)
        size = sum(x.nbytes for x in jax.tree.leaves(tree))
        raise storage.StorageError(storage.write_error_message(path, size, reason)) from None
    logging.set_verbosity(verbosity)
    storage.write_checksummed(manifest_path(path), {"fingerprint": digest, "owner": owner, "files": _file_hashes(path)})
    return digest


def _without_timeouts() -> ocp.Context:
    """Time limits so long that they never expire.

    Orbax measures its limits by wall-clock time, which may be set during a save. A thread that waits for
    directories to be created has a separate limit, so directories are created first.
    """
    context = ocp.Context()
    context.asynchronous.timeout_secs = 2**31
    context.asynchronous.create_directories_asynchronously = False
    return context


@contextlib.contextmanager
def _plain_path(path: epath.Path) -> Iterator[epath.Path]:
    """The path under a name that Orbax and TensorStore can use, where its own is none.

    Orbax looks for the shares of the processes with a glob over the whole path: below `lr=[1e-5]` it would find none,
    and below `a*` those of another run. TensorStore takes only UTF-8.
    """
    name = str(path)
    is_utf8 = name == name.encode(errors="replace").decode()
    if storage.is_remote(path) or (is_utf8 and not glob.has_magic(name)):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    link = epath.Path(processes.broadcast_from_primary(_new_link_name))  # Orbax wants the same in all processes
    try:
        with contextlib.suppress(FileExistsError):  # by another process of this machine
            os.symlink(path.parent, link)
        yield link / path.name
        processes.barrier(f"{path.name} is saved or loaded")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)


def _new_link_name() -> str:
    return os.path.join(tempfile.gettempdir(), f"selfreward_jax-{secrets.token_hex(16)}")


def remove_stale_tmp(path: epath.Path) -> None:
    """Removes temporary directories of interrupted saves to `path`.

    A directory in which a thread of Orbax still writes cannot be removed; the next save tries again.
    """
    if processes.is_primary() and path.parent.exists():
        for entry in path.parent.iterdir():
            if entry.name.startswith(f"{path.name}.orbax-checkpoint-tmp"):
                with contextlib.suppress(OSError):
                    entry.rmtree()


@timing.timed("loading")
def restore(path: epath.Path, abstract_tree: Any, shardings: Any, owner: str = "") -> Any:
    """Reads a tree with the structure, shapes and dtypes of `like`, with the given shardings.

    Raises:
      storage.CorruptionError: the manifest is missing, the checkpoint differs from it, or its owner is not `owner`
        (if that is given).
    """
    manifest = storage.read_checksummed(manifest_path(path))
    if manifest is None:
        raise _corruption(path, f"{manifest_path(path)} is missing")
    if owner and manifest.get("owner") != owner:
        raise _corruption(path, f"its owner is {manifest.get('owner')}, and {owner} here")
    if difference := _difference(manifest["files"], _file_hashes(path)):
        raise _corruption(path, difference)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_tree, shardings)
    with _plain_path(path) as plain:
        tree = ocp.load(plain, abstract)
    if (digest := fingerprint(tree)) != manifest["fingerprint"]:
        raise _corruption(path, f"the arrays have fingerprint {digest}, and {manifest['fingerprint']} was saved")
    return tree


def _corruption(path: epath.Path, reason: str) -> storage.CorruptionError:
    return storage.CorruptionError(f"checkpoint {path} is not what was saved ({reason})", path, manifest_path(path))


def latest_step(path: epath.Path) -> int | None:
    """The highest step saved below `path`; None if there is none."""
    return processes.broadcast_from_primary(lambda: max(_steps(path), default=None))


def restore_latest(path: epath.Path, abstract_state: Any, shardings: Any, owner: str = "") -> Any:
    """The state of the highest intact step below `path`; None if there is none.

    Corrupt steps, and those of another owner, are quarantined, with a warning.
    """
    while (step := latest_step(path)) is not None:
        try:
            return restore(path / str(step), abstract_state, shardings, owner)
        except storage.CorruptionError as error:
            # A step exists as long as its manifest does, so the manifest is moved last.
            names = [storage.quarantine(p) for p in (path / str(step), manifest_path(path / str(step)))]
            where = " and ".join(filter(None, names))
            storage.warn(f"{error.reason}; quarantined as {where}, training resumes from an earlier state")
    return None


def save_step(path: epath.Path, step: int, state: Any, owner: str = "", max_to_keep: int = 2) -> None:
    """Writes `state` as step `step` below `path`, then removes all but the last `max_to_keep` steps."""
    save(path / str(step), state, owner)
    for old in sorted(_steps(path))[:-max_to_keep] if processes.is_primary() else []:
        storage.remove(manifest_path(path / str(old)))
        storage.remove(path / str(old))


def _steps(path: epath.Path) -> list[int]:
    entries = path.iterdir() if path.exists() else ()
    return [int(p.stem) for p in entries if p.suffix == ".json" and p.stem.isdigit()]


def manifest_path(path: epath.Path) -> epath.Path:
    """The path of the manifest of the checkpoint at `path`."""
    return path.with_name(f"{path.name}.json")


def _file_hashes(path: epath.Path) -> dict[str, str]:
    """SHA-256 of each file below `path`, by relative path. Each process reads its share of the files."""
    names = processes.broadcast_from_primary(lambda: sorted(_list_files(path, "")))
    own = names[processes.process_index() :: processes.process_count()]
    with ThreadPoolExecutor(4) as threads:
        hashes = list(threads.map(lambda name: _hash(path / name), own))
    shares = processes.all_gather_json(dict(zip(own, hashes, strict=True)))
    return {name: digest for share in shares for name, digest in share.items()}


def _list_files(path: epath.Path, prefix: str) -> list[str]:
    entries = list(path.iterdir()) if path.exists() else []
    folders = [p for p in entries if p.is_dir()]
    below = [name for p in folders for name in _list_files(p, f"{prefix}{p.name}/")]
    return [prefix + p.name for p in entries if p not in folders] + below


def _hash(path: epath.Path) -> str:
    deadline = time.monotonic() + FS_SYNC_TIMEOUT
    while not path.exists() and time.monotonic() < deadline:  # the primary process has seen it
        time.sleep(0.2)
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _difference(saved: dict[str, str], current: dict[str, str]) -> str:
    """The first file that differs from what was saved, with the reason; "" if there is none."""
    for name in sorted(saved.keys() | current.keys()):
        if name not in current:
            return f"{name} is missing"
        if saved.get(name) != current[name]:
            return f"{name} has changed" if name in saved else f"{name} was not saved"
    return ""
