"""The stages. Each makes one file or one model of the working directory from earlier ones: it does nothing if
what it makes is whole, and goes on from what is there if it is not."""

from selfreward_jax.stages.check_round import guard
from selfreward_jax.stages.common import StageError, check_inputs
from selfreward_jax.stages.pairwise_eval import compare, compare_by_endpoint
from selfreward_jax.stages.self_reward import (
    answer,
    answer_best,
    answer_with,
    check_judge,
    judge,
    pairs,
    prompts,
    self_judge,
)
from selfreward_jax.stages.setup import base, eft, seed, tokenizer
from selfreward_jax.stages.training import baseline, preferences, supervised

__all__ = [
    "StageError",
    "answer",
    "answer_best",
    "answer_with",
    "base",
    "baseline",
    "check_inputs",
    "check_judge",
    "compare",
    "compare_by_endpoint",
    "eft",
    "guard",
    "judge",
    "pairs",
    "preferences",
    "prompts",
    "seed",
    "self_judge",
    "supervised",
    "tokenizer",
]
