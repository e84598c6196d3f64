"""Every stage once, and the order in which a run goes through them (arXiv 2401.10020, section 2.4):

seeds -> tokenizer -> M0 -> SFT baseline (if wanted) -> EFT -> M1
round t = 2, 3, ...: M_(t-1) writes prompts -> responses -> judgments -> pairs -> checks -> DPO -> M_t
after each trained model: its responses to held-out prompts, its judgments of a fixed set, the figures of both
"""

import math

from ml_collections import ConfigDict

from selfreward_jax.method.comparisons import who_meets
from selfreward_jax.runs.stage import Cost, Stage, StageTable, Step
from selfreward_jax.stages import measure, self_reward, setup
from selfreward_jax.stages.check_round import check_round
from selfreward_jax.stages.comparisons import comparisons, judge_pairs
from selfreward_jax.stages.dpo import dpo
from selfreward_jax.stages.prompts import prompts
from selfreward_jax.stages.sft import sft, sft_baseline
from selfreward_jax.worlds import world_of


def _own_data(cfg: ConfigDict) -> bool:
    return not world_of(cfg)


def _votes(cfg: ConfigDict, responses: int, num_samples: int = 0) -> Cost:
    return Cost(responses, responses * (num_samples or cfg.judge.num_samples) * cfg.judge.max_new_tokens)


def _documents(cfg: ConfigDict) -> Cost:
    return Cost(0 if _own_data(cfg) or cfg.model.init else cfg.data.num_documents)


def _set_rows(cfg: ConfigDict, *sets: str) -> Cost:
    d = cfg.data
    counts = {"ift": d.ift_rows, "eft": d.eft_rows, "comparisons": d.comparison_rows, "prompts": d.prompt_rows}
    rows = [counts[name] for name in sets]
    return Cost(0 if _own_data(cfg) or not all(rows) else sum(rows))


def _eval_samples(cfg: ConfigDict) -> int:
    return cfg.data.heldout_prompts * cfg.evaluate.num_samples * cfg.evaluate.best_of


def _eval_answers(cfg: ConfigDict) -> Cost:
    tokens = 0 if cfg.evaluate.best_of > 1 else _eval_samples(cfg) * cfg.evaluate.max_new_tokens
    return Cost(cfg.data.heldout_prompts, tokens)


def _eval_judgments(cfg: ConfigDict) -> Cost:
    return _votes(cfg, 0 if _own_data(cfg) else cfg.data.judge_eval_prompts * cfg.data.judge_eval_answers)


def _responses(cfg: ConfigDict) -> int:
    return cfg.prompts.count * cfg.responses.num_samples


def _matchups(cfg: ConfigDict) -> int:
    return cfg.prompts.count * len(who_meets(cfg.responses.num_samples, cfg.judge.opponents))


def _anchors(cfg: ConfigDict) -> int:
    return cfg.prompts.count * cfg.pairs.anchor_samples


