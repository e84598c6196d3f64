"""Every stage once, and the order in which a run goes through them (arXiv 2401.10020, section 2.4):

seeds -> tokenizer -> M0 -> SFT baseline (if wanted) -> EFT -> M1
round t = 2, 3, ...: M_(t-1) writes prompts -> responses -> judgments -> pairs -> checks -> DPO -> M_t
after each trained model: its responses to held-out prompts, its judgments of a fixed set, the figures of both
"""

from ml_collections import ConfigDict

from selfreward_jax.runs.stage import Cost, Stage, StageTable, Step
from selfreward_jax.stages import measure, setup
from selfreward_jax.stages.round_table import ROUND, votes
from selfreward_jax.stages.sft import sft, sft_baseline
from selfreward_jax.worlds import world_of


def _own_data(cfg: ConfigDict) -> bool:
    return not world_of(cfg)


def _documents(cfg: ConfigDict) -> Cost:
    return Cost(0 if _own_data(cfg) or cfg.model.init else cfg.data.num_documents)


def _set_rows(cfg: ConfigDict, *sets: str) -> Cost:
    d = cfg.data
    counts = {"ift": d.ift_rows, "eft": d.eft_rows, "prompts": d.prompt_rows}
    counts |= {"comparisons": d.comparison_rows, "meta": d.meta_rows}
    rows = [counts[name] for name in sets]
    return Cost(0 if _own_data(cfg) or not all(rows) else sum(rows))


def _eval_samples(cfg: ConfigDict) -> int:
    return cfg.data.heldout_prompts * cfg.evaluate.num_samples * cfg.evaluate.best_of


def _eval_answers(cfg: ConfigDict) -> Cost:
    tokens = 0 if cfg.evaluate.best_of > 1 else _eval_samples(cfg) * cfg.evaluate.max_new_tokens
    return Cost(cfg.data.heldout_prompts, tokens)


def _eval_judgments(cfg: ConfigDict) -> Cost:
    return votes(cfg, 0 if _own_data(cfg) else cfg.data.judge_eval_prompts * cfg.data.judge_eval_answers)


MODELS = ("sft", "m[1-9]*")

