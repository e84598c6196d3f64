"""Does self-rewarding work here, and is the model's own judgment the cause? The paper's tables and ablations.

    python -m benchmarks.effect --workdir=runs/effect --seeds=0,1,2,3,4

Runs the loop to M3 for every seed, with control arms. Each arm reuses as much of the main arm as it can: most of them
its M1 and parts of round one. Prints a JSON line for each seed and arm, and a table at the end. `--split=validation` is
for tuning settings; the reported figures come from one run on `heldout`. Arms:

    self              the model judges its own responses
    no-eft, positive-sft, multiple-choice, random, best-of-n, external-prompts, length-control
                      the ablations of the paper and of later work, as in configs/ablations, for one round; best-of-n
                      is M1 alone
    oracle            the exact oracle as judge: the upper bound
    no-eft-replay     like self, but replays only the prompt writing data, not the judge's data
    replay-only       only the replay steps, no DPO
    random-bare       a random judge without replay

Complete artifacts in the working directory are reused. Changed settings are refused, as in any run.
"""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict

from benchmarks.artifacts import fork
from benchmarks.seeds_table import table, table_metrics
from selfreward_jax import loop
from selfreward_jax.evaluate import oracle
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import ResponseRow
from selfreward_jax.report import summary
from selfreward_jax.runs.run import Run, open_run
from selfreward_jax.stages import StageError
from selfreward_jax.stages.table import TABLE

_WORKDIR = flags.DEFINE_string("workdir", "runs/effect", "Folder of all runs.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds; all are in the table.")
_SPLIT = flags.DEFINE_enum("split", "heldout", ["heldout", "validation"], "Prompts of the evaluation.")
_ARMS = flags.DEFINE_list("arms", [], "Arms to run in addition to self; all if empty.")


def oracle_judge(run: Run, model: str) -> None:
    """Judgments by the oracle: those of a perfect judge. A prompt outside the toy world gets no vote."""

    def scores_of(row: ResponseRow) -> list[float]:
        try:
            ((criteria,),) = oracle.points([{"prompt": row["prompt"], "responses": [{"text": row["response"]}]}], "toy")
            return [float(sum(criteria.values()))]
        except ValueError:
            return []

    out = run.files.jsonl(model, "judgments")
    if out.manifest is not None:
        return
    rows = []
    for response in finished_responses(run.files.jsonl(model, "responses").rows()):
        scores = scores_of(response)
        mean = sum(scores) / len(scores) if scores else None
        rows.append({"id": response["id"], "score": mean, "votes": [{"text": "", "score": v} for v in scores]})
    out.finish(rows, tokens=0)


def _none(run: Run, model: str) -> None:
    """In place of a stage that tests the model as the judge."""


class Arm(NamedTuple):
    """A variation of the loop.

    config: the configuration's name in configs/.
    reused: the artifacts that it copies from `self`.
    settings: changes to the configuration.
    replace: stages that are made in another way.
    """

    config: str
    reused: tuple[str, ...]
    settings: dict[str, Any] = {}
    replace: loop.Replacements = {}


_M0 = ("seed", "tokenizer", "m0")
_BASE = (*_M0, "sft")
_M1 = (*_BASE, "m1")
# Models without what they answered and judged, where an arm measures them in another way.
_UNMEASURED = (
    *_M0,
    *(f"{m}/{name}" for m in ("sft", "m1") for name in ("checkpoint", "checkpoint.json", "manifest.json")),
)
_MADE = ("m2/prompts", "m2/responses")
_RESPONSES = (*_M1, *_MADE)
_PAIRS = (*_RESPONSES, "m2/judgments", "m2/pairs")
_ONE_ROUND = {"iterations": 2}
ARMS = {
    "self": Arm("iter3", ()),
    "no-eft": Arm("ablations/no_eft", _M0, _ONE_ROUND),
    "positive-sft": Arm("ablations/positive_sft", _PAIRS, _ONE_ROUND),
    "multiple-choice": Arm("ablations/multiple_choice", (), _ONE_ROUND | {"sft_baseline": False}),
    "random": Arm("ablations/random_judge", (*_UNMEASURED, *_MADE), _ONE_ROUND),
    "best-of-n": Arm("ablations/best_of_n", _UNMEASURED),
    "external-prompts": Arm("ablations/external_prompts", _M1, _ONE_ROUND),
    "length-control": Arm("ablations/length_control", (*_RESPONSES, "m2/judgments"), _ONE_ROUND),
    "oracle": Arm("iter3", _RESPONSES, replace={"judgments": oracle_judge} | dict.fromkeys(("probes", "hacks"), _none)),
    "no-eft-replay": Arm("iter3", _PAIRS, {"dpo.replay_sets": ("prompts",)}),
    "replay-only": Arm("iter2", _PAIRS, {"dpo.dpo_weight": 0.0, "dpo.nll_weight": 0.0}),
    "random-bare": Arm("ablations/random_judge", (*_UNMEASURED, *_MADE), _ONE_ROUND | {"dpo.replay_weight": 0.0}),
}


def arm_config(arm: Arm, seed: int, split: str) -> ConfigDict:
    """The settings of an arm."""
    cfg = importlib.import_module(f"configs.{arm.config.replace('/', '.')}").get_config()
    cfg.update_from_flattened_dict({"seed": seed, "sft_baseline": True, "evaluate.split": split, **arm.settings})
    return cfg


def run_arm(name: str, seed: int, root: Path) -> dict[str, Any]:
    """The summary of one arm for one seed; if a stage stops the run, the summary of what there is and the reason."""
    arm, workdir, main_workdir = ARMS[name], root / f"seed{seed}" / name, root / f"seed{seed}" / "self"
    cfg = arm_config(arm, seed, _SPLIT.value)
    if arm.reused:
        fork(main_workdir, workdir, arm.reused, cfg.iterations)
    try:
        return loop.run(cfg, str(workdir), arm.replace, allow_config_changes=True)
    except StageError as error:
        return {**summary.write(open_run(str(workdir)), TABLE), "stopped": str(error)}


def main(argv: list[str]) -> None:
    """Runs every arm of every seed."""
    del argv
    logging.set_verbosity(logging.WARNING)
    root = Path(_WORKDIR.value)
    arms = ["self", *(a for a in _ARMS.value or ARMS if a != "self")]
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    for seed in map(int, _SEEDS.value):
        for arm in arms:
            results[arm][seed] = table_metrics(run_arm(arm, seed, root))
            print(json.dumps({"seed": seed, "arm": arm, **results[arm][seed]}), flush=True)
    print(table(results), flush=True)


if __name__ == "__main__":
    app.run(main)