ROUNDS = ("m[2-9]", "m[1-9][0-9]*")
LATER_ROUNDS = ("m[3-9]", "m[1-9][0-9]*")
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
        "prompts.multiline",
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
    cost=lambda cfg: _votes(cfg, 0, cfg.eft.num_samples),
    wanted=lambda cfg: cfg.eft.source == "baseline" and "eft" in {*cfg.sft.sets, *cfg.dpo.replay_sets},
)
SFT = Stage(
    "sft",
    sft,
    folders=("m1",),
    reads=("seed/ift.jsonl", "seed/eft.jsonl", "seed/comparisons.jsonl", "m0/checkpoint"),
    writes=("m1/*",),
    settings=("sft", "lora"),
    kind="training",
    manifest="m1/manifest.json",
    cost=lambda cfg: _set_rows(cfg, *cfg.sft.sets),
)
CHECK_JUDGE = Stage("check_judge", self_reward.check_judge, ROUNDS, ("{m-1}/eval_judgments.jsonl",), (), ())
PROMPTS = Stage(
    "prompts",
    prompts,
    folders=ROUNDS,
    reads=("seed/ift.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/prompts.*", "prompts_writer.json"),
    settings=("prompts",),
    kind="sampling",
    manifest="{m}/prompts.manifest.json",
    cost=lambda cfg: Cost(cfg.prompts.count, cfg.prompts.max_attempts * cfg.prompts.max_new_tokens),
    work=lambda cfg: cfg.prompts.count * cfg.prompts.max_new_tokens,
)
RESPONSES = Stage(
    "responses",
    self_reward.responses,
    folders=ROUNDS,
    reads=("{m}/prompts.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/responses.*",),
    settings=("responses",),
    kind="sampling",
    manifest="{m}/responses.manifest.json",
    cost=lambda cfg: Cost(cfg.prompts.count, _responses(cfg) * cfg.responses.max_new_tokens),
)
ANCHOR_RESPONSES = Stage(
    "anchor_responses",
    self_reward.anchor_responses,
    folders=LATER_ROUNDS,
    reads=("{m}/prompts.jsonl", "m1/checkpoint"),
    writes=("{m}/anchor_responses.*",),
    settings=("responses", "pairs.anchor_samples"),
    kind="sampling",
    manifest="{m}/anchor_responses.manifest.json",
    cost=lambda cfg: Cost(cfg.prompts.count, _anchors(cfg) * cfg.responses.max_new_tokens),
    wanted=lambda cfg: cfg.pairs.rejected == "anchor",
)
COMPARISONS = Stage(
    "comparisons",
    comparisons,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/comparisons.*",),
    settings=("judge", "pairwise"),
    kind="judging",
    manifest="{m}/comparisons.manifest.json",
    cost=lambda cfg: Cost(_matchups(cfg), _matchups(cfg) * 2 * cfg.judge.num_samples * cfg.pairwise.max_new_tokens),
    wanted=lambda cfg: cfg.judge.kind == "pairwise",
)
JUDGMENTS = Stage(
    "judgments",
    self_reward.judgments,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m}/comparisons.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/judgments.*",),
    settings=("judge",),
    kind="judging",
    manifest="{m}/judgments.manifest.json",
    cost=lambda cfg: Cost(_responses(cfg)) if cfg.judge.kind == "pairwise" else _votes(cfg, _responses(cfg)),
)
ANCHOR_JUDGMENTS = Stage(
    "anchor_judgments",
    self_reward.anchor_judgments,
    folders=LATER_ROUNDS,
    reads=("{m}/anchor_responses.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/anchor_judgments.*",),
    settings=("judge",),
    kind="judging",
    manifest="{m}/anchor_judgments.manifest.json",
    cost=lambda cfg: _votes(cfg, _anchors(cfg)),
    wanted=lambda cfg: cfg.pairs.rejected == "anchor",
)
EARLIER_JUDGMENTS = Stage(
    "earlier_judgments",
    self_reward.earlier_judgments,
    folders=LATER_ROUNDS,
    reads=("{m}/responses.jsonl", "{m-2}/checkpoint"),
    writes=("{m}/earlier_judgments.*",),
    settings=("judge",),
    kind="judging",
    manifest="{m}/earlier_judgments.manifest.json",
    cost=lambda cfg: _votes(cfg, _responses(cfg)),
    wanted=lambda cfg: cfg.pairs.agreement == "judges",
)
PROBES = Stage(
    "probes",
    self_reward.probes,
    folders=ROUNDS,
    reads=("{m}/prompts.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/probes.*",),
    settings=("judge",),
    kind="judging",
    manifest="{m}/probes.manifest.json",
    cost=lambda cfg: _votes(cfg, 4 * min(cfg.checks.num_probe_prompts, cfg.prompts.count)),
    wanted=lambda cfg: cfg.checks.num_probe_prompts > 0 and cfg.judge.kind == "model",
)
PAIRS = Stage(
    "pairs",
    self_reward.pairs,
    folders=ROUNDS,
    reads=tuple(f"{{m}}/{name}.jsonl" for name in self_reward.PAIR_SOURCES),
    writes=("{m}/pairs.*",),
    settings=("pairs",),
    manifest="{m}/pairs.manifest.json",
)
JUDGE_PAIRS = Stage(
    "judge_pairs",
    judge_pairs,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m}/comparisons.jsonl", "{m}/judgments.jsonl"),
    writes=("{m}/judge_pairs.*",),
    settings=("dpo.judge_pairs", "dpo.judge_pair_rounds", "pairwise.template"),
    manifest="{m}/judge_pairs.manifest.json",
    wanted=lambda cfg: cfg.dpo.judge_pairs != "none",
    rounds=lambda cfg: cfg.dpo.judge_pair_rounds or math.inf,
)
CHECKS = Stage(
    "checks",
    check_round,
    folders=ROUNDS,
    reads=("{m}/prompts.jsonl", "{m}/responses.jsonl", "{m}/judgments.jsonl", "{m}/probes.jsonl"),
    writes=("{m}/checks.json",),
    settings=(),
    manifest="{m}/checks.json",
)
DPO = Stage(
    "dpo",
    dpo,
    folders=ROUNDS,
    reads=(
        "{m}/pairs.jsonl",
        "{m}/judge_pairs.jsonl",
        "{m-1}/checkpoint",
        "m1/checkpoint",
        "seed/eft.jsonl",
        "seed/comparisons.jsonl",
    ),
    writes=("{m}/ref_logprobs.json", "{m}/checkpoint", "{m}/checkpoint.json", "{m}/manifest.json"),
    settings=("dpo", "optimizer", "lora"),
    kind="training",
    manifest="{m}/manifest.json",
    cost=lambda cfg: Cost(cfg.prompts.count),
    work=lambda cfg: math.ceil(cfg.prompts.count * cfg.dpo.epochs / cfg.dpo.batch_size),
)
EARLY_STOPPING = Stage("early_stopping", None, ROUNDS, (), ("{m}/early_*",), ("pairwise", "evaluate", "judge"))
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
    cost=lambda cfg: _votes(cfg, _eval_samples(cfg)),
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

