"""A run: settings, working directory, models and log. Opened for reading, or claimed for writing."""

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import config, foreign, storage
from selfreward_jax.config import diff, validate
from selfreward_jax.config.comments import flatten_config
from selfreward_jax.data import readers
from selfreward_jax.parallel import processes
from selfreward_jax.parallel.mesh import make_mesh, num_slices, sampling_mesh
from selfreward_jax.parallel.sharding import batch_divisor
from selfreward_jax.runs.log import EventLog
from selfreward_jax.runs.models import ModelStore
from selfreward_jax.runs.workspace import Workspace
from selfreward_jax.storage.lock import workdir_lock
from selfreward_jax.telemetry import terminal

CONFIG_FILE = "config.json"
Dependents = Callable[[str], tuple[str, ...]]  # from a setting to patterns of artifacts that it decides


@dataclass(frozen=True)
class Run:
    """What the stages share.

    cfg: the settings.
    files: the working directory.
    models: the models in it, on this machine's devices.
    log: events.jsonl.
    """

    cfg: ConfigDict
    files: Workspace
    models: ModelStore
    log: EventLog

    @property
    def workdir(self) -> epath.Path:
        """The path of the working directory."""
        return self.files.path


def make_run(cfg: ConfigDict, workdir: str, devices: Sequence[jax.Device] | None = None) -> Run:
    """A run of these settings, sharded as config.parallel says over all devices, or those given. Reads and writes
    nothing.

    Raises:
      ConfigError: the devices cannot be arranged so, or the working directory cannot be reached.
    """
    files = Workspace(cfg, workdir)
    p = cfg.parallel
    try:
        mesh = make_mesh(p.fsdp, p.tensor, p.replicas, devices)
        models = ModelStore(cfg, files, mesh, sampling_mesh(mesh, p.sampling_tensor))
    except ValueError as error:
        raise config.ConfigError(str(error)) from None
    return Run(cfg, files, models, EventLog(files.path))


def stored_settings(workdir: epath.Path) -> ConfigDict:
    """The settings of the run in a working directory.

    Raises:
      ConfigError: there is no run, or another version of the settings made it.
    """
    stored = _read_config(workdir)
    if stored is None or "iterations" not in stored:
        raise config.ConfigError(f"workdir {workdir} holds no run: it has no {CONFIG_FILE} of one")
    return config.from_stored(stored)


def open_run(workdir: str, parallel: ConfigDict | None = None) -> Run:
    """Opens the run of a working directory for reading.

    Args:
      workdir: the working directory.
      parallel: how to shard it; if not given as its own settings say, or unsharded where this machine's devices
        cannot be arranged so.

    Raises:
      ConfigError: there is no run, or another version of the settings made it.
    """
    cfg = stored_settings(epath.Path(workdir))
    if parallel is not None:
        cfg.parallel = parallel.copy_and_resolve_references()
    p = cfg.parallel
    try:
        sampling_mesh(make_mesh(p.fsdp, p.tensor, p.replicas), p.sampling_tensor)
    except ValueError:  # made on a machine with other devices
        p.fsdp = p.tensor = p.sampling_tensor = 1
        p.replicas = num_slices(jax.devices())
    return make_run(cfg, workdir)


@contextlib.contextmanager
def claim(run: Run, dependents: Dependents, allow_config_changes: bool = False) -> Iterator[None]:
    """Holds the working directory for writing. config.json and the log are written with the lock held.

    Args:
      run: from `make_run`.
      dependents: patterns of the artifacts that a setting decides.
      allow_config_changes: accept other settings than those stored, where they decide nothing that is made yet.

    Raises:
      ConfigError: the settings cannot work here, or the directory holds a run with other settings.
      StorageError: another run holds the directory.
    """
    _check_agreement(run)
    check(run, dependents, allow_config_changes)  # before the lock: a refused start leaves no trace
    is_new = not run.workdir.exists()
    with contextlib.ExitStack() as held:
        held.callback(_remove_if_empty, run.workdir, is_new)
        try:
            held.enter_context(workdir_lock(run.workdir))
        except OSError as error:
            raise config.ConfigError(
                f"workdir {run.workdir} cannot be written ({error.strerror}): use another --workdir"
            ) from None
        settings, changes = check(run, dependents, allow_config_changes)
        stored = storage.read_json(run.workdir / CONFIG_FILE)
        # The log first: it holds both hashes, so a kill in between leaves the two in agreement.
        run.log.begin(diff.config_hash(settings), diff.config_hash(stored or settings))
        storage.write_json(run.workdir / CONFIG_FILE, settings)
        for change in changes:
            run.log.event(accepted=change.field, old=change.old, new=change.new)
        yield


def _check_agreement(run: Run) -> None:
    """Raises ConfigError where several processes were started with different settings, or from different code."""
    if processes.process_count() == 1:
        return
    own = {"workdir": str(run.workdir), "the code": _code_digest(), **flatten_config(run.cfg)}
    everywhere = processes.all_gather_json(own)
    first = everywhere[0]
    for index, other in enumerate(everywhere):
        for name in sorted(first.keys() | other.keys()):
            if (a := first.get(name)) != (b := other.get(name)):
                raise config.ConfigError(
                    f"{name} is {a!r} in process 0 and {b!r} in process {index}: start all processes with the same "
                    "settings and the same version"
                )


