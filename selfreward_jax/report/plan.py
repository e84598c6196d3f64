"""What --dry_run prints: the steps done and to do, rows, memory, and time as far as it is known."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.config import ConfigError
from selfreward_jax.llm import llama, lora
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.memory.models import known_config
from selfreward_jax.report import run_state, time_report
from selfreward_jax.runs.models import build_model_config
from selfreward_jax.runs.run import Run
from selfreward_jax.runs.stage import StageTable
from selfreward_jax.train import trainer


def plan(run: Run, table: StageTable) -> list[str]:
    """The plan as lines. Times of steps to do are estimated from steps of the same kind that are done."""
    planned = [step for step in table.steps(run.cfg) if step.stage.cost is not None]
    manifests = {step.label: manifest for step in planned if (manifest := step.manifest(run)) is not None}
    seconds = time_report.seconds_by_stage(time_report.read(run.workdir, table.kind_of))
    left = run_state.seconds_left(run, table)
    lines = [f"{'stage':22s} {'rows':>9s} {'new tokens':>12s} {'seconds':>9s}"]
    for step in planned:
        if (manifest := manifests.get(step.label)) is not None:
            rows, tokens = manifest.get("rows", 0), manifest.get("tokens", 0)
            logged_as = f"{step.folder} {manifest.get('stage', step.stage.name)}"  # m0 may be loaded, not trained
            cells = f"{rows:9,} {tokens:12,} {seconds.get(logged_as, 0.0):9.1f}  done"
        else:
            cost = step.stage.cost(run.cfg)
            estimate = left[step.label]
            cells = f"{_count(cost.rows):>9s} {_count(cost.tokens):>12s} "
            cells += f"{'?' if estimate is None else f'{estimate:.1f}':>9s}"
        lines.append(f"{step.label:22s} {cells}".rstrip())
    return [*lines, "", *_memory(run), "", _time_left(left)]


def _time_left(left: Mapping[str, float | None]) -> str:
    seconds = sum(s for s in left.values() if s)
    unknown = [label.rpartition(" ")[2] for label, s in left.items() if s is None]
    parts = [f"at the pace of the stages that are done: {seconds:,.0f} s"] if seconds else []
    if unknown:
        parts.append(f"{', '.join(dict.fromkeys(unknown))}: known when one of its kind is done")
    return f"time left, {'; '.join(parts)}" if parts else "nothing is left to do"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _memory(run: Run) -> list[str]:
    """Bytes on a device that stay for long: the training state; parameters and cache in sampling."""
    try:
        return _state_bytes(run)
    except (ConfigError, ModelFormatError) as error:  # the model is not here yet
        return [f"memory is not known: {error}"]


def _state_bytes(run: Run) -> list[str]:
    c = run.cfg
    described = known_config(c), c.tokenizer.vocab_size, run.models.platform
    cfg, adapted = build_model_config(c, *described), build_model_config(c, *described, adapters=True)
    specs, trained = llama.param_specs(cfg), llama.abstract_params(lora.trainable_specs(adapted), "float32")
    moments = jax.eval_shape(trainer.make_optimizer(c.optimizer).init, trained)
    itemsize = jnp.dtype(cfg.dtype).itemsize
    count = llama.parameter_count(specs)
    frozen = count * itemsize if c.lora.rank else 0
    training = (2 * _bytes(trained) + _bytes(moments) + frozen) / (c.parallel.fsdp * c.parallel.tensor)
    tensor = c.parallel.sampling_tensor or c.parallel.tensor
    tokens = c.sampling.max_concurrent * c.model.max_length
    cache = tokens * cfg.num_layers * 2 * cfg.num_kv_heads * cfg.head_dim * itemsize
    sampling = count * itemsize / tensor + cache / run.models.sampling_mesh.size
    adapters = f", of which adapters train {llama.parameter_count(lora.trainable_specs(adapted)):,}"
    return [
        f"parameters: {count:,}" + adapters * bool(c.lora.rank),
        f"each device holds {_size(training)} in training (parameters, gradients, moments) and {_size(sampling)} in "
        "sampling (parameters, cache)",
        "activations are not included: `python -m selfreward_jax fits` compiles the programs for a TPU slice",
    ]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