JUDGE = (COMPARISONS, JUDGMENTS, ANCHOR_JUDGMENTS, PROBES, EARLIER_JUDGMENTS)  # the last by another model
ROUND = (
    CHECK_JUDGE,
    PROMPTS,
    RESPONSES,
    ANCHOR_RESPONSES,
    *JUDGE,
    PAIRS,
    JUDGE_PAIRS,
    CHECKS,
    DPO,
    EARLY_STOPPING,
    SAVED_STEPS,
)
MEASURE = (EVAL_DRAWN, EVAL_JUDGED, EVAL_ANSWERS, EVAL_JUDGMENTS, EVAL_METRICS)
STAGES = (SEED, TOKENIZER, PRETRAIN, SFT_BASELINE, EFT, SFT, *ROUND, *MEASURE)


def _order(cfg: ConfigDict, iterations: int) -> list[Step]:
    """The steps of a run to m_iterations."""

    def measured(stages: tuple[Stage, ...], folder: str) -> list[Step]:
        return [Step(stage, folder) for stage in (*stages, *MEASURE)]

    ordered = [Step(SEED, "seed"), Step(TOKENIZER, "tokenizer"), Step(PRETRAIN, "m0")]
    if cfg.sft_baseline:
        ordered += measured((SFT_BASELINE,), "sft")
    ordered += [Step(EFT, "seed"), *measured((SFT,), "m1")]
    for t in range(2, iterations + 1):
        ordered += measured(ROUND, f"m{t}")
    return [step for step in ordered if step.is_wanted(cfg)]


# No artifact depends on whether a model is trained beside the others, or on how many rows are sampled together.
TABLE = StageTable(STAGES, _order, without_artifacts=("sft_baseline", "sampling"))
