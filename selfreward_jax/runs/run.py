"""One run: its settings, its working directory, its mesh, and the models that lie there."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import config, storage
from selfreward_jax.config import diff, validate
from selfreward_jax.data import readers
from selfreward_jax.llm import lora
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.llama import LlamaConfig, Params, abstract_params, param_specs
from selfreward_jax.llm.self_attention import resolve_impl
from selfreward_jax.parallel import preemption, processes
from selfreward_jax.parallel.arrays import reshard
from selfreward_jax.parallel.mesh import make_mesh, num_slices, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, batch_divisor, param_shardings
from selfreward_jax.sampling.engine import Engine, stable_hash32
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry import timing
from selfreward_jax.train import checkpoints

Row = dict[str, Any]


class Run:
    """Settings, directory and mesh, and what the stages share.

    Args:
      cfg: checked settings.
      directory: the working directory; made if it is not there.
      claim: whether the run will write there, and so must be of the same settings as what is there.
      allow_config_changes: or of settings that differ in what nothing was made with yet.

    Raises:
      config.ConfigError: the settings cannot work, or the directory holds a run with other ones.
    """

    def __init__(self, cfg: ConfigDict, directory: str, claim: bool = True, allow_config_changes: bool = False) -> None:
        self.cfg, self.config_hash = cfg, diff.config_hash(json.loads(cfg.to_json()))
        if claim:
            validate.validate(cfg, row_devices=1)
        self.workdir = epath.Path(directory)
        if "://" not in directory:
            self.workdir = self.workdir.expanduser().resolve()  # Orbax wants absolute paths
        try:
            self.workdir.exists()
        except (ImportError, ValueError) as error:  # of the file system that such an address needs
            raise config.ConfigError(
                f'workdir {directory} cannot be reached ({error}): gs:// needs pip install "selfreward-jax[gs]"'
            ) from None
        along = cfg.parallel
        try:
            self.mesh = make_mesh(along.fsdp, along.tensor, along.replicas)
            self.sampling_mesh = sampling_mesh(self.mesh, along.sampling_tensor)
        except ValueError as error:
            raise config.ConfigError(str(error)) from None
        if claim:
            self._claim(allow_config_changes)
        self._logged = self._noted = time.monotonic()
        self._lines: list[str] = []
        self._chat: Chat | None = None
        self._held: tuple[str, Engine] | None = None

    @classmethod
    def reopen(cls, directory: str, parallel: ConfigDict | None = None) -> "Run":
        """The run of a working directory, to be read; laid out by `parallel` if it is given, else as it says itself, or
        whole on each device where this machine does not allow that.

        Raises:
          config.ConfigError: there is no run, or it was made by another version of the settings.
        """
        stored = _settings_of(epath.Path(directory))
        if not isinstance(stored, dict) or "iterations" not in stored:
            raise config.ConfigError(f"workdir {directory} holds no run: there is no config.json of one")
        cfg = config.from_stored(stored)
        if parallel is not None:
            cfg.parallel = parallel.copy_and_resolve_references()
        along = cfg.parallel
        try:
            sampling_mesh(make_mesh(along.fsdp, along.tensor, along.replicas), along.sampling_tensor)
        except ValueError:  # made on a machine unlike this one: what is read here lies as it can
            along.fsdp = along.tensor = along.sampling_tensor = 1
            along.replicas = num_slices(jax.devices())
        return cls(cfg, directory, claim=False)

    def check(self, allow_config_changes: bool = False) -> None:
        """Raises ConfigError where these settings cannot work on these devices, or the directory has other ones."""
        validate.validate(self.cfg, batch_divisor(self.mesh), self.mesh.devices.flat[0].platform)
        if not self.cfg.model.init:  # else when its folder has been read
            self.check_layouts(None)
        if self.cfg.report.wandb and importlib.util.find_spec("wandb") is None:
            raise config.ConfigError(
                f"report.wandb is {self.cfg.report.wandb!r}, and wandb is not installed: install it"
            )
        # Through JSON and back, so that a tuple compares equal to the list it was stored as.
        now = json.loads(self.cfg.to_json())
        if inputs := processes.broadcast_from_primary(self._inputs):
            now["inputs"] = inputs
        old = _settings_of(self.workdir)
        self._changes = diff.changes(old, now) if old is not None else []
        diff.check_changes(self.workdir, self._changes, allow_config_changes)
        # A shorter run in the directory of a longer one takes nothing away.
        self._settings = now | {"iterations": max(now["iterations"], old["iterations"] if old else 0)}

    def _claim(self, allow_config_changes: bool) -> None:
        """Writes config.json, or makes sure that the one there is ours; accepted changes wait for `begin`."""
        try:
            self.check(allow_config_changes)
            if processes.is_primary() and not storage.is_remote(self.workdir):
                self.workdir.mkdir(parents=True, exist_ok=True)
            if not self._changes:
                storage.write_json(self.workdir / "config.json", self._settings)
        except OSError as error:
            raise config.ConfigError(
                f"workdir {self.workdir} cannot be written ({error.strerror}): use another --workdir"
            ) from None

    def start(self) -> None:
        """Puts the accepted changes into config.json, and the start into the log: when no other run is at work in the
        directory."""
        diff.check_changes(self.workdir, self._changes, accepted=True)
        if self._changes:
            storage.write_json(self.workdir / "config.json", self._settings)
        self.log(begins=True)
        for change in self._changes:
            self.log(accepted=change.field, old=change.old, new=change.new)

    def rollback(self) -> None:
        """Takes config.json and the log back where nothing was made, so that other settings may use the directory."""
        if self.jsonl("seed", "documents").manifest is None:
            for name in ("config.json", "events.jsonl"):
                storage.remove(self.workdir / name)

    def _inputs(self) -> dict[str, str]:
        """Hashes of the user's own files: other contents under an old name make another run."""
        c = self.cfg
        seeds = [name for source in (c.data.ift, c.data.eft) if source for name in readers.files(source)]
        paths = [*seeds, c.judge.template, c.prompts.template, c.pairwise.template]
        found = [epath.Path(p) for p in paths if p]
        try:
            return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in found if f.is_file()}
        except OSError as error:
            raise config.ConfigError(
                f"{error.filename} cannot be read ({error.strerror}): give a file that can"
            ) from None

    def flush_usage(self) -> None:
        """Brings the log up to date: where the time went, and the most memory that this process took."""
        self._note_time()
        self._write_log()

    def models(self) -> list[str]:
        """The finished models, in the order in which they are made: m0, sft, m1, m2, ..."""
        found = processes.broadcast_from_primary(lambda: [p.parent.name for p in self.workdir.glob("*/manifest.json")])
        made = [name for name in found if re.fullmatch(r"m\d+|sft", name)]
        return sorted(made, key=lambda name: 0.5 if name == "sft" else int(name[1:]))

    def verify(self) -> None:
        """Reads every row file that is whole, also those that nothing asks for any more.

        Raises:
          storage.Damaged: one is not what was written.
        """
        found = processes.broadcast_from_primary(
            lambda: sorted([p.parent.name, p.name] for p in self.workdir.glob("*/*.manifest.json"))
        )
        for owner, name in found:
            self.jsonl(owner, name.removesuffix(".manifest.json")).verify()

    def weights_fingerprint(self, model: str) -> str:
        """The fingerprint of a finished model's weights."""
        return storage.read_checksummed(self.workdir / model / "manifest.json")["weights"]

    def is_complete(self, model_name: str, stage: str, by: str = "") -> bool:
        """Whether OWNER/STAGE.jsonl is whole.

        Raises:
          storage.StorageError: it is, and model `by` made it with other weights than it has now.
        """
        manifest = self.jsonl(model_name, stage).manifest
        if manifest and by and (made := manifest.get("weights")) != (now := self.weights_fingerprint(by)):
            raise storage.StorageError(
                f"{self.workdir / model_name / stage}.jsonl was made by {by} with weights {made}, which now has {now}: put that "
                f"{by} back, or move {stage}.manifest.json and all that was made after it away"
            )
        return manifest is not None

    def jsonl(self, *names: str) -> JsonlArtifact:
        """The row file of that name, such as rows("m2", "pairs")."""
        return JsonlArtifact(self.workdir.joinpath(*names[:-1]) / f"{names[-1]}.jsonl", config=self.config_hash)

    def stage_key(self, model: str, stage: str) -> jax.Array:
        """The random key of a stage: a function of the seed and the two names alone."""
        key = jax.random.key(self.cfg.seed)
        return jax.random.fold_in(jax.random.fold_in(key, stable_hash32(model)), stable_hash32(key_name(stage)))

    def stage_seed(self, model: str, stage: str) -> int:
        """The same as a number, for shuffles on the host."""
        return stable_hash32(f"{self.cfg.seed} {model} {key_name(stage)}")

    @property
    def chat(self) -> Chat:
        """The run's tokenizer and chat format."""
        if self._chat is None:
            self._chat = read_chat(self.workdir / "tokenizer")
        return self._chat

    def model_config(self, dropout: float = 0.0, adapters: bool = False) -> LlamaConfig:
        """The model's shapes, with this rate of dropout; with `adapters` those of the model in training, which has
        them if lora.rank says so."""
        found = read_config(self.workdir / "tokenizer")[0] if self.cfg.model.init else None
        pieces = 0 if found else self.chat.tokenizer.vocab_size
        return build_model_config(self.cfg, found, pieces, self.mesh.devices.flat[0].platform, dropout, adapters)

    def shardings(self, declared: Any, sampling: bool = False) -> Any:
        """How weights lie on the mesh in training, or in sampling.

        Raises:
          config.ConfigError: the mesh does not divide the model.
        """
        mesh, table = (self.sampling_mesh, SAMPLING) if sampling else (self.mesh, TRAINING)
        try:
            return param_shardings(declared, mesh, table)
        except ValueError as error:
            raise config.ConfigError(str(error)) from None

    def check_layouts(self, found: LlamaConfig | None) -> None:
        """Raises ConfigError where the mesh of training or of sampling does not divide the model, before either is
        made; `found` as in `model_of`. A vocabulary that is not trained yet counts as one that they divide."""
        declared = param_specs(build_model_config(self.cfg, found, self.mesh.size, self.mesh.devices.flat[0].platform))
        self.shardings(declared)
        self.shardings(declared, sampling=True)

    def restore(self, path: epath.Path, declared: Any) -> Params:
        """Float32 parameters from a checkpoint, as they lie in training."""
        return checkpoints.restore(path, abstract_params(declared, "float32"), self.shardings(declared))

    def init_params(self, make: Callable[[jax.Array], Params], declared: Any, name: str) -> Params:
        """Fresh parameters `make(key)` with a key of the seed and `name`; each device makes its own part."""
        key_data = np.asarray(jax.random.key_data(self.stage_key(name, "init")))
        fresh = lambda: make(jax.random.wrap_key_data(key_data))  # noqa: E731
        return jax.jit(fresh, out_shardings=self.shardings(declared))()

    def frozen_base(self) -> Params | None:
        """The frozen parameters under the adapters, M0's, as wide as they are computed with; None without adapters."""
        if not self.cfg.lora.rank:
            return None
        declared = param_specs(self.model_config())
        found = self.restore(self.workdir / "m0" / "checkpoint", declared)
        return reshard(found, self.shardings(declared), self.cfg.model.dtype)

    def load_trainable(self, model: str, path: epath.Path | None = None) -> Params:
        """What training has changed of a model, its adapters or all its parameters; from `path`, if not as it ended."""
        declared = lora.trainable_specs(self.model_config(adapters=model != "m0"))
        return self.restore(path or self.workdir / model / "checkpoint", declared)

    def merge_lora(self, trained: Params) -> Params:
        """The parameters of a model of which this is the trained part, without adapters: float32, laid as in
        training."""
        if not self.cfg.lora.rank:
            return trained
        cfg, lying = self.model_config(adapters=True), self.shardings(param_specs(self.model_config()))
        merged = lambda base, adapters: lora.merge(cfg, lora.combine(base, adapters))  # noqa: E731
        # M0 is read for this alone, the adapters may be in use.
        return jax.jit(merged, out_shardings=lying, donate_argnums=0)(self.load_trainable("m0"), trained)

    def load_params(self, model: str) -> Params:
        """The parameters of a finished model, such as "m1", without adapters: float32, laid as in training."""
        found = self.load_trainable(model)
        return found if model == "m0" else self.merge_lora(found)

    def engine(self, model: str) -> Engine:
        """A generator of text with a finished model. The last one asked for is held."""
        if self._held is None or self._held[0] != model:
            self.drop_engine()  # first: two models need not fit
            self._held = (model, self.make_engine(self.load_params(model)))
        return self._held[1]

    def drop_engine(self) -> None:
        """Lets go of the engine that is held."""
        self._held = None

    def make_engine(self, params: Params) -> Engine:
        """A generator of text with any whole parameters of the run's shapes, laid as in sampling and as wide as they
        are computed with."""
        laid = reshard(params, self.shardings(param_specs(self.model_config()), sampling=True), self.cfg.model.dtype)
        return Engine(
            self.model_config(),
            laid,
            self.chat,
            self.sampling_mesh,
            max_concurrent=self.cfg.sampling.max_concurrent,
            max_length=self.cfg.model.max_length,
            should_stop=preemption.stop_requested,
        )

    NOTE_EVERY = 5.0  # seconds between lines that say where the time went

    def note_time(self) -> None:
        """Adds to events.jsonl where the time went since the last time, if that is a while ago."""
        if time.monotonic() - self._noted > self.NOTE_EVERY:
            self._note_time()

    def _note_time(self) -> None:
        self._noted = time.monotonic()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        for line in timing.drain():
            self.log(**line, peak_memory_bytes=peak)

    LOG_EVERY = 30.0  # seconds between writings of the log where each writes all of it

    def log(self, **event: Any) -> None:
        """Adds a line to events.jsonl."""
        if not processes.is_primary():
            return
        event = {k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
        self._lines.append(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        if not storage.is_remote(self.workdir) or time.monotonic() - self._logged > self.LOG_EVERY:
            self._write_log()

    def _write_log(self) -> None:
        if not self._lines or not processes.is_primary():
            return
        path, lines = self.workdir / "events.jsonl", "".join(self._lines)
        if storage.is_remote(path):  # which has no appending
            path.write_text((path.read_text() if path.exists() else "") + lines)
        else:
            with storage.translate_os_errors(path, len(lines)), path.open("a") as f:
                f.write(lines)
        self._lines, self._logged = [], time.monotonic()


# Names under which stages are hashed into random keys. Another name here would change every measured number.
_KEY_NAMES = {"pretrain": "base", "responses": "candidates", "probes": "canaries"}


def key_name(stage: str) -> str:
    """The name of a stage in its random keys."""
    return _KEY_NAMES.get(stage, stage.replace("judgments", "judgements"))


def _settings_of(directory: epath.Path) -> Any:
    """What config.json says; None if there is none. It is the one file that a run cannot make anew."""
    try:
        return storage.read_json(directory / "config.json")
    except storage.CorruptionError as error:
        raise config.ConfigError(f"{error.why}: put it back, or use another --workdir") from None


def build_model_config(
    cfg: ConfigDict, found: LlamaConfig | None, pieces: int, platform: str, dropout: float = 0.0, adapters: bool = False
) -> LlamaConfig:
    """The model of some settings.

    Args:
      cfg: the settings.
      found: what the folder of model.init describes; None where there is no such folder.
      pieces: of the tokenizer, where there is none.
      platform: what it runs on, in JAX's words.
      dropout: its rate.
      adapters: whether with those that lora.rank asks for, which are there in training.
    """
    c = cfg.model
    ours: dict[str, Any] = {k: c[k] for k in ("dtype", "scan_layers", "remat")}
    ours |= {"attention": resolve_impl(c.attention, platform, c.dtype), "dropout": dropout}
    if adapters and cfg.lora.rank:
        ours |= {f"lora_{k}": v for k, v in cfg.lora.items()}
    if found:
        return dataclasses.replace(found, param_dtype="float32", **ours)
    shapes = {k: v for k, v in c.items() if k not in ("init", "max_length", *ours)}
    return LlamaConfig(vocab_size=pieces, **shapes, **ours)
