"""One run: its settings, its working directory, its mesh, and the models that lie there."""

import dataclasses
import hashlib
import json
import re
import resource
import sys
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import config, storage
from selfreward_jax.generate.engine import Engine, row_number
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.llm.llama import Llama, LlamaConfig, Params, weights
from selfreward_jax.method import sources
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import declared_shardings, row_multiple
from selfreward_jax.train import checkpoints

Row = dict[str, Any]


class Run:
    """Settings, directory and mesh, and what the stages share.

    Args:
      cfg: checked settings.
      directory: the working directory; made if it is not there.
      claim: whether the run will write there, and so must be of the same settings as what is there.

    Raises:
      config.ConfigError: the settings cannot work, or the directory holds a run with other ones.
    """

    def __init__(self, cfg: ConfigDict, directory: str, claim: bool = True) -> None:
        self.cfg = cfg
        if claim:
            config.check(cfg, row_devices=1)
        self.dir = epath.Path(directory)
        if "://" not in directory:
            self.dir = self.dir.expanduser().resolve()  # Orbax wants absolute paths
        try:
            self.mesh = make_mesh(cfg.parallel.fsdp, cfg.parallel.tensor)
        except ValueError as error:
            raise config.ConfigError(str(error)) from None
        if claim:
            config.check(cfg, row_multiple(self.mesh))
            self._claim()
        self._started = time.monotonic()
        self._spent = storage.read_json(self.dir / "spent.json") or {"seconds": 0.0, "peak_memory_bytes": 0}
        self._chat: Chat | None = None
        self._held: tuple[str, Params] | None = None

    @classmethod
    def reopen(cls, directory: str) -> "Run":
        """The run of a working directory, to be read.

        Raises:
          config.ConfigError: there is no run, or it was made by another version of the settings.
        """
        stored = storage.read_json(epath.Path(directory) / "config.json")
        if not isinstance(stored, dict) or "iterations" not in stored:
            raise config.ConfigError(f"workdir {directory} holds no run: there is no config.json of one")
        return cls(config.from_stored(stored), directory, claim=False)

    def _claim(self) -> None:
        """Writes config.json, or makes sure that the one there is ours."""
        path = self.dir / "config.json"
        # Through JSON and back, so that a tuple compares equal to the list it was stored as.
        now = json.loads(self.cfg.to_json())
        if inputs := self._inputs():
            now["inputs"] = inputs
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            old = storage.read_json(path)
            if old is not None and (difference := config.first_difference(old, now)):
                raise config.ConfigError(
                    f"workdir {self.dir} was made by other settings: {difference}; use another --workdir, or the "
                    "settings in its config.json"
                )
            # A shorter run in the directory of a longer one takes nothing away.
            now["iterations"] = max(now["iterations"], old["iterations"] if old else 0)
            storage.write_json(path, now)
        except OSError as error:
            raise config.ConfigError(
                f"workdir {self.dir} cannot be written ({error.strerror}): use another --workdir"
            ) from None

    def disclaim(self) -> None:
        """Takes config.json back where nothing was made, so that other settings may use the directory."""
        if self.rows("seed", "documents").manifest is None:
            (self.dir / "config.json").unlink(missing_ok=True)

    def _inputs(self) -> dict[str, str]:
        """Hashes of the user's own files: other contents under an old name make another run."""
        c = self.cfg
        seeds = [name for source in (c.data.ift, c.data.eft) if source for name in sources.files(source)]
        paths = [*seeds, c.judge.template, c.prompts.template, c.compare.template]
        found = [epath.Path(p) for p in paths if p]
        try:
            return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in found if f.is_file()}
        except OSError as error:
            raise config.ConfigError(
                f"{error.filename} cannot be read ({error.strerror}): give a file that can"
            ) from None

    def spent(self) -> dict[str, float]:
        """Seconds and peak bytes of all runs in this directory so far, this one included; kept in spent.json."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        spent = {
            "seconds": self._spent["seconds"] + time.monotonic() - self._started,
            "peak_memory_bytes": max(self._spent["peak_memory_bytes"], peak),
        }
        storage.write_json(self.dir / "spent.json", spent)
        return spent

    def models(self) -> list[str]:
        """The finished models, in the order in which they are made: m0, sft, m1, m2, ..."""
        made = [p.parent.name for p in self.dir.glob("*/manifest.json") if re.fullmatch(r"m\d+|sft", p.parent.name)]
        return sorted(made, key=lambda name: 0.5 if name == "sft" else int(name[1:]))

    def rows(self, *names: str) -> storage.RowFile:
        """The row file of that name, such as rows("m2", "pairs")."""
        return storage.RowFile(self.dir.joinpath(*names[:-1]) / f"{names[-1]}.jsonl")

    def key(self, model: str, stage: str) -> jax.Array:
        """The random key of a stage: a function of the seed and the two names alone."""
        key = jax.random.key(self.cfg.seed)
        return jax.random.fold_in(jax.random.fold_in(key, row_number(model)), row_number(stage))

    def seed(self, model: str, stage: str) -> int:
        """The same as a number, for shuffles on the host."""
        return row_number(f"{self.cfg.seed} {model} {stage}")

    @property
    def chat(self) -> Chat:
        """The run's tokenizer and chat format."""
        if self._chat is None:
            self._chat = read_chat(self.dir / "tokenizer")
        return self._chat

    def llama(self, dropout: float = 0.0) -> LlamaConfig:
        """The model's shapes, with this rate of dropout."""
        given = {k: v for k, v in self.cfg.model.items() if k not in ("init", "max_length")}
        if not self.cfg.model.init:
            return LlamaConfig(vocab_size=self.chat.tokenizer.vocab_size, dropout=dropout, **given)
        found, _ = read_config(self.dir / "tokenizer")
        ours = {k: given[k] for k in ("dtype", "scan_layers", "remat")}
        return dataclasses.replace(found, dropout=dropout, param_dtype="float32", **ours)

    @property
    def shardings(self) -> Any:
        """How the parameters lie on the mesh."""
        return declared_shardings(weights(self.llama()), self.mesh)

    def abstract_params(self) -> Any:
        """Shapes and dtypes of the parameters."""
        model = Llama(self.llama())
        return jax.eval_shape(lambda: model.init(jax.random.key(0), jax.numpy.zeros((1, 1), int)))["params"]

    def params(self, model: str) -> Params:
        """The parameters of a finished model, such as "m1". The last one asked for is held."""
        if self._held is None or self._held[0] != model:
            self.release()  # first: two models need not fit
            path = self.dir / model / "checkpoint"
            self._held = (model, checkpoints.restore(path, self.abstract_params(), self.shardings))
        return self._held[1]

    def release(self) -> None:
        """Lets go of the model that is held."""
        self._held = None

    def engine(self, model: str) -> Engine:
        """A generator of text with a finished model."""
        return self.engine_of(self.params(model))

    def engine_of(self, params: Params) -> Engine:
        """A generator of text with any parameters of the run's shapes."""
        return Engine(
            self.llama(),
            params,
            self.chat,
            self.mesh,
            rows=self.cfg.generate.rows,
            max_length=self.cfg.model.max_length,
        )

    def log(self, **event: Any) -> None:
        """Adds a line to log.jsonl."""
        with (self.dir / "log.jsonl").open("a") as f:
            f.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
