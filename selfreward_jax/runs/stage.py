"""What the loop, the plan, the summary and the rules for changed settings know of a stage."""

import math
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.runs.run import Run


class Cost(NamedTuple):
    """Upper bounds of a stage: rows, and new tokens to sample. 0 means that the data decide."""

    rows: int
    tokens: int = 0


class Stage(NamedTuple):
    """One kind of stage. It is made for a folder of the working directory: seed, tokenizer, m0, sft, m1, m2, ...

    name: in the log, in the summary, and (see `workspace.key_name`) in random keys.
    run: makes it, and does nothing if it is complete. None: the stage before it makes it too.
    folders: patterns of the folders that it is made for.
    reads: the artifacts that it reads; {m} stands for its folder, {m-1} for the model before, {m-2} for the one before.
    writes: patterns of what it writes.
    settings: sections or fields that decide what it writes.
    kind: what its seconds count as in the time report: training, sampling, judging or other.
    manifest: the file that is written last; "" if nothing is written.
    cost: its upper bounds, for the plan; None: it takes no time worth planning.
    work: the likely amount, for the time that a run still needs: training steps, or tokens to sample; if not given, the
      tokens of `cost`.
    wanted: whether a run of these settings has it.
    rounds: how many rounds have it, from the first one.
    """

    name: str
    run: Callable[[Run, str], object] | None
    folders: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: tuple[str, ...]
    kind: str = "other"
    manifest: str = ""
    cost: Callable[[ConfigDict], Cost] | None = None
    work: Callable[[ConfigDict], float] | None = None
    wanted: Callable[[ConfigDict], bool] = lambda _: True
    rounds: Callable[[ConfigDict], float] = lambda _: math.inf

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of all that it writes, in any of its folders."""
        return tuple(dict.fromkeys(name.replace("{m}", folder) for name in self.writes for folder in self.folders))


class Step(NamedTuple):
    """A stage for one folder: what a run goes through, one after the other."""

    stage: Stage
    folder: str

    def is_wanted(self, cfg: ConfigDict) -> bool:
        """Whether a run of these settings has it."""
        name, stage = self.folder, self.stage
        number = int(name[1:]) - 1 if name[1:].isdigit() else 0  # of the round that makes this model
        of_folder = any(fnmatch(name, pattern) for pattern in stage.folders)
        return of_folder and stage.wanted(cfg) and number <= stage.rounds(cfg)

    @property
    def label(self) -> str:
        """The step in the log and in tables, such as "m2 responses"."""
        return f"{self.folder} {self.stage.name}"

    def path(self, name: str) -> str:
        """The artifact of that name in `reads` or `writes`, for this step's folder."""
        for back in (1, 2) if self.folder[1:].isdigit() else ():
            name = name.replace(f"{{m-{back}}}", f"m{int(self.folder[1:]) - back}")
        return name.replace("{m}", self.folder)

    def manifest(self, run: Run) -> dict[str, Any] | None:
        """What its manifest holds; None if it is not complete."""
        if not self.stage.manifest:
            return None
        return storage.read_checksummed(run.workdir / self.path(self.stage.manifest))


class StageTable(NamedTuple):
    """All stages of a run. `stages/table.py` has the one that there is.

    stages: each kind of stage once, in the order in which they are made.
    order: the steps of a run to m_iterations.
    without_artifacts: sections or fields that decide no artifact.
    """

    stages: tuple[Stage, ...]
    order: Callable[[ConfigDict, int], list[Step]]
    without_artifacts: tuple[str, ...] = ()

    def steps(self, cfg: ConfigDict) -> list[Step]:
        """What a run of these settings goes through."""
        return self.order(cfg, cfg.iterations)

    def known_steps(self, run: Run) -> list[Step]:
        """The steps of a run, and those of later models that its working directory holds already."""
        models = [int(name[1:]) for name in run.files.model_names() if name != "sft"]
        return self.order(run.cfg, max([run.cfg.iterations, *models]))

    def dependents(self, field: str) -> tuple[str, ...]:
        """Patterns of the artifacts that a setting decides, in the order in which they are made. A setting that no
        stage names decides everything."""
        names = field.split(".")
        sections = {".".join(names[:n]) for n in range(1, len(names) + 1)}
        if sections & set(self.without_artifacts):
            return ()
        stages = [stage for stage in self.stages if sections & set(stage.settings)]
        return tuple(pattern for stage in stages for pattern in stage.patterns) if stages else ("*/*",)

    def kind_of(self, label: str) -> str:
        """The kind of a stage by its label in the log. Stages within a stage ("m2 early_5_answers") end like one."""
        name = label.rpartition(" ")[2]
        exact = (stage.kind for stage in self.stages if stage.name == name)
        alike = (stage.kind for stage in self.stages if name and stage.name.endswith(name.rpartition("_")[2]))
        return next(exact, None) or next(alike, "other")
