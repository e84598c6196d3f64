"""The stages of a round: M_(t-1) writes prompts -> responses -> judgments -> pairs -> checks -> DPO -> M_t."""

import math

from ml_collections import ConfigDict

from selfreward_jax.method.comparisons import who_meets
from selfreward_jax.runs.stage import Cost, Stage
from selfreward_jax.stages import self_reward
from selfreward_jax.stages.check_round import check_round
from selfreward_jax.stages.comparisons import comparisons, hack_comparisons, judge_pairs, meta_judgments
from selfreward_jax.stages.dpo import dpo
from selfreward_jax.stages.prompts import prompts

ROUNDS = ("m[2-9]", "m[1-9][0-9]*")
LATER_ROUNDS = ("m[3-9]", "m[1-9][0-9]*")


def votes(cfg: ConfigDict, responses: int, num_samples: int = 0) -> Cost:
    """The cost of judging so many responses, with judge.num_samples votes each if no other number is given."""
    return Cost(responses, responses * (num_samples or cfg.judge.num_samples) * cfg.judge.max_new_tokens)


def _prompts(cfg: ConfigDict) -> int:
    return max(cfg.prompts.count, cfg.prompts.later_count)


def _responses(cfg: ConfigDict) -> int:
    return _prompts(cfg) * cfg.responses.num_samples


def _matchups(cfg: ConfigDict) -> int:
    return _prompts(cfg) * len(who_meets(cfg.responses.num_samples, cfg.judge.opponents))


def _meta(cfg: ConfigDict) -> int:
    return _prompts(cfg) * math.comb(cfg.judge.num_samples, 2)


def _hacks(cfg: ConfigDict) -> int:
    return 5 * min(cfg.checks.num_hack_prompts, _prompts(cfg))


def _anchors(cfg: ConfigDict) -> int:
    return _prompts(cfg) * cfg.pairs.anchor_samples


def _response_share(cfg: ConfigDict) -> float:
    """Of a batch of pairs those that are of responses."""
    return 1 - cfg.dpo.judge_pair_share if cfg.dpo.judge_pairs != "none" else 1.0


