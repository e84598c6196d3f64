"""The range of every number among the settings. What is outside cannot work, or would exhaust a machine."""

from typing import Any, NamedTuple

from selfreward_jax.config.errors import ConfigError

MAX_ROWS = 10**9  # rows, prompts, steps, attempts
MAX_TOKENS = 1 << 24  # tokens of a text
MAX_WIDTH = 1 << 20  # a dimension of the model, or rows of a batch


class Range(NamedTuple):
    """From `low` to `high`, both included unless they are excluded."""

    low: float
    high: float
    excludes_low: bool = False
    excludes_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is inside. NaN is not."""
        above = self.low < value if self.excludes_low else self.low <= value
        return above and (value < self.high if self.excludes_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.excludes_low else 'at least'} {self.low:,}"
        return f"{low} and {'below' if self.excludes_high else 'at most'} {self.high:,}"


Ranges = dict[str, Range]
_TRAININGS = ("pretrain", "sft", "dpo")
_SAMPLINGS = ("prompts", "responses", "judge", "evaluate")


def _each(sections: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for section in sections for name in names)


def _all(low: float, high: float, *fields: str, excludes_low: bool = False, excludes_high: bool = False) -> Ranges:
    return dict.fromkeys(fields, Range(low, high, excludes_low, excludes_high))


RANGES: Ranges = {
    **_all(0, (1 << 32) - 1, "seed"),
    **_all(1, 1000, "iterations"),
    # numbers of rows, steps and requests
    **_all(0, MAX_ROWS, "checkpoint_every", "max_nonfinite_steps", "checks.num_probe_prompts", "endpoint.max_requests"),
    **_all(0, MAX_ROWS, "checks.num_hack_prompts"),
    **_all(0, MAX_ROWS, "data.ift_rows", "data.eft_rows", "data.prompt_rows", "dpo.eval_every"),
    **_all(0, MAX_ROWS, "prompts.later_count", "data.comparison_rows", "data.meta_rows", "dpo.judge_pair_max_length"),
    **_all(0, MAX_ROWS, *_each(_TRAININGS, "warmup_steps")),
    **_all(1, MAX_ROWS, "data.heldout_prompts", "data.judge_eval_prompts", "data.num_documents", "dpo.eval_prompts"),
    **_all(1, MAX_ROWS, "prompts.count", "prompts.max_attempts"),
    # samples of one prompt, and few-shot examples
    **_all(1, 10_000, "judge.num_samples", "judge.min_votes", "eft.num_samples"),
    **_all(1, 10_000, "evaluate.num_samples", "evaluate.best_of", "pairs.anchor_samples"),
    **_all(2, 10_000, "responses.num_samples", "data.judge_eval_answers"),
    **_all(0, 10_000, "judge.opponents", "judge.shots", "dpo.judge_pair_rounds"),
    **_all(0, 1000, "prompts.num_seed_examples", "prompts.num_generated_examples", "endpoint.retries"),
    # shapes
    **_all(1, MAX_WIDTH, "model.dim", "model.mlp_dim", "model.num_heads", "model.num_kv_heads"),
    **_all(2, MAX_WIDTH, "model.head_dim"),
    **_all(1, 10_000, "model.num_layers"),
    **_all(0, MAX_WIDTH, "lora.rank"),
    **_all(16, 10_000_000, "tokenizer.vocab_size"),
    **_all(1, MAX_WIDTH, "pretrain.batch_size"),
    **_all(0, MAX_WIDTH, *_each(("sft", "dpo"), "batch_size"), "dpo.replay_batch_size"),
    **_all(0, MAX_WIDTH, *_each(("sft", "dpo"), "grad_accum_steps"), "sampling.max_concurrent", "prompts.batch_size"),
    **_all(1, MAX_WIDTH, "pretrain.grad_accum_steps"),
    **_all(0, MAX_WIDTH, *_each(("parallel",), "fsdp", "tensor", "replicas", "sampling_tensor")),
    # lengths in tokens or words
    **_all(8, MAX_TOKENS, "model.max_length", "pretrain.seq_len", "sft.seq_len", "dpo.replay_seq_len"),
    **_all(1, MAX_TOKENS, *_each((*_SAMPLINGS, "pairwise", "meta"), "max_new_tokens"), "endpoint.max_tokens"),
    **_all(0, MAX_TOKENS, "prompts.min_words"),
    **_all(1, MAX_TOKENS, "prompts.max_words"),
    # fractions
    **_all(0, 1, "checks.max_leaks", "checks.max_one_score", "checks.max_repeats", "checks.max_ties"),
    **_all(0, 1, "checks.max_truncated"),
    **_all(0, 1, "checks.max_unscored", "checks.min_parse_rate", "data.max_malformed_frac", "data.shared_to_ift"),
    **_all(0, 1, "eft.max_share", "prompts.max_rouge"),
    **_all(0, 1, *_each(_SAMPLINGS, "top_p"), excludes_low=True),
    **_all(0, 1, *_each(_TRAININGS, "dropout"), "optimizer.b1", "optimizer.b2", excludes_high=True),
    **_all(1, 8, "dpo.length_buckets"),
    **_all(0, 1, "dpo.judge_pair_share", excludes_low=True, excludes_high=True),
    **_all(0, 0.5, "dpo.label_smoothing", "pairs.length_control_rho", excludes_high=True),
    # other quantities
    **_all(0, 1000, *_each(_TRAININGS, "lr", "lr_end"), *_each(_SAMPLINGS, "temperature")),
    **_all(0, 1000, "dpo.gamma", "dpo.dpo_weight", "dpo.nll_weight", "dpo.replay_weight", "optimizer.weight_decay"),
    **_all(0, 1000, "checks.max_length_growth", "checks.min_spread", "checks.min_votes_per_answer"),
    **_all(0, 5, "pairs.min_gap"),
    **_all(-1000, 1000, "checks.max_probe_lead"),
    **_all(-1, 1, "checks.max_hack_gain"),
    **_all(1, 1e9, "checks.max_fall", "model.rope_theta"),
    **_all(0, 1e6, *_each(_TRAININGS, "epochs"), "dpo.beta", "lora.alpha", excludes_low=True),
    **_all(0, 1e6, "optimizer.grad_clip_norm", "optimizer.muon_rms", "model.norm_eps", excludes_low=True),
    **_all(0, 1e6, "endpoint.timeout_s", excludes_low=True),
    **_all(1, 1e6, "parallel.timeout_s", "shutdown_timeout_s"),
}


def check_ranges(values: dict[str, Any]) -> None:
    """Checks each number alone.

    Args:
      values: settings by dotted names. Those that are no numbers are left out of account.

    Raises:
      ConfigError: for the first that is outside its range, or not finite.
    """
    for field, allowed in RANGES.items():
        if not allowed.holds(value := values[field]):
            remedy = "raise it" if value < allowed.high else "lower it" if value > allowed.low else "give a number"
            raise ConfigError(f"{field} is {value!r}; it must be {allowed}: {remedy}")
