"""What a run would do: the steps done and to do, rows, memory and time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm import lora
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import abstract_params, param_specs, parameter_count
from selfreward_jax.memory.machines import Rates
from selfreward_jax.memory.models import known_config
from selfreward_jax.parallel.device_memory import device_memory
from selfreward_jax.report import estimates, run_state, time_report
from selfreward_jax.runs.models import build_model_config
from selfreward_jax.runs.run import Run
from selfreward_jax.runs.stage import StageTable
from selfreward_jax.telemetry.numbers import duration
from selfreward_jax.train import trainer


def plan(
    run: Run,
    table: StageTable,
    lengths: Mapping[str, Sequence[int]] | None = None,
    vocab_size: int = 0,
    elsewhere: tuple[ConfigDict, Rates] | None = None,
) -> list[str]:
    """The plan as lines.

    Times of steps to do are estimated from steps of the same kind that are done; where there are none, from the stated
    rates of the machine.

    Args:
      run: the run; nothing of it is written.
      table: its stages.
      lengths: tokens of each example of the sets that are trained on, by the set's name.
      vocab_size: of the tokenizer, where it is trained; else its maximum counts.
      elsewhere: the settings and the rates of the machine that it is planned for, if it is not this one.
    """
    planned = [step for step in table.steps(run.cfg) if step.stage.cost is not None]
    manifests = {step.label: manifest for step in planned if (manifest := step.manifest(run)) is not None}
    seconds = time_report.seconds_by_stage(time_report.read(run.workdir, table.kind_of))
    known = run_state.seconds_left(run, table)
    lines = [f"{'stage':22s} {'rows':>9s} {'new tokens':>12s} {'seconds':>9s}"]
    model, memory = _memory(run, vocab_size or run.cfg.tokenizer.vocab_size, here=elsewhere is None)
    cfg, rates = elsewhere or (run.cfg, estimates.machine_rates())
    stated = estimates.make_estimator(cfg, rates, model, lengths or {})
    left = {"measured": 0.0, "stated": 0.0}
    for step in planned:
        if (manifest := manifests.get(step.label)) is not None:
            rows, tokens = manifest.get("rows", 0), manifest.get("tokens", 0)
            logged_as = f"{step.folder} {manifest.get('stage', step.stage.name)}"  # m0 may be loaded, not trained
            cells = f"{rows:9,} {tokens:12,} {seconds.get(logged_as, 0.0):9.1f}  done"
        else:
            cost = step.stage.cost(run.cfg)
            measured = known[step.label]
            estimate = stated(step) if measured is None else measured
            cells = f"{_count(cost.rows):>9s} {_count(cost.tokens):>12s} "
            cells += f"{'-' if estimate is None else f'~{estimate:,.0f}':>9s}"
            left["stated" if measured is None else "measured"] += estimate or 0.0
        lines.append(f"{step.label:22s} {cells}".rstrip())
    if any(" - " in line for line in lines):
        lines.append("-: the data decide, or it takes no time worth telling")
    return [*lines, "", *memory, "", *_time_left(left, rates)]


def _time_left(left: Mapping[str, float], rates: Rates) -> list[str]:
    total = sum(left.values())
    if not total:
        return ["nothing is left to do"]
    bound = "at least" if left["stated"] else "about"
    lines = [
        f"time left: {bound} {duration(total)}; compiling and loading come on top, a minute or more on a first run"
    ]
    if left["measured"]:
        lines.append(f"  {duration(left['measured'])} of it at the pace of stages that are done")
    if left["stated"]:
        lines.append(
            f"  {duration(left['stated'])} of it by stated rates ({rates.source}), every text at its full length"
        )
    return lines


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _memory(run: Run, vocab_size: int, here: bool) -> tuple[DecoderConfig | None, list[str]]:
    """The model's shapes (None if they are not known), and lines about the bytes on a device that stay for long."""
    try:
        return _state_bytes(run, vocab_size, here)
    except (ConfigError, ModelFormatError) as error:  # the model is not here yet
        return None, [f"memory is not known: {error}"]


def _state_bytes(run: Run, vocab_size: int, here: bool) -> tuple[DecoderConfig, list[str]]:
    c = run.cfg
    described = known_config(c), vocab_size, run.models.hardware
    cfg, adapted = build_model_config(c, *described), build_model_config(c, *described, adapters=True)
    trained = lora.trainable_specs(adapted)
    adapters = f", of which adapters train {parameter_count(trained):,}" * bool(c.lora.rank)
    lines = [f"parameters: {parameter_count(param_specs(cfg)):,}{adapters}"]
    return cfg, lines + (_bytes_here(run, cfg, trained) if here else [])


def _bytes_here(run: Run, cfg: DecoderConfig, specs: Any) -> list[str]:
    c, trained = run.cfg, abstract_params(specs, "float32")
    moments = jax.eval_shape(trainer.make_optimizer(c.optimizer).init, trained)
    itemsize = jnp.dtype(cfg.dtype).itemsize
    count = parameter_count(param_specs(cfg))
    frozen = count * itemsize if c.lora.rank else 0
    training = (2 * _bytes(trained) + _bytes(moments) + frozen) / (c.parallel.fsdp * c.parallel.tensor)
    tensor = c.parallel.sampling_tensor or c.parallel.tensor
    tokens = c.sampling.max_concurrent * c.model.max_length
    cache = tokens * cfg.num_layers * 2 * cfg.num_kv_heads * cfg.head_dim * itemsize
    sampling = count * itemsize / tensor + cache / run.models.sampling_mesh.size
    lines = [
        f"each device holds {_size(training)} in training (parameters, gradients, moments) and {_size(sampling)} in "
        "sampling (parameters, cache)",
    ]
    have, device = device_memory()
    room = f"this machine: {len(jax.devices())} x {device}, {_size(have)} each" if have else f"this machine: {device}"
    if have and max(training, sampling) > have:
        room += ": TOO LITTLE; raise parallel.fsdp, set lora.rank, or take larger devices"
    return [
        *lines,
        room,
        "activations are not included; `selfreward-jax fits` compiles the programs for a TPU slice",
    ]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
