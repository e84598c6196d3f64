"""Does self-rewarding work here, and is it the model's own judgment that does it? The paper's tables and ablations.

    python -m benchmarks.effect --workdir=runs/effect --seeds=0,1,2,3,4

Runs the loop to M3 for every seed, and controls that share as much of it as they can: most of them its M1 and parts of
round one. Prints a JSON line for each seed and arm, and a table at the end. `--split=validation` is for choosing
settings; the figures to report come from one run on `heldout`. Arms:

    self              the model judges its own answers
    no-eft, positive-sft, multiple-choice, random, best-of-n, external-prompts, length-control
                      the paper's ablations and the field's, as configs/ablations has them, for one round; of
                      best-of-n M1 alone
    oracle            the exact oracle as judge: the ceiling
    no-eft-replay     as self, replaying the prompt writer's rows but not the judge's
    replay-only       the replay steps alone, no DPO
    random-bare       a random judge without replay

What is whole in the working directory is not made again; other settings there are refused, as in any run.
"""

import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from scipy import stats

from selfreward_jax import loop, stages
from selfreward_jax.evaluate import oracle
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.report import summary
from selfreward_jax.runs.run import Run

_WORKDIR = flags.DEFINE_string("workdir", "runs/effect", "Where the runs live.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds; none is left out of the table.")
_SPLIT = flags.DEFINE_enum("split", "heldout", ["heldout", "validation"], "Prompts that measure.")
_ARMS = flags.DEFINE_list("arms", [], "Arms to run beside self; all if empty.")


def oracle_judge(run: Run, t: int) -> None:
    """Judgments by the oracle: what a perfect judge would give. A prompt outside the world gets no vote."""

    def votes(row: dict[str, Any]) -> list[float]:
        try:
            ((earned,),) = oracle.points([{"prompt": row["prompt"], "responses": [{"text": row["response"]}]}])
            return [float(sum(earned.values()))]
        except ValueError:
            return []

    out = run.jsonl(f"m{t}", "judgments")
    if out.manifest is not None:
        return
    rows = []
    for answer in finished_responses(run.jsonl(f"m{t}", "responses").rows()):
        earned = votes(answer)
        score = sum(earned) / len(earned) if earned else None
        rows.append({"id": answer["id"], "score": score, "votes": [{"text": "", "score": v} for v in earned]})
    out.finish(rows, tokens=0)


class Arm(NamedTuple):
    """A variation of the loop: its configuration, settings on top, its judge, and what it shares with `self`."""

    config: str
    shares: tuple[str, ...]
    settings: dict[str, Any] = {}
    judge: Callable[[Run, int], None] = stages.self_judge


_BASE = ("seed", "tokenizer", "m0", "sft")
_M1 = (*_BASE, "m1")
_ANSWERED = (*_M1, "m2/prompts", "m2/candidates")
_PAIRED = (*_ANSWERED, "m2/judgments", "m2/pairs")
_ONE_ROUND = {"iterations": 2}
ARMS = {
    "self": Arm("iter3", ()),
    "no-eft": Arm("ablations/no_eft", _BASE, _ONE_ROUND),
    "positive-sft": Arm("ablations/positive_sft", _PAIRED, _ONE_ROUND),
    "multiple-choice": Arm("ablations/multiple_choice", (), _ONE_ROUND | {"sft_baseline": False}),
    "random": Arm("ablations/random_judge", _ANSWERED, _ONE_ROUND),
    "best-of-n": Arm("ablations/best_of_n", (*_BASE, "m1/checkpoint", "m1/manifest.json")),
    "external-prompts": Arm("ablations/external_prompts", _M1, _ONE_ROUND),
    "length-control": Arm("ablations/length_control", (*_ANSWERED, "m2/judgments"), _ONE_ROUND),
    "oracle": Arm("iter3", _ANSWERED, judge=oracle_judge),
    "no-eft-replay": Arm("iter3", _PAIRED, {"dpo.replay_sets": ("prompts",)}),
    "replay-only": Arm("iter2", _PAIRED, {"dpo.dpo_weight": 0.0, "dpo.nll_weight": 0.0}),
    "random-bare": Arm("ablations/random_judge", _ANSWERED, _ONE_ROUND | {"dpo.replay_weight": 0.0}),
}


def run_arm(name: str, seed: int, home: Path) -> dict[str, Any]:
    """The summary of one arm of one seed; of what it has made, where a stage cannot go on."""
    arm, here, parent = ARMS[name], home / f"seed{seed}" / name, home / f"seed{seed}" / "self"
    if not (here / "config.json").exists():
        shutil.rmtree(here, ignore_errors=True)
        for shared in arm.shares:
            share(parent / shared, here / shared)
    cfg = importlib.import_module(f"configs.{arm.config.replace('/', '.')}").get_config()
    cfg.update_from_flattened_dict({"seed": seed, "sft_baseline": True, "evaluate.split": _SPLIT.value, **arm.settings})
    try:
        return loop.run(cfg, str(here), arm.judge)
    except stages.StageError as error:
        return {**summary.write(Run.reopen(str(here))), "stopped": str(error)}


def share(source: Path, target: Path) -> None:
    """Copies a folder, a file, or a row file with its manifest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.suffix:
        shutil.copy(source, target)
    else:
        for kind in ("jsonl", "manifest.json"):
            shutil.copy(source.with_name(f"{source.name}.{kind}"), target.parent)


METRICS = ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall", "parse_rate")


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run that the table shows: margins in points, oracle means, judge agreement."""
    models, out = found["models"], {}
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
        out |= {f"{name} {metric}": models[name]["judge"][metric] for metric in METRICS}
        out |= {f"{name} {c}": 100 * models[name]["oracle"]["criteria"][c] for c in oracle.CRITERIA}
    for name, of in found["rounds"].items():
        out |= {f"{name} pairs": of["pairs"]["pairs"], f"{name} tied": of["pairs"]["tied"]}
    out["seconds"], out["peak GB"] = found["seconds"], found["peak_memory_bytes"] / 1e9
    return out | ({"stopped": found["stopped"]} if "stopped" in found else {})


def table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Every figure of every arm: mean over seeds, standard error and 95 % interval (Student's t) over seeds, each
    seed. A figure that a seed has not (its judge gave no vote) is shown as a dash and left out of the mean."""
    lines = []
    for arm, by_seed in results.items():
        lines.append(f"\n{arm} ({len(by_seed)} seeds)")
        names = dict.fromkeys(name for found in by_seed.values() for name in found if name != "stopped")
        for name in names:
            each = [found.get(name) for found in by_seed.values()]
            values = [v for v in each if v is not None]
            mean, error, half = spread(values)
            seeds = " ".join("       -" if v is None else f"{v:8.3f}" for v in each)
            interval = f"[{mean - half:8.3f} {mean + half:8.3f}]"
            lines.append(f"  {name:24s} {mean:8.3f} +- {error:6.3f} {interval}   {seeds}")
        lines += [f"  seed {seed} stopped: {f['stopped']}" for seed, f in by_seed.items() if "stopped" in f]
    return "\n".join(lines)


def spread(values: list[float]) -> tuple[float, float, float]:
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
    home = Path(_WORKDIR.value)
    arms = ["self", *(a for a in _ARMS.value or ARMS if a != "self")]
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    for seed in map(int, _SEEDS.value):
        for arm in arms:
            results[arm][seed] = figures(run_arm(arm, seed, home))
            print(json.dumps({"seed": seed, "arm": arm, **results[arm][seed]}), flush=True)
    print(table(results), flush=True)


if __name__ == "__main__":
    app.run(main)
