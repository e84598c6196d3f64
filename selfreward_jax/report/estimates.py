"""Seconds of steps that no start of a run has measured yet, from the stated rates of the machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from selfreward_jax.runs.stage import Step

# Datasheets: dense bfloat16 FLOP/s, and bytes/s of a device's memory. The first name that a device's kind contains.
DATASHEETS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 1.6e12),
    "L4": (121e12, 0.3e12),
    "T4": (65e12, 0.32e12),
    "v6": (918e12, 1.64e12),
    "v5p": (459e12, 2.77e12),
    "v5 lite": (197e12, 0.82e12),
    "v5e": (197e12, 0.82e12),
    "v4": (275e12, 1.23e12),
}
TRAINING_SHARE = 0.24  # of the FLOP/s: a DPO step of a model of 1B on an H100
DECODE_SHARE = 0.3  # of the memory's bytes/s
STEP_SECONDS = 5e-4  # what a decode step takes at least, whatever the size of the model


class Rates(NamedTuple):
    """What the devices of this machine do together.

    flops: of matrix products in a second.
    bandwidth: bytes/s of their memory.
    source: where the two come from.
    """

    flops: float
    bandwidth: float
    source: str


def machine_rates() -> Rates:
    """The rates of this machine's devices: from datasheets; for a CPU or an unknown device measured in a moment."""
    devices = jax.devices()
    kind = devices[0].device_kind
    for name, (flops, bandwidth) in DATASHEETS.items():
        if name in kind:
            return Rates(len(devices) * flops, len(devices) * bandwidth, f"the datasheet of {len(devices)} x {kind}")
    x, ones = jnp.ones((1024, 1024), jnp.float32), np.ones(8_000_000)
    multiply = jax.jit(lambda x: x @ x / 1024)
    return Rates(
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
    cfg: ConfigDict, rates: Rates, parameters: int, itemsize: int, lengths: Mapping[str, Sequence[int]]
) -> Callable[[Step], float | None]:
    """A function from a step to its estimated seconds, or to None if what the step does is not known.

    Training takes 6 FLOPs a parameter and token (arXiv 2001.08361), 8 where activations are computed again. A decode
    step reads all weights once for all rows. Sampling is at its upper bound: every text as long as it may be.

    Args:
      cfg: the settings.
      rates: of the machine.
      parameters: of the model.
      itemsize: bytes of a weight in sampling.
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
    decode_step = max(
        parameters * itemsize / (rates.bandwidth * DECODE_SHARE),
        2 * parameters * cfg.sampling.max_concurrent / (rates.flops * TRAINING_SHARE),
        STEP_SECONDS,
    )
    flops = parameters * (8 if cfg.model.remat == "full" else 6)

    def seconds(step: Step) -> float | None:
        if (name := step.stage.name) in epoch:
            return epoch[name] * cfg[name].epochs * flops / (rates.flops * TRAINING_SHARE) or None
        sampled = step.stage.cost(cfg).tokens if step.stage.cost else 0
        return sampled / cfg.sampling.max_concurrent * decode_step or None

    return seconds
