"""The checks that come before any work: settings that cannot work are refused with the field, its value and the
remedy."""

from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError

MINIMUMS = {
    "iterations": 1,
    "responses.num_samples": 2,
    "judge.num_samples": 1,
    "judge.min_votes": 1,
    "prompts.count": 1,
    "prompts.batch_size": 1,
    "prompts.max_attempts": 1,
    "prompts.num_seed_examples": 0,
    "prompts.num_generated_examples": 0,
    "evaluate.num_samples": 1,
    "evaluate.best_of": 1,
    "eft.num_samples": 1,
    "dpo.eval_every": 0,
    "dpo.eval_prompts": 1,
    "pairwise.max_new_tokens": 1,
    "endpoint.max_tokens": 1,
    "endpoint.max_requests": 0,
    "endpoint.retries": 0,
    "data.ift_rows": 0,
    "data.eft_rows": 0,
    "data.num_documents": 1,
    "data.heldout_prompts": 1,
    "data.judge_eval_prompts": 1,
    "data.judge_eval_answers": 2,
    "tokenizer.vocab_size": 16,
    "model.dim": 1,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.num_kv_heads": 1,
    "model.head_dim": 2,
    "model.mlp_dim": 1,
    "pretrain.seq_len": 8,
    "sft.seq_len": 8,
    "dpo.replay_seq_len": 8,
    "pretrain.grad_accum_steps": 1,
    "sft.grad_accum_steps": 1,
    "dpo.grad_accum_steps": 1,
    "dpo.gamma": 0,
    "sampling.max_concurrent": 1,
    "parallel.fsdp": 1,
    "parallel.tensor": 1,
    "parallel.replicas": 1,
    "parallel.sampling_tensor": 0,
    "parallel.timeout_s": 1,
    "shutdown_timeout_s": 1,
    "max_nonfinite_steps": 0,
    "lora.rank": 0,
    "checks.num_probe_prompts": 0,
    "checks.min_votes_per_answer": 0,
    "checks.max_length_growth": 0,
    "checks.max_fall": 1,
}

FRACTIONS = (
    "data.shared_to_ift",
    "eft.max_share",
    "checks.min_parse_rate",
    "checks.max_unscored",
    "checks.max_ties",
    "checks.max_one_score",
    "checks.max_repeats",
    "checks.max_leaks",
)

CHOICES = {
    "optimizer.name": ("adamw", "muon"),
    "optimizer.moment_dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "reference", "xla", "cudnn", "splash"),
    "evaluate.split": ("heldout", "validation"),
    "eft.source": ("scores", "baseline"),
    "eft.agreement": ("strict", "weak"),
    "judge.kind": ("model", "random"),
    "judge.output_format": ("points", "choice"),
    "judge.aggregation": ("votes", "expected"),
    "dpo.loss": ("sigmoid", "hinge", "ipo", "ipo_mean", "cdpo", "robust", "simpo", "sigmoid_norm"),
    "pairwise.method": ("scores", "pairwise"),
}


LORA_TARGETS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def validate(c: ConfigDict, row_devices: int, platform: str = "") -> None:
    """Refuses settings that cannot work.

    Args:
      c: the settings.
      row_devices: devices that batch rows are spread over.
      platform: what the devices are, in JAX's words, where that is known.

    Raises:
      ConfigError: on the first one.
    """
    _check_data(c)
    for field, least in MINIMUMS.items():
        if (value := _field(c, field)) < least:
            raise ConfigError(f"{field} is {value}; it must be at least {least}")
    for field, allowed in CHOICES.items():
        if (value := _field(c, field)) not in allowed:
            raise ConfigError(f"{field} is {value!r}; it must be {' or '.join(allowed)}")
    _check_model(c, platform)
    _check_training(c, row_devices)
    _check_sampling(c)


def _check_data(c: ConfigDict) -> None:
    if bool(c.data.ift) != bool(c.data.eft):
        given, lacking = ("ift", "eft") if c.data.ift else ("eft", "ift")
        raise ConfigError(f"data.{given} is {c.data[given]!r} but data.{lacking} is empty: give both files, or neither")
    for field, top in [*((share, 1.0) for share in FRACTIONS), ("pairs.length_control_rho", 0.5)]:
        if not 0 <= (value := _field(c, field)) <= top or (field == "pairs.length_control_rho" and value == top):
            below = "below" if field == "pairs.length_control_rho" else "at most"
            raise ConfigError(f"{field} is {value}; it must be at least 0 and {below} {top:g}")
    if c.eft.source == "baseline" and not c.sft_baseline:
        raise ConfigError(
            "eft.source is 'baseline' but sft_baseline is False: the SFT baseline writes EFT; set --config.sft_baseline"
        )
    if c.prompts.writer == "world" and c.data.ift:
        raise ConfigError(
            "prompts.writer is 'world' but data.ift is given: the embedded world writes prompts of its own alone; "
            "name a model's folder or working directory"
        )
    if c.eft.source == "baseline" and not c.data.ift and c.data.ift_rows and c.data.eft_rows:
        raise ConfigError(
            "eft.source is 'baseline', but the embedded world brings written judgments: give data.ift and data.eft"
        )
    if not c.data.ift and not (c.data.ift_rows and c.data.eft_rows):
        raise ConfigError(
            f"data.ift_rows is {c.data.ift_rows} and data.eft_rows {c.data.eft_rows}; 0 means all rows of a file, but "
            "no file is given: give data.ift and data.eft, or numbers of rows of the embedded world"
        )


