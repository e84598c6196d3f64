"""Seconds of steps that no start of a run has measured yet, from the stated rates of the machine."""

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.memory.machines import Rates, datasheet
from selfreward_jax.memory.round_time import SLOT_USE, TRAINING_SHARE, active_parameters, decode_step_seconds
from selfreward_jax.runs.stage import Step

STEP_SECONDS = 5e-4  # what a decode step takes at least, whatever the size of the model


def machine_rates() -> Rates:
    """The rates of this machine's devices: from datasheets; for a CPU or an unknown device measured in a moment."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if (rates := datasheet(kind, len(devices))) is not None:
        return rates
    x, ones = jnp.ones((1024, 1024), jnp.float32), np.ones(8_000_000)
    multiply = jax.jit(lambda x: x @ x / 1024)
    return Rates(
        len(devices),
        2 * 1024**3 / _seconds(lambda: multiply(x).block_until_ready()),
        ones.nbytes / _seconds(lambda: ones.sum()),
        f"matrix products and reads measured on this {kind}",
    )


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of some repetitions, after one that is not counted."""
    work()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def make_estimator(
    cfg: ConfigDict, rates: Rates, model: DecoderConfig | None, lengths: Mapping[str, Sequence[int]]
) -> Callable[[Step], float | None]:
    """A function from a step to its estimated seconds, or to None if what the step does is not known.

    Training takes 6 FLOPs a parameter and token (arXiv 2001.08361), 8 where activations are computed again. Decode
    steps are those of `decode_step_seconds`, with rows of half the model's length. Sampling is at its upper bound:
    every text as long as it may be.

    Args:
      cfg: the settings.
      rates: of the machine.
      model: its shapes; None if they are not known yet.
      lengths: tokens of each example of the sets that are trained on, by the set's name.
    """
    tokens = {name: sum(of) for name, of in lengths.items()}
    pair = 2 * tokens["ift"] / len(lengths["ift"]) if lengths.get("ift") else 0  # two answers of the usual length
    replay = bool(cfg.dpo.replay_weight) * cfg.dpo.replay_batch_size * cfg.dpo.replay_seq_len / cfg.dpo.batch_size
    epoch = {
        "pretrain": tokens.get("documents", 0),
        "sft": sum(count for name, count in tokens.items() if name != "documents"),
        "dpo": cfg.prompts.count * (pair + replay),
    }
    parameters, rows = 0 if model is None else active_parameters(model), cfg.sampling.max_concurrent
    decode_step = STEP_SECONDS
    if model is not None:
        one, tensor = rates.of_one(), cfg.parallel.sampling_tensor or cfg.parallel.tensor
        each = rows * tensor / rates.devices
        decode_step = max(decode_step_seconds(model, one, each, tensor, cfg.model.max_length // 2), decode_step)
    flops = parameters * (8 if cfg.model.remat == "full" else 6)

    def seconds(step: Step) -> float | None:
        if (name := step.stage.name) in epoch:
            return epoch[name] * cfg[name].epochs * flops / (rates.flops * TRAINING_SHARE) or None
        sampled = step.stage.cost(cfg).tokens if step.stage.cost else 0
        return sampled / (rows * SLOT_USE) * decode_step or None

    return seconds
