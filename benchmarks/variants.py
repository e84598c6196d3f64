"""Self-rewarding and its follow-ups on the same seeds: what does each switch change?

    python -m benchmarks.variants --workdir=runs/variants [--seeds=0,1,2,3,4] [--variants="plain;anchor"]

    plain       as in the paper: the best response against the worst
    anchor      from M3 on against the worst of two responses of M1 (after Temporal Self-Rewarding)
    agreement   labels smoothed by the agreement of two halves of the votes (after CREAM)
    pairwise    responses compared two by two, and pairs of judgments from the comparisons (after SERL)
    meta        pairs of judgments by a meta-judge (after Meta-Rewarding)
    anchor+meta both
    plain, noise; agreement, noise: plain and agreement with 30 % of the judge's votes replaced by random ones

Variants whose M1 is the same share it. Pairwise and meta have their own, taught to compare by as many more rows. Each
run goes to M3, or to M_N with --iterations, and goes on where it was stopped. Prints a JSON line for each run, and a
table with intervals over seeds. Choose settings with --split=validation; measure once without.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from benchmarks.artifacts import fork
from benchmarks.seeds_table import table, table_metrics
from selfreward_jax import loop
from selfreward_jax.config import default_config
from selfreward_jax.method.judge import judgment_row
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import JudgmentRow, Vote
from selfreward_jax.report import summary
from selfreward_jax.runs.run import Run, open_run
from selfreward_jax.stages import StageError
from selfreward_jax.stages.common import previous_model
from selfreward_jax.stages.sampling import judge
from selfreward_jax.stages.table import TABLE

M1 = ("seed", "tokenizer", "m0", "m1")


class Variant(NamedTuple):
    """What differs from plain self-rewarding.

    settings: of the configuration.
    of: the variant whose M1 it continues; "" if it has its own.
    noise: the share of a round's votes that are replaced by random ones.
    """

    settings: dict[str, Any] = {}
    of: str = ""
    noise: float = 0.0


def _taught(name: str, rows: int, length: int) -> dict[str, Any]:
    """Rows of another task of the judge, in SFT and replay, and room for them."""
    lengths = ("model.max_length", "sft.seq_len", "dpo.replay_seq_len")
    sets = {"sft.sets": ("ift", "eft", name, "prompts"), "dpo.replay_sets": ("eft", name, "prompts")}
    return {
        f"data.{'comparison' if name == 'comparisons' else name}_rows": rows,
        **sets,
        **dict.fromkeys(lengths, length),
    }


_ANCHOR = {"pairs.rejected": "anchor"}
_AGREEMENT = {"pairs.agreement": "votes"}
_META = {
    **_taught("meta", 2500, 512),
    "dpo.judge_pairs": "meta",
    "meta.template": "meta_judge_short",
    "meta.max_new_tokens": 160,
}
_PAIRWISE = {
    **_taught("comparisons", 2500, 384),
    "judge.kind": "pairwise",
    "judge.num_samples": 2,
    "dpo.judge_pairs": "pairwise",
    "pairwise.template": "judge_pairwise_short",
    "pairwise.max_new_tokens": 224,
}
VARIANTS = {
    "plain": Variant(),
    "anchor": Variant(_ANCHOR, of="plain"),
    "agreement": Variant(_AGREEMENT, of="plain"),
    "pairwise": Variant(_PAIRWISE),
    "meta": Variant(_META),
    "anchor+meta": Variant(_META | _ANCHOR, of="meta"),
    "plain, noise": Variant({}, of="plain", noise=0.3),
    "agreement, noise": Variant(_AGREEMENT, of="plain", noise=0.3),
}


def variant_config(name: str, seed: int, iterations: int, split: str) -> ConfigDict:
    """The settings of a variant in the toy world."""
    cfg = default_config()
    settings = {"seed": seed, "iterations": iterations, "evaluate.split": split}
    cfg.update_from_flattened_dict(settings | VARIANTS[name].settings)
    return cfg


def replace_votes(rows: Sequence[JudgmentRow], share: float, seed: str) -> list[JudgmentRow]:
    """Judgments in which each vote is, with probability `share`, a random one from 0 to 5."""
    rng = Random(seed)

    def vote(of: Vote) -> Vote:
        return {"text": "", "finished": True, "score": float(rng.randint(0, 5))} if rng.random() < share else of

    return [judgment_row(row["id"], [vote(v) for v in row["votes"]], tokens=0) for row in rows]


def _noisy_judgments(share: float, run: Run, model: str) -> None:
    """m_t/judgments.jsonl with noise, of what the judge wrote in m_t/true_judgments.jsonl."""
    if run.files.is_complete(model, "judgments"):
        return
    responses = finished_responses(run.files.jsonl(model, "responses").rows())
    rows = judge(run, previous_model(model), responses, model, "true_judgments")
    noisy = replace_votes(rows, share, f"{run.cfg.seed} {model} noise")
    run.files.jsonl(model, "judgments").finish(noisy, tokens=0)


def run_variant(name: str, seed: int, root: Path, iterations: int, split: str) -> dict[str, Any]:
    """The summary of one run; if a stage stops it, the summary of what there is and the reason."""
    folder, variant = root / f"seed{seed}", VARIANTS[name]
    cfg = variant_config(name, seed, iterations, split)
    if variant.of:
        fork(folder / variant.of, folder / name, M1, iterations)
    replace = {"judgments": partial(_noisy_judgments, variant.noise)} if variant.noise else None
    try:
        return loop.run(cfg, str(folder / name), replace, allow_config_changes=True)
    except StageError as error:
        return {**summary.write(open_run(str(folder / name)), TABLE), "stopped": str(error)}


def main() -> None:
    """Runs every variant of every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/variants", help="folder of all runs")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="all are in the table")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="in the order in which they are run, with ;")
    parser.add_argument("--iterations", type=int, default=3, help="how far")
    parser.add_argument("--split", choices=("heldout", "validation"), default="heldout")
    options = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    wanted = options.variants.split(";")
    if unknown := [name for name in wanted if name not in VARIANTS]:
        parser.error(f"--variants has {unknown[0]!r}; they are, with ; between them: {'; '.join(VARIANTS)}")
    names = list(dict.fromkeys(of for name in wanted for of in (VARIANTS[name].of or name, name)))
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for seed in map(int, options.seeds.split(",")):
        for name in names:
            made = run_variant(name, seed, Path(options.workdir), options.iterations, options.split)
            results[name][seed] = table_metrics(made)
            print(json.dumps({"seed": seed, "variant": name, **results[name][seed]}), flush=True)
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
