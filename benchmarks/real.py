"""Does a real base model improve by judging itself? The checkable world with its controls, and the judge by kind.

    python -m benchmarks.real --workdir=runs/real --model=FOLDER --ift=FILE [--seeds=0,1] [--arms=self]

Runs configs/real/checkable.py for every seed, and arms that share its M1, and the responses of round 2 that are there:

    self           the model judges its own responses, to M3
    random judge   random scores in place of the judge's, to M2
    replay alone   only the replay steps, no preferences, to M2
    best of 4      M1 gives the one of four samples that its own judge scores highest
    lora           as self, to M2, but from M0 on adapters alone are trained

A stopped run goes on where it was. At the end it prints one table: what each model meets, by the oracle; how it judges;
for each kind of instruction the share of M1's verdicts that are right beside the gain from M1 to the last model; and
the seconds of each stage.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from benchmarks.artifacts import fork
from configs.real.checkable import get_config
from selfreward_jax import loop, storage
from selfreward_jax.evaluate.audit import criteria
from selfreward_jax.evaluate.model_metrics import ranked_responses
from selfreward_jax.evaluate.oracle import metrics as oracle_metrics
from selfreward_jax.method.rows import ResponsesRow
from selfreward_jax.runs.run import Run, open_run
from selfreward_jax.stages import StageError
from selfreward_jax.stages.sampling import sample_with_engine
from selfreward_jax.worlds.checkable import oracle

_WORKDIR = flags.DEFINE_string("workdir", "runs/real", "Folder of all runs.")
_MODEL = flags.DEFINE_string("model", "", "Folder of the base model.")
_IFT = flags.DEFINE_string("ift", "", "File of requests and answers.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds; all are in the table.")
_MACHINE = flags.DEFINE_string("machine", "cpu", "A machine of configs/real/checkable.py.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype.")
_SPLIT = flags.DEFINE_enum("split", "heldout", ["heldout", "validation"], "Prompts; validation to choose settings.")
_ONLY_TABLE = flags.DEFINE_bool("only_table", False, "Run nothing; print what there is.")
M0 = ("seed", "tokenizer", "m0")
M1 = (*M0, "m1/checkpoint", "m1/checkpoint.json", "m1/manifest.json")
ROUND2 = ("m2/prompts", "m2/responses")  # of M1, whoever judges them
ARMS: dict[str, dict[str, Any]] = {
    "self": {},
    "random judge": {"judge.kind": "random", "iterations": 2},
    "replay alone": {"dpo.dpo_weight": 0.0, "dpo.nll_weight": 0.0, "iterations": 2},
    "best of 4": {"evaluate.best_of": 4, "iterations": 1},
    "lora": {"lora.rank": 32, "lora.alpha": 32.0, "iterations": 2, "sft.lr": 1e-3, "sft.lr_end": 1e-4, "dpo.lr": 1e-4},
}
_ARMS = flags.DEFINE_multi_enum("arms", list(ARMS), list(ARMS), "Arms to run; give it once for each. By default all.")


def run_arm(name: str, seed: int, root: Path) -> Path:
    """Runs an arm, or goes on with it. Returns its working directory."""
    workdir, main_workdir = (root / f"seed{seed}" / arm.replace(" ", "_") for arm in (name, "self"))
    if _ONLY_TABLE.value:
        return workdir
    if name != "self" and not (main_workdir / "m1" / "manifest.json").exists():
        print(f"seed {seed}, {name}: not run: it takes M1 of self", flush=True)
        return workdir
    if name != "self":
        fork(main_workdir, workdir, _shared(main_workdir, name), ARMS[name]["iterations"])
    c = get_config(_MACHINE.value)
    settings = {"seed": seed, "model.init": _MODEL.value, "data.ift": _IFT.value, "model.dtype": _DTYPE.value}
    settings["evaluate.split"] = _SPLIT.value
    c.update_from_flattened_dict(settings | ARMS[name])
    try:
        loop.run(c, str(workdir), allow_config_changes=True)
    except StageError as error:
        print(f"seed {seed}, {name}: stopped: {error}", flush=True)
    return workdir


def _shared(source: Path, name: str) -> tuple[str, ...]:
    """What an arm takes from the run that judges itself."""
    if name == "lora":
        return M0
    has_responses = (source / "m2/responses.manifest.json").exists() and ARMS[name]["iterations"] > 1
    return M1 + ROUND2 if has_responses else M1


def judge_by_kind(run: Run, model: str) -> dict[str, tuple[float, int]]:
    """For each kind of instruction the share of a judge's verdicts on the ranked answers that are right, and how many
    there are."""
    ranked = run.files.jsonl("seed", f"ranked_{run.cfg.evaluate.split}").rows()
    judgments = run.files.jsonl(model, "eval_judgments").rows()
    figures = criteria(ranked_responses(ranked), judgments, run.cfg.world)
    return {kind: (share, figures["verdicts"][kind]) for kind, share in figures["right"].items()}


def share_met(rows: Sequence[ResponsesRow]) -> float:
    """The share of all instructions that responses meet."""
    met = [m for row in rows for r in row["responses"] for m in oracle.points(row["prompt"], r["text"]).values()]
    return sum(met) / len(met)


def describe_texts(texts: Sequence[str], finished: Sequence[bool]) -> dict[str, float]:
    """Whether texts end, their length, and whether they degenerate."""
    words = [text.lower().split() for text in texts]
    return {
        "finished": sum(finished) / len(finished),
        "words": sum(map(len, words)) / len(words),
        "distinct words": sum(len(set(w)) / len(w) for w in words if w) / max(1, sum(map(bool, words))),
        "repeats": sum(map(oracle.repeats, texts)) / len(texts),
        "empty": sum(not w for w in words) / len(words),
    }


def describe_prompts(prompts: Sequence[str]) -> dict[str, float]:
    """How many new prompts have instructions that the oracle can read, and all of them, and how many they have."""
    readings = [oracle.read(prompt) for prompt in prompts]
    return {
        "prompts": len(prompts),
        "with instructions": sum(bool(r.instructions) for r in readings) / len(readings),
        "read in full": sum(bool(r.instructions) and not r.unread for r in readings) / len(readings),
        "instructions": sum(len(r.instructions) for r in readings) / len(readings),
    }


def answers_of_m0(run: Run) -> list[ResponsesRow]:
    """What the base model says to the same prompts. It never saw the form of a chat, an instruction or a judgment."""
    engine, stage = run.models.engine("m0"), "m0_answers"
    prompts = run.files.jsonl("seed", run.cfg.evaluate.split).rows()
    sample_with_engine(run, engine, prompts, run.cfg.evaluate, "evaluation", stage, "m0")
    return run.files.jsonl("evaluation", stage).rows()


def tables(run: Run, figures: Mapping[str, Any], m0_answers: Sequence[ResponsesRow] = ()) -> Iterator[str]:
    """The tables of one run; with the base model's answers, if they are given."""
    models = figures["models"]
    names = list(models)
    answers = {"m0": m0_answers} if m0_answers else {}
    answers |= {name: run.files.jsonl(name, "eval_answers").rows() for name in names}
    yield f"{'answers':22s}" + "".join(f"{name.upper():>9s}" for name in answers)
    met = {name: oracle_metrics(rows, run.cfg.world) for name, rows in answers.items()}
    yield _line("met", [share_met(rows) for rows in answers.values()])
    for field, shown in (("taught", "met, taught"), ("transfer", "met, transfer"), ("perfect", "all met")):
        yield _line(shown, [met[name][field] for name in answers])
    responses = {name: [r for row in rows for r in row["responses"]] for name, rows in answers.items()}
    texts = {n: describe_texts([r["text"] for r in of], [r["finished"] for r in of]) for n, of in responses.items()}
    for field in next(iter(texts.values())):
        yield _line(field, [texts[name][field] for name in answers])
    yield f"\n{'judge':22s}" + "".join(f"{name.upper():>9s}" for name in names)
    for field in ("pairwise_accuracy", "length_accuracy", "spearman", "parse_rate"):
        yield _line(field, [models[n]["judge"][field] for n in names])
    for name in names:
        low, high = models[name]["judge"]["interval"]["pairwise_accuracy"]
        yield f"  {name.upper()} pairwise [{low:.3f} {high:.3f}]"
    judged = {name: judge_by_kind(run, name) for name in names}
    first, last = names[0], names[-1]
    yield (
        f"\n{'kind':14s}{'verdicts':>9s}"
        + "".join(f"{n.upper() + ' right':>10s}" for n in names)
        + "".join(f"{n.upper() + ' met':>9s}" for n in names)
        + f"  {last.upper()} - {first.upper()}"
    )
    for kind, met in models[first]["oracle"]["criteria"].items():
        right = [judged[n].get(kind, (0.0, 0)) for n in names]
        shares = "".join(f"{share:10.3f}" if count else f"{'-':>10s}" for share, count in right)
        shares += "".join(f"{models[n]['oracle']['criteria'][kind]:9.3f}" for n in names)
        yield f"{kind:14s}{right[0][1]:9d}{shares}{models[last]['oracle']['criteria'][kind] - met:+8.3f}"
    for a in names[::-1]:
        for b in names[: names.index(a)]:
            v = models[a]["versus"][b]
            low, high = v["interval"]["margin"]
            rates = " / ".join(f"{100 * v[k]:.1f}" for k in ("win", "tie", "lose"))
            yield f"{a.upper()} : {b.upper()}  {rates}  {100 * v['margin']:+.1f} [{100 * low:+.1f} {100 * high:+.1f}]"
    for name in (n for n in names if run.files.jsonl(n, "prompts").manifest):
        of = describe_prompts([row["prompt"] for row in run.files.jsonl(name, "prompts").rows()])
        yield f"{name} new prompts: " + ", ".join(f"{k} {v:.3g}" for k, v in of.items())
    stages = [f"{s['model']} {s['name']} {s['seconds']:,.0f}" for s in figures["stages"] if s["seconds"] >= 1]
    yield f"seconds: {', '.join(stages)}; peak memory {figures['peak_memory_bytes'] / 1e9:.1f} GB"


def _line(name: str, values: Sequence[float | None]) -> str:
    return f"  {name:20s}" + "".join(f"{'-':>9s}" if v is None else f"{v:9.3f}" for v in values)


def main(_: list[str]) -> None:
    """Runs every arm of every seed, and prints the tables."""
    logging.set_verbosity(logging.WARNING)
    for seed in map(int, _SEEDS.value):
        for arm in sorted(_ARMS.value, key=list(ARMS).index):
            workdir = run_arm(arm, seed, Path(_WORKDIR.value))
            if not (workdir / "summary.json").exists():
                continue
            run = open_run(str(workdir))
            print(f"\n=== seed {seed}, {arm}")
            m0_answers = answers_of_m0(run) if arm == "self" else ()
            print("\n".join(tables(run, storage.read_json(run.workdir / "summary.json"), m0_answers)), flush=True)


if __name__ == "__main__":
    app.run(main)
