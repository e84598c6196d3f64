"""The stages. Each makes one file or one model of the working directory from earlier ones: it does nothing if
what it makes is whole, and goes on from what is there if it is not."""

from selfreward_jax.stages.check_round import check_round
from selfreward_jax.stages.common import StageError, check_inputs
from selfreward_jax.stages.pairwise_eval import compare, compare_by_endpoint
from selfreward_jax.stages.self_reward import (
    check_judge,
    judge,
    pairs,
    prompts,
    sample_best_of_n,
    sample_responses,
    sample_with_engine,
    self_judge,
)
from selfreward_jax.stages.setup import eft, pretrain, seed, tokenizer
from selfreward_jax.stages.training import dpo, sft, sft_baseline

__all__ = [
    "StageError",
    "sample_responses",
    "sample_best_of_n",
    "sample_with_engine",
    "pretrain",
    "sft_baseline",
    "check_inputs",
    "check_judge",
    "compare",
    "compare_by_endpoint",
    "eft",
    "check_round",
    "judge",
    "pairs",
    "dpo",
    "prompts",
    "seed",
    "self_judge",
    "sft",
    "tokenizer",
]