SEED = Stage(
    "documents",
    setup.seed,
    folders=("seed",),
    reads=(),
    writes=("seed/*",),
    settings=(
        *("seed", "world", "inputs", "data", "eft", "judge.template", "judge.output_format", "prompts.template"),
        *("prompts.num_seed_examples", "prompts.num_generated_examples", "prompts.min_words", "prompts.max_words"),
        *("prompts.multiline", "prompts.source"),
    ),
    manifest="seed/documents.manifest.json",
    cost=_documents,
)
TOKENIZER = Stage(
    "tokenizer",
    setup.tokenizer,
    folders=("tokenizer",),
    reads=("seed/ift.jsonl", "seed/eft.jsonl", "seed/documents.jsonl"),
    writes=("tokenizer/*",),
    settings=("tokenizer", "model", "chat", "prompts.multiline"),
    manifest="tokenizer/manifest.json",
)
PRETRAIN = Stage(
    "pretrain",
    setup.pretrain,
    folders=("m0",),
    reads=("seed/documents.jsonl", "tokenizer/*"),
    writes=("m0/*",),
    settings=("pretrain", "model", "optimizer"),
    kind="training",
    manifest="m0/manifest.json",
    cost=_documents,
)
SFT_BASELINE = Stage(
    "sft",
    sft_baseline,
    folders=("sft",),
    reads=("seed/ift.jsonl", "m0/checkpoint"),
    writes=("sft/*",),
    settings=("sft", "lora"),
    kind="training",
    manifest="sft/manifest.json",
    cost=lambda cfg: _set_rows(cfg, "ift"),
    wanted=lambda cfg: cfg.sft_baseline,
)
EFT = Stage(
    "eft_judgments",
    setup.eft,
    folders=("seed",),
    reads=("seed/eft_answers.jsonl", "sft/checkpoint"),
    writes=("seed/eft_judgments.*",),
    settings=("eft", "judge"),
    kind="judging",
    manifest="seed/eft_judgments.manifest.json",
    cost=lambda cfg: votes(cfg, 0, cfg.eft.num_samples),
    wanted=lambda cfg: cfg.eft.source == "baseline" and "eft" in {*cfg.sft.sets, *cfg.dpo.replay_sets},
)
SFT = Stage(
    "sft",
    sft,
    folders=("m1",),
    reads=("seed/ift.jsonl", "seed/eft.jsonl", "seed/comparisons.jsonl", "seed/meta.jsonl", "m0/checkpoint"),
    writes=("m1/*",),
    settings=("sft", "lora", "pairwise.template", "meta.template"),
    kind="training",
    manifest="m1/manifest.json",
    cost=lambda cfg: _set_rows(cfg, *cfg.sft.sets),
)
SAVED_STEPS = Stage("steps", None, ("m*", "sft"), (), ("{m}/steps",), ("max_nonfinite_steps",))
EVAL_DRAWN = Stage(
    "eval_answers_drawn",
    None,
    folders=MODELS,
    reads=("seed/heldout.jsonl", "{m}/checkpoint"),
    writes=("{m}/eval_answers_drawn.*",),
    settings=("evaluate",),
    kind="sampling",
    manifest="{m}/eval_answers_drawn.manifest.json",
    cost=lambda cfg: Cost(cfg.data.heldout_prompts, _eval_samples(cfg) * cfg.evaluate.max_new_tokens),
    wanted=lambda cfg: cfg.evaluate.best_of > 1,
)
EVAL_JUDGED = Stage(
    "eval_answers_judged",
    None,
    folders=MODELS,
    reads=("{m}/eval_answers_drawn.jsonl",),
    writes=("{m}/eval_answers_judged.*",),
    settings=("evaluate", "judge"),
    kind="judging",
    manifest="{m}/eval_answers_judged.manifest.json",
    cost=lambda cfg: votes(cfg, _eval_samples(cfg)),
    wanted=lambda cfg: cfg.evaluate.best_of > 1,
)
EVAL_ANSWERS = Stage(
    "eval_answers",
    measure.eval_answers,
    folders=MODELS,
    reads=("seed/heldout.jsonl", "{m}/checkpoint"),
    writes=("{m}/eval_answers.*",),
    settings=("evaluate",),
    kind="sampling",
    manifest="{m}/eval_answers.manifest.json",
    cost=_eval_answers,
)
EVAL_JUDGMENTS = Stage(
    "eval_judgments",
    measure.eval_judgments,
    folders=MODELS,
    reads=("seed/ranked_heldout.jsonl", "{m}/checkpoint"),
    writes=("{m}/eval_judgments.*",),
    settings=("evaluate", "judge"),
    kind="judging",
    manifest="{m}/eval_judgments.manifest.json",
    cost=_eval_judgments,
)
EVAL_METRICS = Stage(
    "eval_metrics",
    measure.eval_metrics,
    folders=MODELS,
    reads=("{m}/eval_answers.jsonl", "{m}/eval_judgments.jsonl"),
    writes=("{m}/eval.json",),
    settings=("evaluate",),
    manifest="{m}/eval.json",
)

MEASURE = (EVAL_DRAWN, EVAL_JUDGED, EVAL_ANSWERS, EVAL_JUDGMENTS, EVAL_METRICS)
STAGES = (SEED, TOKENIZER, PRETRAIN, SFT_BASELINE, EFT, SFT, *ROUND, SAVED_STEPS, *MEASURE)


def _order(cfg: ConfigDict, iterations: int) -> list[Step]:
    """The steps of a run to m_iterations."""

    def measured(stages: tuple[Stage, ...], folder: str) -> list[Step]:
        return [Step(stage, folder) for stage in (*stages, *MEASURE)]

    ordered = [Step(SEED, "seed"), Step(TOKENIZER, "tokenizer"), Step(PRETRAIN, "m0")]
    if cfg.sft_baseline:
        ordered += measured((SFT_BASELINE,), "sft")
    ordered += [Step(EFT, "seed"), *measured((SFT,), "m1")]
    for t in range(2, iterations + 1):
        ordered += measured((*ROUND, SAVED_STEPS), f"m{t}")
    return [step for step in ordered if step.is_wanted(cfg)]


# No artifact depends on whether a model is trained beside the others, or on how many rows are sampled together.
TABLE = StageTable(STAGES, _order, without_artifacts=("sft_baseline", "sampling"))