def _check_model(c: ConfigDict, platform: str) -> None:
    if c.model.attention == "cudnn" and (platform not in ("", "gpu", "cuda") or c.model.dtype != "bfloat16"):
        where = f" on {platform}" if platform else ""
        raise ConfigError(
            f"model.attention is 'cudnn' with model.dtype {c.model.dtype!r}{where}; it takes bfloat16 on an NVIDIA "
            "GPU: use auto"
        )
    if c.model.head_dim % 2:
        raise ConfigError(f"model.head_dim is {c.model.head_dim}; rotary positions need an even number")
    if c.model.num_heads % c.model.num_kv_heads:
        raise ConfigError(
            f"model.num_heads {c.model.num_heads} is not divisible by model.num_kv_heads {c.model.num_kv_heads}"
        )


def _check_training(c: ConfigDict, row_devices: int) -> None:
    fields = (
        ["pretrain.batch_size"] * (not c.model.init)
        + ["sft.batch_size", "dpo.batch_size"]
        + ["dpo.replay_batch_size"] * bool(c.dpo.replay_weight)
    )
    for field in fields:
        value = _field(c, field)
        pieces = row_devices * c[field.split(".")[0]].grad_accum_steps
        if value < 1 or value % pieces:
            raise ConfigError(
                f"{field} is {value}, which is not divisible by {pieces} (the {row_devices} devices that rows are "
                f"spread over, times grad_accum_steps): use a multiple of {pieces}"
            )
    _check_lora(c)
    for stage in ("pretrain", "sft", "dpo"):
        if not c[stage].epochs > 0:
            raise ConfigError(f"{stage}.epochs is {c[stage].epochs}; it must be above 0")
    if not c.dpo.beta > 0:
        raise ConfigError(f"dpo.beta is {c.dpo.beta}; it must be above 0")
    if not 0 <= c.dpo.label_smoothing < 0.5:
        raise ConfigError(f"dpo.label_smoothing is {c.dpo.label_smoothing}; it must be at least 0 and below 0.5")
    if c.dpo.label_smoothing and c.dpo.loss not in ("cdpo", "robust"):
        raise ConfigError(
            f"dpo.label_smoothing is {c.dpo.label_smoothing}, which dpo.loss {c.dpo.loss!r} ignores: set it to 0, or "
            "take cdpo or robust"
        )
    for field, sets in (("dpo.replay_sets", c.dpo.replay_sets), ("sft.sets", c.sft.sets)):
        for name in sets:
            if name not in ("ift", "eft", "prompts"):
                raise ConfigError(f"{field} has {name!r}; the sets are ift, eft, prompts")
    if not c.sft.sets:
        raise ConfigError("sft.sets is empty; M1 needs something to learn from: ift, eft, prompts")


def _check_lora(c: ConfigDict) -> None:
    if not c.lora.rank:
        return
    if c.optimizer.name == "muon":
        raise ConfigError(
            f"lora.rank is {c.lora.rank} and optimizer.name 'muon', which is made for whole matrices: take adamw"
        )
    for name in c.lora.targets:
        if name not in LORA_TARGETS:
            raise ConfigError(f"lora.targets has {name!r}; the matrices are {', '.join(LORA_TARGETS)}")
    if len(set(c.lora.targets)) < len(c.lora.targets):
        raise ConfigError(f"lora.targets names a matrix twice: {', '.join(c.lora.targets)}; name each once")
    if not c.lora.targets:
        raise ConfigError(f"lora.rank is {c.lora.rank} but lora.targets is empty: name matrices, or set lora.rank to 0")


def _check_sampling(c: ConfigDict) -> None:
    for stage, least, most in (("judge", "min_votes", "num_samples"), ("prompts", "min_words", "max_words")):
        if c[stage][least] > c[stage][most]:
            raise ConfigError(
                f"{stage}.{least} is {c[stage][least]}, above {stage}.{most} {c[stage][most]}: lower the one or raise "
                "the other"
            )
    for stage in ("responses", "judge", "prompts", "evaluate"):
        if not 0 < c[stage].top_p <= 1 or not 0 <= c[stage].temperature < float("inf"):
            raise ConfigError(
                f"{stage}.top_p is {c[stage].top_p} and {stage}.temperature {c[stage].temperature}; top_p must "
                "be above 0 and at most 1, temperature at least 0"
            )
    for stage in ("responses", "judge", "prompts", "evaluate", "pairwise"):
        if c[stage].max_new_tokens >= c.model.max_length:
            raise ConfigError(
                f"{stage}.max_new_tokens is {c[stage].max_new_tokens}, but model.max_length {c.model.max_length} holds prompt "
                "and completion: lower the one or raise the other"
            )


def _field(c: ConfigDict, path: str) -> Any:
    for name in path.split("."):
        c = c[name]
    return c