def _code_digest() -> str:
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def check(
    run: Run, dependents: Dependents, allow_config_changes: bool = False
) -> tuple[dict[str, Any], list[diff.Change]]:
    """Checks the settings against this machine and against the working directory. Writes nothing.

    Returns:
      The settings to store, and what differs from those stored.

    Raises:
      ConfigError: as `claim`.
    """
    cfg, mesh = run.cfg, run.models.mesh
    validate.validate(cfg, batch_divisor(mesh), run.models.platform)
    if not cfg.model.init:  # otherwise when its folder is read
        run.models.check_divisible(None)
    if cfg.report.wandb and importlib.util.find_spec("wandb") is None:
        raise config.ConfigError(
            f'report.wandb is {cfg.report.wandb!r}, but wandb is not installed: pip install "selfreward-jax[wandb]"'
        )
    settings = json.loads(cfg.to_json())  # through JSON, so that a tuple equals the list it is stored as
    inputs = processes.broadcast_from_primary(lambda: _input_hashes(cfg))
    if hashes := {path: digest for path, (_, digest) in inputs.items() if digest}:
        settings["inputs"] = hashes
    stored = _read_config(run.workdir)
    if stored is None:
        _check_unclaimed(run)
        return settings, []
    try:
        config.from_stored(stored)
    except config.ConfigError as error:
        raise config.ConfigError(f"workdir {run.workdir}: {error}: use another --workdir") from None
    fields = {f"{diff.FILE_PREFIX}{path}": field for path, (field, _) in inputs.items()}
    changes = [c._replace(named_by=fields.get(c.field, "")) for c in diff.changes(stored, settings)]
    find = lambda field: run.files.first_match(dependents(field))  # noqa: E731
    diff.check_changes(run.workdir, changes, allow_config_changes, find)
    # A shorter run in the directory of a longer one keeps the longer one's goal.
    return settings | {"iterations": max(settings["iterations"], stored["iterations"])}, changes


def _check_unclaimed(run: Run) -> None:
    """Without config.json the manifests say whose the artifacts are.

    Raises:
      ConfigError: one was made with other settings.
    """
    for folder, stage in run.files.complete_artifacts():
        with contextlib.suppress(storage.CorruptionError):  # the loop quarantines it
            made_with = (run.files.jsonl(folder, stage).manifest or {}).get("config")
            if made_with != run.files.config_hash:
                raise config.ConfigError(
                    f"workdir {run.workdir} has no {CONFIG_FILE}; {folder}/{stage}.jsonl was made with other settings "
                    f"(hash {made_with}, not {run.files.config_hash}): restore it, or use another --workdir"
                )


def _remove_if_empty(workdir: epath.Path, is_new: bool) -> None:
    """Removes a folder that this start made, where the seeds were refused and nothing is in it."""
    if is_new and "://" not in str(workdir):
        with contextlib.suppress(OSError):
            os.rmdir(workdir)


def rollback(run: Run) -> None:
    """Removes config.json and what this start logged where no artifact was made, so that other settings may use the
    directory."""
    if run.files.jsonl("seed", "documents").manifest is None:
        terminal.discard_log()
        run.log.discard()
        storage.remove(run.workdir / CONFIG_FILE)


def _input_hashes(cfg: ConfigDict) -> dict[str, tuple[str, str]]:
    """The user's own files: the setting that names each, and the SHA-256 of its contents; empty if it is no file.

    Other contents under the same name make another run.
    """
    hashes: dict[str, tuple[str, str]] = {}
    sources = ("data.ift", "data.eft", "prompts.source")
    for field in (*sources, "judge.template", "prompts.template", "pairwise.template", "meta.template"):
        section, name = field.split(".")
        source = cfg[section][name]
        with readers.naming(field):
            names = readers.source_files(source) if source and field in sources else [source]
        for path in map(epath.Path, filter(None, names)):
            hashes.setdefault(str(path), (field, _hash(field, path)))
    return hashes


def _hash(field: str, path: epath.Path) -> str:
    try:
        if not path.is_file():
            return ""
        with foreign.open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise config.ConfigError(
            f"{field}: {path} cannot be read ({error.strerror}): give a file that can be read"
        ) from None


def _read_config(workdir: epath.Path) -> dict[str, Any] | None:
    """What config.json holds; None if there is none. It is the one file that a run cannot regenerate.

    Raises:
      ConfigError: it is damaged, or does not hold an object.
    """
    try:
        stored = storage.read_json(workdir / CONFIG_FILE)
    except storage.CorruptionError as error:
        raise config.ConfigError(f"{error.reason}: restore it, or use another --workdir") from None
    if not isinstance(stored, dict) and storage.exists(workdir / CONFIG_FILE):
        raise config.ConfigError(
            f"{workdir / CONFIG_FILE} holds {stored!r:.40} and not settings: restore it, or use another --workdir"
        )
    return stored