CHECK_JUDGE = Stage("check_judge", self_reward.check_judge, ROUNDS, ("{m-1}/eval_judgments.jsonl",), (), ())
PROMPTS = Stage(
    "prompts",
    prompts,
    folders=ROUNDS,
    reads=("seed/ift.jsonl", "seed/pool.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/prompts.*", "prompts_writer.json"),
    settings=("prompts",),
    kind="sampling",
    manifest="{m}/prompts.manifest.json",
    cost=lambda cfg: Cost(_prompts(cfg), cfg.prompts.max_attempts * cfg.prompts.max_new_tokens),
    work=lambda cfg: _prompts(cfg) * cfg.prompts.max_new_tokens,
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
    cost=lambda cfg: Cost(_prompts(cfg), _responses(cfg) * cfg.responses.max_new_tokens),
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
    cost=lambda cfg: Cost(_prompts(cfg), _anchors(cfg) * cfg.responses.max_new_tokens),
    wanted=lambda cfg: cfg.pairs.rejected == "anchor",
)
COMPARISONS = Stage(
    "comparisons",
    comparisons,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/comparisons.*",),
    settings=("judge", "pairwise.template", "pairwise.max_new_tokens"),
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
    cost=lambda cfg: Cost(_responses(cfg)) if cfg.judge.kind == "pairwise" else votes(cfg, _responses(cfg)),
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
    cost=lambda cfg: votes(cfg, _anchors(cfg)),
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
    cost=lambda cfg: votes(cfg, _responses(cfg)),
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
    cost=lambda cfg: votes(cfg, 4 * min(cfg.checks.num_probe_prompts, _prompts(cfg))),
    wanted=lambda cfg: cfg.checks.num_probe_prompts > 0 and cfg.judge.kind == "model",
)
HACKS = Stage(
    "hacks",
    self_reward.hacked,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m}/judgments.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/hacks.*",),
    settings=("judge",),
    kind="judging",
    manifest="{m}/hacks.manifest.json",
    cost=lambda cfg: votes(cfg, 7 * min(cfg.checks.num_hack_prompts, _prompts(cfg))),  # two of them plain
    wanted=lambda cfg: cfg.checks.num_hack_prompts > 0 and cfg.judge.kind == "model",
)
HACK_COMPARISONS = Stage(
    "hack_comparisons",
    hack_comparisons,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m}/judgments.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/hack_comparisons.*",),
    settings=("judge", "pairwise.template", "pairwise.max_new_tokens"),
    kind="judging",
    manifest="{m}/hack_comparisons.manifest.json",
    cost=lambda cfg: Cost(_hacks(cfg), _hacks(cfg) * 2 * cfg.judge.num_samples * cfg.pairwise.max_new_tokens),
    wanted=lambda cfg: cfg.checks.num_hack_prompts > 0 and cfg.judge.kind == "pairwise",
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
META_JUDGMENTS = Stage(
    "meta_judgments",
    meta_judgments,
    folders=ROUNDS,
    reads=("{m}/responses.jsonl", "{m}/judgments.jsonl", "{m-1}/checkpoint"),
    writes=("{m}/meta_judgments.*",),
    settings=("meta",),
    kind="judging",
    manifest="{m}/meta_judgments.manifest.json",
    cost=lambda cfg: Cost(_meta(cfg), _meta(cfg) * 2 * cfg.meta.max_new_tokens),
    wanted=lambda cfg: cfg.dpo.judge_pairs == "meta",
    rounds=lambda cfg: cfg.dpo.judge_pair_rounds or math.inf,
)
JUDGE_PAIRS = Stage(
    "judge_pairs",
    judge_pairs,
    folders=ROUNDS,
    reads=tuple(f"{{m}}/{name}.jsonl" for name in ("responses", "comparisons", "judgments", "meta_judgments")),
    writes=("{m}/judge_pairs.*",),
    settings=("dpo.judge_pairs", "dpo.judge_pair_rounds", "dpo.judge_pair_max_length", "pairwise.template"),
    manifest="{m}/judge_pairs.manifest.json",
    wanted=lambda cfg: cfg.dpo.judge_pairs != "none",
    rounds=lambda cfg: cfg.dpo.judge_pair_rounds or math.inf,
)
CHECKS = Stage(
    "checks",
    check_round,
    folders=ROUNDS,
    reads=tuple(
        f"{{m}}/{name}.jsonl" for name in ("prompts", "responses", "judgments", "probes", "hacks", "hack_comparisons")
    ),
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
        "seed/meta.jsonl",
    ),
    writes=("{m}/ref_logprobs.json", "{m}/checkpoint", "{m}/checkpoint.json", "{m}/manifest.json"),
    settings=("dpo", "optimizer", "lora", "pairwise.template", "meta.template"),
    kind="training",
    manifest="{m}/manifest.json",
    cost=lambda cfg: Cost(_prompts(cfg)),
    work=lambda cfg: math.ceil(_prompts(cfg) * cfg.dpo.epochs / (cfg.dpo.batch_size * _response_share(cfg))),
)
EARLY_STOPPING = Stage("early_stopping", None, ROUNDS, (), ("{m}/early_*",), ("pairwise", "evaluate", "judge"))

MAKE_ROWS = (PROMPTS, RESPONSES, ANCHOR_RESPONSES)
JUDGE = (COMPARISONS, JUDGMENTS, META_JUDGMENTS, ANCHOR_JUDGMENTS, PROBES, HACKS, HACK_COMPARISONS, EARLIER_JUDGMENTS)
ROUND = (CHECK_JUDGE, *MAKE_ROWS, *JUDGE, PAIRS, JUDGE_PAIRS, CHECKS, DPO, EARLY_STOPPING)
