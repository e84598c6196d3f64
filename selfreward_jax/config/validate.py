"""Checks before any work: a setting that cannot work is refused with its field, its value and the remedy."""

from ml_collections import ConfigDict

from selfreward_jax.config.columns import parse_columns
from selfreward_jax.config.comments import flatten_config
from selfreward_jax.config.errors import ConfigError, refusal
from selfreward_jax.config.judging_rules import check_judging, get_field
from selfreward_jax.config.ranges import check_ranges

CHOICES = {
    "chat.thinking": ("off", "on"),
    "dpo.judge_pairs": ("none", "pairwise", "meta"),
    "dpo.reference": ("previous", "m1"),
    "dpo.loss": ("sigmoid", "hinge", "ipo", "ipo_mean", "cdpo", "robust", "simpo", "sigmoid_norm"),
    "eft.agreement": ("strict", "weak"),
    "eft.source": ("scores", "baseline"),
    "world": ("toy", "checkable"),
    "evaluate.split": ("heldout", "validation"),
    "judge.aggregation": ("mean", "expected"),
    "judge.kind": ("model", "pairwise", "random"),
    "judge.length_gate": ("none", "window", "scale"),
    "judge.output_format": ("points", "choice"),
    "model.attention": ("auto", "reference", "xla", "cudnn", "splash"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "optimizer.moment_dtype": ("float32", "bfloat16"),
    "optimizer.name": ("adamw", "muon"),
    "pairs.agreement": ("none", "votes", "judges"),
    "pairs.rejected": ("worst", "two_sigma", "anchor"),
    "pairwise.method": ("scores", "pairwise"),
}

MAX_STEP_TOKENS = 100_000_000

SEED_SETS = ("ift", "eft", "comparisons", "meta", "prompts")

LORA_TARGETS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def validate(c: ConfigDict, row_devices: int, platform: str = "") -> None:
    """Refuses settings that cannot work.

    Args:
      c: the settings.
      row_devices: number of devices that the rows of a batch are sharded over.
      platform: JAX's name of the platform, such as "gpu"; "" if it is not known yet.

    Raises:
      ConfigError: for the first setting that cannot work.
    """
    check_ranges(flatten_config(c))
    _check_choices(c)
    _check_data(c)
    _check_seed_sets(c)
    _check_model(c, platform)
    _check_batch_sizes(c, row_devices)
    _check_dpo(c)
    check_judging(c)
    _check_lora(c)
    _check_sampling(c)


def _check_choices(c: ConfigDict) -> None:
    for field, choices in CHOICES.items():
        if (value := get_field(c, field)) not in choices:
            names = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise refusal(field, value, names, "choose one of them")
    for field in ("dpo.replay_sets", "sft.sets"):
        for name in get_field(c, field):
            if name not in SEED_SETS:
                raise refusal(field, get_field(c, field), f"some of {', '.join(SEED_SETS)}", f"remove {name!r}")
    if not c.sft.sets:
        raise refusal("sft.sets", c.sft.sets, f"some of {', '.join(SEED_SETS)}", "name a set to train M1 on")


def _check_seed_sets(c: ConfigDict) -> None:
    """A set that is trained on is made."""
    for name, count in (("comparisons", "data.comparison_rows"), ("meta", "data.meta_rows")):
        for field in ("sft.sets", "dpo.replay_sets"):
            if name in get_field(c, field) and not get_field(c, count):
                raise ConfigError(f"{field} names {name!r}, but {count} is 0: raise it, or take {name!r} out")
    if c.data.meta_rows and c.world == "toy" and c.data.ift:  # with a file it is not the toy world
        raise refusal("data.meta_rows", c.data.meta_rows, "0 with your own seeds", "only the worlds write such rows")
    if c.data.meta_rows and c.judge.output_format != "points":
        raise ConfigError(
            f"data.meta_rows is {c.data.meta_rows}, but judge.output_format is {c.judge.output_format!r}: such rows "
            "compare judgments that end in points; set the former to 0, or the latter to points"
        )


def _check_checkable(c: ConfigDict) -> None:
    """The checkable world takes requests from a file, and judges answers itself."""
    if not c.data.ift:
        raise ConfigError("data.ift is empty, but world is 'checkable': name a file with requests and answers")
    if c.data.eft or c.eft.source != "scores":
        raise ConfigError(
            f"data.eft is {c.data.eft!r} and eft.source {c.eft.source!r}, but world is 'checkable', which writes the "
            "judgments: leave data.eft empty and eft.source at scores"
        )
    for field in ("data.ift_rows", "data.eft_rows"):
        if not get_field(c, field):
            raise refusal(field, 0, "at least 1 where world is 'checkable'", "say how many rows to make")


def _check_data(c: ConfigDict) -> None:
    has_files = bool(c.data.ift)
    if c.prompts.source and c.prompts.writer:
        raise refusal("prompts.writer", c.prompts.writer, "empty with prompts.source", "give one of them")
    if c.prompts.writer == "world" and (has_files or c.world != "toy"):
        raise ConfigError(
            f"prompts.writer is 'world' but data.ift is {c.data.ift!r} and world {c.world!r}; the toy world writes its "
            "own kind of prompts only: name the folder or workdir of a model"
        )
    if c.world == "checkable":
        _check_checkable(c)
        return
    if has_files != bool(c.data.eft):
        given, missing = ("ift", "eft") if has_files else ("eft", "ift")
        raise ConfigError(f"data.{given} is {c.data[given]!r} but data.{missing} is empty: give both, or neither")
    if parse_columns(c.data.columns) and not has_files:
        raise refusal("data.columns", c.data.columns, "empty without data.ift and data.eft", "remove it, or give both")
    if c.eft.source == "baseline" and not c.sft_baseline:
        raise ConfigError(
            "eft.source is 'baseline' but sft_baseline is False: the SFT baseline writes the judgments; set "
            "--config.sft_baseline"
        )
    if not has_files and not (c.data.ift_rows and c.data.eft_rows):
        raise ConfigError(
            f"data.ift_rows is {c.data.ift_rows} and data.eft_rows is {c.data.eft_rows}; 0 means all rows of a file, "
            "but no file is given: give data.ift and data.eft, or numbers of rows of the toy world"
        )
    if c.eft.source == "baseline" and not has_files:
        raise ConfigError(
            "eft.source is 'baseline', but the toy world brings written judgments: give data.ift and data.eft, or "
            "use scores"
        )


def _check_model(c: ConfigDict, platform: str) -> None:
    if c.model.attention == "cudnn" and (platform not in ("", "gpu", "cuda") or c.model.dtype != "bfloat16"):
        used_on = f" on {platform}" if platform else ""
        raise ConfigError(
            f"model.attention is 'cudnn' with model.dtype {c.model.dtype!r}{used_on}; it must be another kernel where "
            "the dtype is not bfloat16 or the device is no NVIDIA GPU: use auto"
        )
    if c.model.head_dim % 2:
        raise refusal("model.head_dim", c.model.head_dim, "even for rotary positions", "add 1")
    if c.model.num_heads % c.model.num_kv_heads:
        raise ConfigError(
            f"model.num_heads is {c.model.num_heads}; it must be a multiple of model.num_kv_heads "
            f"{c.model.num_kv_heads}: change one of them"
        )


def _check_batch_sizes(c: ConfigDict, row_devices: int) -> None:
    fields = ["sft.batch_size", "dpo.batch_size"]
    if not c.model.init:  # else nothing is pretrained
        fields.insert(0, "pretrain.batch_size")
    if c.dpo.replay_weight:
        fields.append("dpo.replay_batch_size")
    for field in fields:
        value, accum_steps = get_field(c, field), max(1, c[field.split(".")[0]].grad_accum_steps)
        divisor = row_devices * accum_steps
        length = c.dpo.replay_seq_len if field.startswith("dpo.replay") else c[field.split(".")[0]].get("seq_len", 1)
        if value * length > MAX_STEP_TOKENS:
            raise ConfigError(
                f"{field} is {value}; with {length:,} tokens a row a step would have more than {MAX_STEP_TOKENS:,} "
                "tokens: lower it"
            )
        if value % divisor:
            raise ConfigError(
                f"{field} is {value}; it must be divisible by {divisor} ({row_devices} devices that rows are sharded "
                f"over, times grad_accum_steps {accum_steps}): use a multiple of {divisor}"
            )


def _check_dpo(c: ConfigDict) -> None:
    if c.dpo.reference == "m1" and c.dpo.loss == "simpo":
        raise ConfigError("dpo.reference is 'm1', but dpo.loss 'simpo' has no reference: set it to previous")
    if c.dpo.label_smoothing and c.dpo.loss not in ("cdpo", "robust"):
        raise ConfigError(
            f"dpo.label_smoothing is {c.dpo.label_smoothing}, which dpo.loss {c.dpo.loss!r} ignores: set it to 0, or "
            "use cdpo or robust"
        )


def _check_lora(c: ConfigDict) -> None:
    rank, targets = c.lora.rank, c.lora.targets
    if not rank:
        return
    if c.optimizer.name == "muon":
        raise ConfigError(f"lora.rank is {rank}; muon does not train adapters, but optimizer.name is 'muon': use adamw")
    names = ", ".join(targets)
    for name in targets:
        if name not in LORA_TARGETS:
            raise refusal("lora.targets", names, f"some of {', '.join(LORA_TARGETS)}", f"remove {name!r}")
    if len(set(targets)) < len(targets):
        raise refusal("lora.targets", names, "without repeats", "name each once")
    if not targets:
        raise ConfigError(f"lora.rank is {rank} but lora.targets is empty: name matrices, or set lora.rank to 0")


def _check_sampling(c: ConfigDict) -> None:
    prompts = c.prompts
    for lower, upper in (
        ("min_words", "max_words"),
        ("count", "max_attempts"),
        ("later_count", "max_attempts"),
    ):
        if prompts[lower] > prompts[upper]:
            raise ConfigError(
                f"prompts.{lower} is {prompts[lower]}; it must be at most prompts.{upper} {prompts[upper]}: lower the "
                "former or raise the latter"
            )
    if prompts.writer == "endpoint" and max(prompts.count, prompts.later_count) > c.endpoint.max_requests:
        raise ConfigError(
            f"endpoint.max_requests is {c.endpoint.max_requests}, but prompts.count is {prompts.count} and "
            f"prompts.later_count {prompts.later_count}, each a request at least: raise the former or lower the latter"
        )
    for stage in ("responses", "judge", "prompts", "evaluate", "pairwise", "meta"):
        if c[stage].max_new_tokens >= c.model.max_length:
            raise ConfigError(
                f"{stage}.max_new_tokens is {c[stage].max_new_tokens}; it must be below model.max_length "
                f"{c.model.max_length}, which holds prompt and completion: lower the former or raise the latter"
            )
