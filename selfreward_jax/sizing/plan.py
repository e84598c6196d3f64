"""What a run would do, before it does it: its stages, rows, parameters and memory, and time as far as it is known."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selfreward_jax import storage
from selfreward_jax.llm import llama, lora
from selfreward_jax.run import Run, model_of
from selfreward_jax.sizing.models import described
from selfreward_jax.train import trainer


class Stage(NamedTuple):
    """A stage to come: at most so many rows, and at most so many new tokens."""

    model: str
    name: str
    rows: int
    tokens: int = 0


def planned(cfg: Any) -> list[Stage]:
    """The stages of a run in their order; rows and tokens are at most so many, 0 where the data decide."""

    def measured(model: str) -> list[Stage]:
        e, j = cfg.evaluate, cfg.judge
        drawn = cfg.data.heldout_prompts * e.samples * e.best_of
        ranked = cfg.data.ranked_prompts * cfg.data.ranked_answers
        return [
            Stage(model, "eval_answers", cfg.data.heldout_prompts, drawn * e.max_new),
            Stage(model, "eval_judgements", ranked, ranked * j.samples * j.max_new),
        ]

    stages = [Stage("seed", "documents", cfg.data.documents), Stage("m0", "base", cfg.data.documents)]
    if cfg.baseline:
        stages += [Stage("sft", "sft", cfg.data.ift_rows), *measured("sft")]
    sizes = {"ift": cfg.data.ift_rows, "eft": cfg.data.eft_rows, "prompts": cfg.data.prompt_rows}
    stages += [Stage("m1", "sft", sum(sizes[name] for name in cfg.sft.sets)), *measured("m1")]
    for t in range(2, cfg.iterations + 1):
        asked, answers = cfg.prompts.count, cfg.prompts.count * cfg.candidates.samples
        stages += [
            Stage(f"m{t}", "prompts", asked, cfg.prompts.most_attempts * cfg.prompts.max_new),
            Stage(f"m{t}", "candidates", asked, answers * cfg.candidates.max_new),
            Stage(f"m{t}", "judgements", answers, answers * cfg.judge.samples * cfg.judge.max_new),
            Stage(f"m{t}", "dpo", asked),
            *measured(f"m{t}"),
        ]
    return stages


def plan(r: Run) -> list[str]:
    """The plan as lines.

    Raises:
      ConfigError: the model is neither in a folder nor known by name.
      HubError: its folder cannot be used.
    """
    made = {(s.model, s.name): manifest for s in planned(r.cfg) if (manifest := _manifest(r, s)) is not None}
    pace = {name: m["seconds"] / m["rows"] for (_, name), m in made.items() if m.get("seconds") and m.get("rows")}
    lines = [f"{'stage':22s} {'rows':>9s} {'new tokens':>12s} {'seconds':>9s}"]
    left, unknown = 0.0, []
    for s in planned(r.cfg):
        found = made.get((s.model, s.name))
        if found is not None:
            cells = f"{found.get('rows', 0):9,} {found.get('tokens', 0):12,} {found.get('seconds', 0):9.1f}  done"
        else:
            seconds = pace[s.name] * s.rows if s.name in pace else None
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
    if stage.name in ("base", "sft", "dpo"):
        return storage.read_sealed(r.dir / stage.model / "manifest.json")
    return r.rows(stage.model, stage.name).manifest


def _memory(r: Run) -> list[str]:
    """Bytes on a device of what is there for long: the state in training, weights and cache in sampling."""
    c = r.cfg
    shape = [described(c), c.tokenizer.vocab_size, r.mesh.devices.flat[0].platform]
    cfg, adapted = model_of(c, *shape), model_of(c, *shape, adapters=True)
    whole, trained = llama.weights(cfg), llama.abstract(lora.trained(adapted), "float32")
    moments = jax.eval_shape(trainer.make_optimizer(c.optimizer).init, trained)
    wide = jnp.dtype(cfg.dtype).itemsize
    count = llama.parameter_count(whole)
    frozen = count * wide if c.lora.rank else 0
    training = (2 * _bytes(trained) + _bytes(moments) + frozen) / (c.parallel.fsdp * c.parallel.tensor)
    shared = c.parallel.sample_tensor or c.parallel.tensor
    cache = c.generate.rows * c.model.max_length * cfg.layers * 2 * cfg.kv_heads * cfg.head_dim * wide
    sampling = count * wide / shared + cache / r.sampling_mesh.size
    return [
        f"parameters: {count:,}"
        + (f", of which adapters train {llama.parameter_count(lora.trained(adapted)):,}" if c.lora.rank else ""),
        f"a device holds in training weights, gradients and moments, {_size(training)}; in sampling weights and cache, "
        f"{_size(sampling)}",
        "activations come on top: `python -m selfreward_jax.fits` compiles the programs for a TPU slice and counts all",
    ]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
