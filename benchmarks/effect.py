"""Does self-rewarding work here, and is it the model's own judgement that does it?

    python -m benchmarks.effect --workdir=runs/effect --seeds=0,1,2,3,4

Runs the loop to M3 for every seed, and controls that share its base model, its M1 and as much of round one as they
can. Prints a JSON line for each seed and arm, and a table at the end. `--split=validation` is for choosing settings;
the figures to report come from one run on `heldout`. Arms:

    self          the model judges its own answers
    random        a random judge instead, with replay         random-bare     ... and without replay
    oracle        the exact oracle as judge: the ceiling, both rounds
    no-eft-replay as self, replaying the prompt writer's rows but not the judge's
    replay-only   the replay steps alone, no DPO
    positive-sft  supervised training on each pair's chosen answer, with replay, no DPO

What is whole in the working directory is not made again; other settings there are refused, as in any run.
"""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

from selfreward_jax import config, loop, stages
from selfreward_jax.evaluate import oracle
from selfreward_jax.method.candidates import answers
from selfreward_jax.run import Run

_WORKDIR = flags.DEFINE_string("workdir", "runs/effect", "Where the runs live.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds; none is left out of the table.")
_SPLIT = flags.DEFINE_enum("split", "heldout", ["heldout", "validation"], "Prompts that measure.")
_ARMS = flags.DEFINE_list("arms", [], "Arms to run beside self; all if empty.")


def random_judge(run: Run, t: int) -> None:
    """Judgements whose votes are thrown dice."""

    def votes(row: dict[str, Any]) -> list[float]:
        rng = random.Random(f"{run.cfg.seed} {t} {row['id']}")
        return [float(rng.randint(0, 5)) for _ in range(run.cfg.judge.samples)]

    _judgements(run, t, votes)


def oracle_judge(run: Run, t: int) -> None:
    """Judgements by the oracle: what a perfect judge would give. A prompt outside the world gets no vote."""

    def votes(row: dict[str, Any]) -> list[float]:
        try:
            ((earned,),) = oracle.points([{"prompt": row["prompt"], "responses": [{"text": row["response"]}]}])
            return [float(sum(earned.values()))]
        except ValueError:
            return []

    _judgements(run, t, votes)


def _judgements(run: Run, t: int, votes_of: Callable[[dict[str, Any]], list[float]]) -> None:
    out = run.rows(f"m{t}", "judgements")
    if out.manifest is not None:
        return
    rows = []
    for answer in answers(run.rows(f"m{t}", "candidates").rows()):
        votes = votes_of(answer)
        score = sum(votes) / len(votes) if votes else None
        rows.append({"id": answer["id"], "score": score, "votes": [{"text": "", "score": v} for v in votes]})
    out.finish(rows, tokens=0, seconds=0.0)


class Arm(NamedTuple):
    """A variation of the loop: its judge, its settings, its rounds, and which files of round one it shares."""

    judge: Callable[[Run, int], None]
    settings: dict[str, Any]
    iterations: int
    shares: tuple[str, ...]


_ANSWERED = ("prompts", "candidates")
_PAIRED = (*_ANSWERED, "judgements", "pairs")
ARMS = {
    "self": Arm(stages.self_judge, {}, 3, ()),
    "random": Arm(random_judge, {}, 2, _ANSWERED),
    "random-bare": Arm(random_judge, {"dpo.replay": 0.0}, 2, _ANSWERED),
    "oracle": Arm(oracle_judge, {}, 3, _ANSWERED),
    "no-eft-replay": Arm(stages.self_judge, {"dpo.replay_sets": ("prompts",)}, 3, _PAIRED),
    "replay-only": Arm(stages.self_judge, {"dpo.weight": 0.0, "dpo.nll": 0.0}, 2, _PAIRED),
    "positive-sft": Arm(stages.self_judge, {"dpo.weight": 0.0, "dpo.nll": 1.0}, 2, _PAIRED),
}


def run_arm(name: str, seed: int, home: Path) -> dict[str, Any]:
    """The summary of one arm of one seed."""
    arm, here, parent = ARMS[name], home / f"seed{seed}" / name, home / f"seed{seed}" / "self"
    if name != "self" and not (here / "config.json").exists():
        shutil.rmtree(here, ignore_errors=True)
        for folder in ("seed", "tokenizer", "m0", "m1"):
            shutil.copytree(parent / folder, here / folder)
        (here / "m2").mkdir()
        for shared in arm.shares:
            for kind in ("jsonl", "manifest.json"):
                shutil.copy(parent / "m2" / f"{shared}.{kind}", here / "m2")
    cfg = config.get("tiny")
    cfg.update_from_flattened_dict(
        {"seed": seed, "iterations": arm.iterations, "evaluate.split": _SPLIT.value, **arm.settings}
    )
    return loop.run(cfg, str(here), arm.judge)


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of one run that the table shows: margins in points, oracle means, judge agreement."""
    models, out = summary["models"], {}
    names = list(models)
    for a in names[1:]:
        for b in names[: names.index(a)]:
            v = models[a]["versus"][b]
            out[f"{a}-{b}"] = 100 * (v["win"] - v["lose"])
    for name in names:
        out[f"{name} mean"] = models[name]["oracle"]["mean"]
        out[f"{name} perfect"] = models[name]["oracle"]["perfect"]
        out[f"{name} length"] = models[name]["mean_length"]
        for metric in ("pairwise_accuracy", "exact_match", "spearman", "kendall", "five_best", "parse_rate"):
            out[f"{name} {metric}"] = models[name]["judge"][metric]
        for criterion in oracle.CRITERIA:
            out[f"{name} {criterion}"] = 100 * models[name]["oracle"]["criteria"][criterion]
    for criterion in oracle.CRITERIA if len(names) > 1 else ():
        out[f"{names[-1]}-m1 {criterion}"] = out[f"{names[-1]} {criterion}"] - out[f"m1 {criterion}"]
    out["seconds"], out["peak GB"] = summary["seconds"], summary["peak_memory_bytes"] / 1e9
    return out


def table(results: dict[str, dict[int, dict[str, float]]]) -> str:
    """Every figure of every arm: mean over seeds, standard error, and each seed."""
    lines = []
    for arm, by_seed in results.items():
        lines.append(f"\n{arm} ({len(by_seed)} seeds)")
        for name in next(iter(by_seed.values())):
            each = " ".join("       -" if f[name] is None else f"{f[name]:8.3f}" for f in by_seed.values())
            values = [f[name] for f in by_seed.values() if f[name] is not None] or [math.nan]
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
            error = spread / math.sqrt(len(values))
            lines.append(f"  {name:22s} {mean:8.3f} +- {error:6.3f}   {each}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs every arm of every seed."""
    del argv
    logging.set_verbosity(logging.WARNING)
    home = Path(_WORKDIR.value)
    arms = ["self", *(_ARMS.value or [name for name in ARMS if name != "self"])]
    results: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in arms}
    for seed in map(int, _SEEDS.value):
        for arm in arms:
            results[arm][seed] = figures(run_arm(arm, seed, home))
            print(json.dumps({"seed": seed, "arm": arm, **results[arm][seed]}), flush=True)
    print(table(results), flush=True)


if __name__ == "__main__":
    app.run(main)
