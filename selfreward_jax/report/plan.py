"""What a run would do, before it does it: its stages, rows, parameters and memory, and time as far as it is known."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.llm import llama, lora
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.memory.models import known_config
from selfreward_jax.report import time_report
from selfreward_jax.runs.run import Run, build_model_config
from selfreward_jax.train import trainer


class Stage(NamedTuple):
    """A stage to come: at most so many rows, and at most so many new tokens."""

    model: str
    name: str
    rows: int
    tokens: int = 0


def planned_stages(cfg: Any) -> list[Stage]:
    """The stages of a run in their order; rows and tokens are at most so many, 0 where the data decide."""
    d, e, j, own = cfg.data, cfg.evaluate, cfg.judge, bool(cfg.data.ift)

    def votes(model: str, name: str, answers: int, samples: int = j.num_samples) -> Stage:
        return Stage(model, name, answers, answers * samples * j.max_new_tokens)

    def measured(model: str) -> list[Stage]:
        drawn = d.heldout_prompts * e.num_samples * e.best_of
        stages = [Stage(model, "eval_answers", d.heldout_prompts, drawn * e.max_new_tokens)]
        if e.best_of > 1:
            drawing = stages[0]._replace(name="eval_answers_drawn")
            stages = [drawing, votes(model, "eval_answers_judged", drawn), stages[0]._replace(tokens=0)]
        return [*stages, votes(model, "eval_judgments", 0 if own else d.judge_eval_prompts * d.judge_eval_answers)]

    def sets(*names: str) -> int:
        rows = [{"ift": d.ift_rows, "eft": d.eft_rows, "prompts": d.prompt_rows}[name] for name in names]
        return 0 if own or not all(rows) else sum(rows)

    documents = 0 if own or cfg.model.init else d.num_documents
    stages = [Stage("seed", "documents", documents), Stage("m0", "pretrain", documents)]
    if cfg.sft_baseline:
        stages += [Stage("sft", "sft", sets("ift")), *measured("sft")]
    if cfg.eft.source == "baseline":
        stages.append(votes("seed", "eft_judgments", 0, cfg.eft.num_samples))
    stages += [Stage("m1", "sft", sets(*cfg.sft.sets)), *measured("m1")]
    for t in range(2, cfg.iterations + 1):
        asked, answers = cfg.prompts.count, cfg.prompts.count * cfg.responses.num_samples
        stages += [
            Stage(f"m{t}", "prompts", asked, cfg.prompts.max_attempts * cfg.prompts.max_new_tokens),
            Stage(f"m{t}", "responses", asked, answers * cfg.responses.max_new_tokens),
            votes(f"m{t}", "judgments", answers),
            *(
                [votes(f"m{t}", "probes", 4 * min(cfg.checks.num_probe_prompts, asked))]
                if cfg.checks.num_probe_prompts
                else []
            ),
            Stage(f"m{t}", "dpo", asked),
            *measured(f"m{t}"),
        ]
    return stages


def plan(r: Run) -> list[str]:
    """The plan as lines."""
    made = {(s.model, s.name): manifest for s in planned_stages(r.cfg) if (manifest := _manifest(r, s)) is not None}
    took = {
        name: sum(kinds.values()) for name, kinds in time_report.read(r.workdir)["stages"].items()
    }  # over all starts
    seconds_of = {(model, name): took.get(f"{model} {name}", 0.0) for model, name in made}
    pace = {
        name: s / made[model, name]["rows"]
        for (model, name), s in seconds_of.items()
        if s and made[model, name].get("rows")
    }
    lines = [f"{'stage':22s} {'rows':>9s} {'new tokens':>12s} {'seconds':>9s}"]
    left, unknown = 0.0, []
    for s in planned_stages(r.cfg):
        found = made.get((s.model, s.name))
        if found is not None:
            cells = f"{found.get('rows', 0):9,} {found.get('tokens', 0):12,} {seconds_of[s.model, s.name]:9.1f}  done"
        else:
            seconds = pace[s.name] * s.rows if s.rows and s.name in pace else None
            cells = f"{_most(s.rows):>9s} {_most(s.tokens):>12s} {'?' if seconds is None else f'{seconds:.1f}':>9s}"
            left += seconds or 0.0
            unknown += [s.name] * (seconds is None)
        lines.append(f"{s.model + ' ' + s.name:22s} {cells}".rstrip())
    lines += ["", *_memory(r), ""]
    known = f"at the pace of the stages that are done: {left:,.0f} s" if left else ""
    if unknown:
        guess = f"{', '.join(dict.fromkeys(unknown))}: known when one of its kind is done"
        known = f"{known}; {guess}" if known else guess
    return [*lines, f"time left, {known}" if known else "nothing is left to do"]


def _most(count: int) -> str:
    return f"{count:,}" if count else "-"


def _manifest(r: Run, stage: Stage) -> dict[str, Any] | None:
    if stage.name in ("pretrain", "sft", "dpo"):
        return storage.read_checksummed(r.workdir / stage.model / "manifest.json")
    return r.jsonl(stage.model, stage.name).manifest


def _memory(r: Run) -> list[str]:
    """Bytes on a device of what is there for long: the state in training, weights and cache in sampling."""
    try:
        return _held(r)
    except (ConfigError, ModelFormatError) as error:  # of a model that is not here yet
        return [f"memory is not known: {error}"]


def _held(r: Run) -> list[str]:
    c = r.cfg
    shape = [known_config(c), c.tokenizer.vocab_size, r.mesh.devices.flat[0].platform]
    cfg, adapted = build_model_config(c, *shape), build_model_config(c, *shape, adapters=True)
    whole, trained = llama.param_specs(cfg), llama.abstract_params(lora.trainable_specs(adapted), "float32")
    moments = jax.eval_shape(trainer.make_optimizer(c.optimizer).init, trained)
    wide = jnp.dtype(cfg.dtype).itemsize
    count = llama.parameter_count(whole)
    frozen = count * wide if c.lora.rank else 0
    training = (2 * _bytes(trained) + _bytes(moments) + frozen) / (c.parallel.fsdp * c.parallel.tensor)
    shared = c.parallel.sampling_tensor or c.parallel.tensor
    cache = c.sampling.max_concurrent * c.model.max_length * cfg.num_layers * 2 * cfg.num_kv_heads * cfg.head_dim * wide
    sampling = count * wide / shared + cache / r.sampling_mesh.size
    return [
        f"parameters: {count:,}"
        + (
            f", of which adapters train {llama.parameter_count(lora.trainable_specs(adapted)):,}" if c.lora.rank else ""
        ),
        f"a device holds in training weights, gradients and moments, {_size(training)}; in sampling weights and cache, "
        f"{_size(sampling)}",
        "activations come on top: `python -m selfreward_jax fits` compiles the programs for a TPU slice and counts all",
    ]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
