"""Seconds of a round's stages on a machine that need not be here: arithmetic from datasheets, with its assumptions.

What no datasheet has was measured once on an H100 (the shares of its rates that a step reaches) or is assumed (how long
texts are, how many prompts are accepted). A first real round corrects it: `selfreward-jax check` then goes by its pace.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from selfreward_jax.llm import lora
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import is_param_spec, param_specs, parameter_count
from selfreward_jax.memory.estimate import ALL_REDUCE_BYTES
from selfreward_jax.memory.machines import Machine, Rates, datasheet
from selfreward_jax.runs.models import build_model_config
from selfreward_jax.sampling.batching import padded_length

TRAINING_SHARE = 0.24  # of the FLOP/s: a DPO step of a model of 1B on an H100
DECODE_SHARE = 0.3  # of the memory's bytes/s: a decode step of the same model there
SLOT_USE = 0.9  # of the slots at work while samples wait for one
LENGTH_SHARE = 0.5  # of the tokens that a text may have
REQUEST_TOKENS = 256  # of a request
ACCEPTED = 0.6  # of the new prompts
PAIRED = 0.8  # of the prompts: their responses have different scores
STORE_RATE = 0.5e9  # bytes/s that a host reads from or writes to the working directory
DEVICES_PER_HOST = {"tpu": 4, "gpu": 8}
ASSUMPTIONS = (
    "new prompts count as the model's own, whoever writes them; "
    f"assumed: texts have {LENGTH_SHARE:.0%} of the tokens that they may have, requests {REQUEST_TOKENS}; "
    f"{ACCEPTED:.0%} of the new prompts are accepted, {PAIRED:.0%} give a pair; {SLOT_USE:.0%} of the slots are used "
    "until a batch's last text; "
    f"a step reaches {DECODE_SHARE:.0%} of the memory's rate in decoding and {TRAINING_SHARE:.0%} of the FLOP/s in "
    f"training; a host stores {STORE_RATE / 1e9:.1f} GB/s. Nothing of this was measured on this machine."
)


class StageTime(NamedTuple):
    """A stage of a round, its seconds, and the tokens (for load and save: the bytes) that they are for."""

    stage: str
    seconds: float
    amount: float


class _Sampling(NamedTuple):
    """A stage that samples: prompts, tokens of each, samples for each, the limit of new tokens, and the batches, each
    of which waits for its longest text."""

    stage: str
    prompts: float
    prompt_len: float
    num_samples: int
    max_new_tokens: int
    batches: float = 1


def round_times(cfg: ConfigDict, pretrained: DecoderConfig | None, machine: Machine) -> list[StageTime]:
    """The stages of one round, in order; empty where no datasheet is known.

    Args:
      cfg: the settings, with no 0 that the planner would replace.
      pretrained: the shapes of model.init, if there is one.
      machine: with devices of a kind in the datasheets.
    """
    rates = datasheet(machine.name, 1)
    if rates is None:
        return []
    model = build_model_config(cfg, pretrained, cfg.tokenizer.vocab_size, machine.hardware, adapters=True)
    count, trained = parameter_count(param_specs(model)), parameter_count(lora.trainable_specs(model))
    active = active_parameters(model)
    flops = machine.devices * rates.flops * TRAINING_SHARE
    response_len = LENGTH_SHARE * cfg.responses.max_new_tokens
    pairs, share = PAIRED * cfg.prompts.count, cfg.dpo.judge_pair_share if cfg.dpo.judge_pairs != "none" else 0.0
    judge_pairs = pairs * share / (1 - share)  # at most: as many as may be in a batch
    judged_len = REQUEST_TOKENS + response_len + LENGTH_SHARE * cfg.judge.max_new_tokens
    pair_tokens = 2 * (pairs * (REQUEST_TOKENS + response_len) + judge_pairs * judged_len)
    replay = cfg.dpo.replay_batch_size * cfg.dpo.replay_seq_len * bool(cfg.dpo.replay_weight)
    trained_tokens = cfg.dpo.epochs * (pair_tokens + replay * (pairs + judge_pairs) / cfg.dpo.batch_size)
    per_token = (8 if model.remat == "full" else 6) * active  # 6 of arXiv 2001.08361, 2 more for a second forward pass
    stored = 3 * 4 * count + 3 * 4 * trained  # three stages load float32 weights; they and two moments are saved
    hosts = max(1, machine.devices // DEVICES_PER_HOST.get(machine.platform, 1))
    return [
        *(_sampling_time(cfg, model, machine, rates, stage) for stage in _sampling_stages(cfg)),
        StageTime("reference log-probs", 2 * active * pair_tokens / flops, pair_tokens),
        StageTime("dpo", per_token * trained_tokens / flops, trained_tokens),
        StageTime("load and save", stored / (hosts * STORE_RATE), stored),
    ]


def _sampling_stages(cfg: ConfigDict) -> list[_Sampling]:
    prompts, responses = cfg.prompts, cfg.responses
    few_shot_len = LENGTH_SHARE * (prompts.num_seed_examples + prompts.num_generated_examples) * REQUEST_TOKENS
    attempts = prompts.count / ACCEPTED
    batches = math.ceil(attempts / prompts.batch_size)
    written = _Sampling("prompts", attempts, few_shot_len, 1, prompts.max_new_tokens, batches)
    return [
        *([] if prompts.source else [written]),
        _Sampling("responses", prompts.count, REQUEST_TOKENS, responses.num_samples, responses.max_new_tokens),
        *_judging_stages(cfg),
    ]


def _judging_stages(cfg: ConfigDict) -> list[_Sampling]:
    """Votes on the responses, or on each two of them in both orders; and the meta-judge's on each two votes on one
    response to each prompt, as many as there may be. The rubric is computed once for all."""
    judge, count, responses = cfg.judge, cfg.prompts.count, cfg.responses.num_samples
    response_len, votes = LENGTH_SHARE * cfg.responses.max_new_tokens, judge.num_samples
    stages = []
    if judge.kind == "pairwise":
        compared = responses * min(judge.opponents or responses, responses - 1)
        length = REQUEST_TOKENS + 2 * response_len
        stages += [_Sampling("comparisons", count * compared, length, votes, cfg.pairwise.max_new_tokens)]
    elif judge.kind == "model":
        length = REQUEST_TOKENS + response_len
        stages += [_Sampling("judgments", count * responses, length, votes, judge.max_new_tokens)]
    if cfg.dpo.judge_pairs == "meta":
        length = REQUEST_TOKENS + response_len + 2 * LENGTH_SHARE * judge.max_new_tokens
        stages += [_Sampling("meta-judgments", count * votes * (votes - 1), length, 1, cfg.meta.max_new_tokens)]
    return stages


def _sampling_time(
    cfg: ConfigDict, model: DecoderConfig, machine: Machine, rates: Rates, stage: _Sampling
) -> StageTime:
    """Prefill, and as many decode steps as the tokens need in the slots that there are; then those of the longest text
    while the slots of the others are free."""
    rows, tensor = cfg.sampling.max_concurrent, cfg.parallel.sampling_tensor or cfg.parallel.tensor
    tokens = stage.prompts * stage.num_samples * LENGTH_SHARE * stage.max_new_tokens
    flops = machine.devices * rates.flops * TRAINING_SHARE
    prefill = 2 * active_parameters(model) * stage.prompts * stage.prompt_len / flops
    length = padded_length(int(stage.prompt_len)) + stage.max_new_tokens
    step = decode_step_seconds(model, rates, rows * tensor / machine.devices, tensor, length)
    longest = stage.batches * (1 - LENGTH_SHARE) * stage.max_new_tokens
    return StageTime(stage.stage, prefill + (tokens / (rows * SLOT_USE) + longest) * step, tokens)


def active_parameters(model: DecoderConfig) -> float:
    """The parameters that a token is multiplied with: of the experts the chosen ones alone."""
    share = model.experts_per_token / model.num_experts if model.num_experts else 1.0
    specs = jax.tree.leaves(param_specs(model), is_leaf=is_param_spec)
    return sum(math.prod(spec.shape) * (share if "experts" in spec.axes[:2] else 1.0) for spec in specs)


def decode_step_seconds(model: DecoderConfig, rates: Rates, rows: float, tensor: int, length: int) -> float:
    """Seconds of a decode step of a group of devices that share each product.

    It reads all weights and all keys and values once, or multiplies, whichever takes longer; and it waits twice for the
    other devices in each layer.

    Args:
      model: the shapes, and the dtype of weights and cache.
      rates: of one device.
      rows: that the group decodes together.
      tensor: devices of the group.
      length: tokens that each row attends to, padding included.
    """
    itemsize = jnp.dtype(model.dtype).itemsize
    cache = rows * length * model.num_layers * 2 * model.num_kv_heads * model.head_dim
    reading = itemsize * (parameter_count(param_specs(model)) + cache) / tensor / (rates.bandwidth * DECODE_SHARE)
    multiplying = 2 * active_parameters(model) * rows / tensor / (rates.flops * TRAINING_SHARE)
    waiting = 2 * model.num_layers * ALL_REDUCE_BYTES / rates.bandwidth * (tensor > 1)
    return max(reading, multiplying) + waiting


def format_times(times: list[StageTime]) -> list[str]:
    """Lines for people."""
    if not times:
        return []
    total = sum(t.seconds for t in times)
    parts = ", ".join(f"{t.stage} {t.seconds:,.0f}" for t in times)
    return [f"a round takes about {total / 60:,.0f} min by arithmetic; in seconds: {parts}", f"  {ASSUMPTIONS}"]
