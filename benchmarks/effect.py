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
import math
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict
from scipy import stats

from benchmarks.artifacts import fork
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
    "oracle": Arm("iter3", _RESPONSES, replace={"judgments": oracle_judge, "probes": lambda run, model: None}),
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


JUDGE_METRICS = ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall", "parse_rate")


def table_metrics(run_summary: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one run that the table shows: margins in points, oracle scores, judge agreement."""
    models, out = run_summary["models"], {}
    names = list(models)
    for a in reversed(names):
        for b in names[: names.index(a)]:
            v = models[a]["versus"][b]
            out |= {f"{a}-{b} {k}": 100 * v[k] for k in ("win", "tie", "lose", "margin")}
    for name in names:
        out[f"{name} mean"] = models[name]["oracle"]["mean"]
        out[f"{name} perfect"] = models[name]["oracle"]["perfect"]
        out[f"{name} repeats"] = models[name]["oracle"]["repeats"]
        out[f"{name} length"] = models[name]["mean_length"]
        out |= {f"{name} {metric}": models[name]["judge"][metric] for metric in JUDGE_METRICS}
        out |= {f"{name} {c}": 100 * share for c, share in models[name]["oracle"]["criteria"].items()}
    for name, round_stats in run_summary["rounds"].items():
        pairs = round_stats["pairs"]
        out |= {f"{name} pairs": pairs["pairs"], f"{name} tied": pairs["tied"]}
    out["seconds"], out["peak GB"] = run_summary["seconds"], run_summary["peak_memory_bytes"] / 1e9
    return out | ({"stopped": run_summary["stopped"]} if "stopped" in run_summary else {})


def table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Every metric of every arm: mean, standard error and 95 % interval (Student's t) over seeds, and each seed.

    A metric that a seed lacks (its judge gave no vote) is shown as a dash and left out of the mean.
    """
    lines = []
    for arm, by_seed in results.items():
        lines.append(f"\n{arm} ({len(by_seed)} seeds)")
        names = dict.fromkeys(name for metrics in by_seed.values() for name in metrics if name != "stopped")
        for name in names:
            by_column = [metrics.get(name) for metrics in by_seed.values()]
            values = [v for v in by_column if v is not None]
            mean, error, half_width = mean_and_interval(values)
            seeds = " ".join("       -" if v is None else f"{v:8.3f}" for v in by_column)
            interval = f"[{mean - half_width:8.3f} {mean + half_width:8.3f}]"
            lines.append(f"  {name:24s} {mean:8.3f} +- {error:6.3f} {interval}   {seeds}")
        lines += [f"  seed {seed} stopped: {m['stopped']}" for seed, m in by_seed.items() if "stopped" in m]
    return "\n".join(lines)


def mean_and_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard error, and half the width of the 95 % interval."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan, math.nan
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean, error, error * float(stats.t.ppf(0.975, len(values) - 1))


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
