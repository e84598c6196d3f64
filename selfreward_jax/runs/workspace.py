"""The working directory of a run: its artifacts, its manifests, and the random keys of its stages.

Nothing here writes, but for the artifacts that a stage is given to write.
"""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.config.diff import config_hash
from selfreward_jax.config.paths import expand_home
from selfreward_jax.parallel import processes
from selfreward_jax.sampling.keys import stable_hash32
from selfreward_jax.storage.artifacts import JsonlArtifact

# Names under which stages are hashed into random keys. Another name here would change every measured number.
_KEY_NAMES = {"pretrain": "base", "responses": "candidates", "probes": "canaries"}
_RUN_FOLDERS = re.compile(r"seed|tokenizer|sft|m\d+|evaluation")


def key_name(stage: str) -> str:
    """The name of a stage in its random keys."""
    return _KEY_NAMES.get(stage, stage.replace("judgments", "judgements"))


class Workspace:
    """Paths and manifests of one working directory.

    Args:
      cfg: the settings of the run. Artifacts carry their hash.
      workdir: a folder or gs://BUCKET/FOLDER. It need not exist.

    Raises:
      ConfigError: the address cannot be reached.
    """

    def __init__(self, cfg: ConfigDict, workdir: str) -> None:
        self.cfg, self.config_hash = cfg, config_hash(json.loads(cfg.to_json()))
        # The digest of the step that is being made, and what it is the digest of (runs/owner.py); outside of one,
        # nobody's.
        self.owner, self.made_from = "", dict[str, Any]()
        if not workdir:
            raise ConfigError("workdir is empty: name a folder")
        address = expand_home(workdir, "workdir")
        try:
            self.path = epath.Path(address)
            if "://" not in workdir:
                self.path = self.path.resolve()  # Orbax wants absolute paths
            self.path.exists()
        except (ImportError, KeyError, ValueError) as error:  # the file system of such an address is not installed
            needs = (
                'gs:// needs pip install "selfreward-jax[gs]"' if workdir.startswith("gs:") else "use gs:// or a folder"
            )
            raise ConfigError(f"workdir {workdir} cannot be reached ({error}): {needs}") from None

    def jsonl(self, *names: str) -> JsonlArtifact:
        """The JSON Lines artifact of that name, such as jsonl("m2", "pairs")."""
        path = self.path.joinpath(*names[:-1]) / f"{names[-1]}.jsonl"
        return JsonlArtifact(path, self.owner, config=self.config_hash)

    def made_by(self) -> dict[str, Any]:
        """What the manifest of a model says of the step that is being made."""
        return {"owner": self.owner, "made_from": self.made_from}

    def is_complete(self, folder: str, stage: str, made_by: str = "") -> bool:
        """Whether FOLDER/STAGE.jsonl is complete.

        Raises:
          storage.CorruptionError: it is, but of another run, or made from other inputs.
          storage.StorageError: it is this run's, but model `made_by` has other weights now. To make all again may take
            days, so the user decides.
        """
        artifact = self.jsonl(folder, stage)
        manifest = artifact.manifest
        if manifest and made_by and (not self.owner or manifest.get("config") == self.config_hash):
            then, now = manifest.get("weights"), self.weights_fingerprint(made_by)
            if then != now:
                raise storage.StorageError(
                    f"{self.path / folder / stage}.jsonl was made by {made_by} with weights {then}, but {made_by} has "
                    f"weights {now}: restore that {made_by}, or move {stage}.manifest.json and all later artifacts away"
                )
        return self.own(artifact.manifest_path, artifact.path) is not None

    def own(self, path: epath.Path, *others: epath.Path) -> dict[str, Any] | None:
        """The checksummed JSON object at a path, if the step that is being made has made it; None if there is none.

        Args:
          path: a manifest, or a file of figures.
          others: what it stands for, and is of no use without it.

        Raises:
          storage.CorruptionError: it is of another run, or was made from other inputs.
          storage.StorageError: a version without owners made it.
        """
        value = storage.read_checksummed(path)
        if value is None or not self.owner or value.get("owner") == self.owner:
            return value
        if "owner" not in value:
            raise storage.StorageError(f"{path} was made by an older version of this program: use another --workdir")
        made_by = f"its owner is {value['owner']}, and {self.owner} here"
        reason = f"{path} is of another run, or was made from other inputs ({made_by})"
        raise storage.CorruptionError(reason, *others, path)

    def model_names(self) -> list[str]:
        """The finished models in training order: m0, sft, m1, m2, ..."""
        names = {path.parts[0] for path in self.artifacts() if path.name == "manifest.json"}
        models = [name for name in names if re.fullmatch(r"m\d+|sft", name)]
        return sorted(models, key=lambda name: 0.5 if name == "sft" else int(name[1:]))

    def complete_artifacts(self) -> list[tuple[str, str]]:
        """(folder, stage) of each complete JSON Lines artifact, sorted."""
        suffix = ".manifest.json"
        return [(p.parts[0], p.name.removesuffix(suffix)) for p in self.artifacts() if p.name.endswith(suffix)]

    def artifacts(self) -> list[epath.Path]:
        """Files and folders of the working directory and of the folders of a run in it, relative to it and sorted.

        Listed, not globbed: the directory's own name may hold any character. Other folders are the user's.
        """

        def listing() -> Iterator[str]:
            for entry in self.path.iterdir() if self.path.is_dir() else ():
                yield entry.name
                if _RUN_FOLDERS.fullmatch(entry.name) and entry.is_dir():
                    yield from (f"{entry.name}/{inner.name}" for inner in entry.iterdir())

        return [epath.Path(name) for name in processes.broadcast_from_primary(lambda: sorted(listing()))]

    def first_match(self, patterns: tuple[str, ...]) -> str | None:
        """The first artifact that one of the patterns ("*/pairs.*") matches; None if there is none."""
        names = [str(path) for path in self.artifacts()]
        return next((name for pattern in patterns for name in names if fnmatchcase(name, pattern)), None)

    def verify(self) -> None:
        """Reads every complete JSON Lines artifact, also those that no later stage reads.

        Raises:
          storage.CorruptionError: one is not what was written.
        """
        for folder, stage in self.complete_artifacts():
            self.jsonl(folder, stage).verify()

    def weights_fingerprint(self, model: str) -> str:
        """The fingerprint of a finished model's weights."""
        return storage.read_checksummed(self.path / model / "manifest.json")["weights"]

    def stage_key(self, model: str, stage: str) -> jax.Array:
        """The random key of a stage: a function of the seed and the two names alone."""
        key = jax.random.key(self.cfg.seed)
        return jax.random.fold_in(jax.random.fold_in(key, stable_hash32(model)), stable_hash32(key_name(stage)))

    def stage_seed(self, model: str, stage: str) -> int:
        """The same as a number, for shuffles on the host."""
        return stable_hash32(f"{self.cfg.seed} {model} {key_name(stage)}")
