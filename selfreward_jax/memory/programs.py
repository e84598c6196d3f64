"""The device programs of a run, lowered for a mesh from shapes alone: nothing is allocated, no device need be there."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm import lora
from selfreward_jax.llm.llama import Llama, LlamaConfig, abstract_params, param_specs
from selfreward_jax.parallel.arrays import reshard_fn
from selfreward_jax.parallel.mesh import sampling_mesh
from selfreward_jax.parallel.sharding import (
    SAMPLING,
    batch_divisor,
    batch_sharding,
    param_shardings,
    replicated,
    round_up,
)
from selfreward_jax.runs.run import build_model_config
from selfreward_jax.sampling import sampler
from selfreward_jax.sampling.batching import num_prompt_slots, padded_length, prefill_batch_size
from selfreward_jax.train import dpo, sft, trainer


class Program(NamedTuple):
    """One program: its name, what it is made for in words, its lowering, and bytes on each device that can be told in
    advance, by kind; `beside` of them are of arrays that are there while it runs and are none of its own."""

    name: str
    shapes: str
    lowered: jax.stages.Lowered
    bytes: dict[str, int]
    resident_bytes: int = 0


MANY = 1 << 30  # requests: more than there are places
NAMES = ("sft", "dpo", "merge", "reshard", "prefill", "decode")


def programs(
    cfg: ConfigDict, found: LlamaConfig | None, mesh: Mesh, tokens: int, only: Sequence[str] = ()
) -> Iterator[Program]:
    """The SFT step, the DPO step, adapters merged into the weights (where there are any), the move of the weights into
    the layout of sampling, prefill and decode.

    Args:
      cfg: checked settings.
      found: the pretrained model, if it starts from one.
      mesh: of training.
      tokens: of a pair's longer side in DPO.
      only: the names of those that are wanted; all if empty.

    Raises:
      ConfigError: a name is none of NAMES.
    """
    for name in only:
        if name not in NAMES:
            raise ConfigError(f"only has {name!r}; the programs are {', '.join(NAMES)}")
    wanted = only or NAMES
    for stage in ("sft", "dpo"):
        if stage in wanted:
            yield _training(cfg, found, mesh, stage, tokens)
    yield from _sampling(cfg, found, mesh, wanted)


def _like(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _laid(declared: Any, dtype: str, mesh: Mesh, table: Any = None) -> Any:
    return _like(abstract_params(declared, dtype), param_shardings(declared, mesh, *([table] if table else [])))


def on_device(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on each device."""
    leaves = [x for x in jax.tree.leaves(tree) if x.sharding is not None]
    sizes = (jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return sum(sizes)


def _model(cfg: ConfigDict, found: LlamaConfig | None, mesh: Mesh, dropout: float = 0.0, adapters: bool = False) -> Any:
    return build_model_config(cfg, found, cfg.tokenizer.vocab_size, mesh.devices.flat[0].platform, dropout, adapters)


class _Trained(NamedTuple):
    """What training holds on the devices: its state, and the frozen weights under adapters."""

    model: Llama
    optimizer: Any
    shardings: Any
    state: trainer.TrainState
    frozen: Any

    def bytes(self, offload: bool) -> dict[str, int]:
        return {
            "params": on_device(self.state.params) + on_device(self.frozen or {}),
            "optimiser": on_device(self.state.opt_state) * (not offload),
        }


def _trained(cfg: ConfigDict, found: LlamaConfig | None, mesh: Mesh, stage: str) -> _Trained:
    settings = cfg[stage]
    model = Llama(_model(cfg, found, mesh, settings.dropout, adapters=True))
    declared = lora.trainable_specs(model.cfg)
    optimizer = trainer.make_optimizer(cfg.optimizer)
    params, lying = abstract_params(declared, "float32"), param_shardings(declared, mesh)
    shardings = trainer.state_shardings(optimizer, params, lying, mesh, cfg.optimizer.offload)
    state = trainer.TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params))
    frozen = _laid(param_specs(_model(cfg, found, mesh)), cfg.model.dtype, mesh) if cfg.lora.rank else None
    return _Trained(model, optimizer, shardings, _like(state, shardings), frozen)


def _training(cfg: ConfigDict, found: LlamaConfig | None, mesh: Mesh, stage: str, tokens: int) -> Program:
    """The update of a stage, as stages/training.py makes it."""
    settings, held = cfg[stage], _trained(cfg, found, mesh, stage)
    batch = _sft_batch(settings, mesh) if stage == "sft" else _dpo_batch(settings, mesh, round_up(tokens, 16))
    loss_fn = sft.loss_fn(held.model) if stage == "sft" else dpo.loss_fn(held.model, settings)
    key = jax.ShapeDtypeStruct(jax.random.key_data(jax.random.key(0)).shape, jnp.uint32)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    with jax.set_mesh(mesh):
        update = trainer.make_update(loss_fn, held.optimizer, held.shardings, mesh)
        lowered = update.jitted.lower(held.state, batch, key, held.frozen, rate)

    rows, width = (
        (settings.batch_size, settings.seq_len) if stage == "sft" else (2 * settings.batch_size, round_up(tokens, 16))
    )
    kept = held.bytes(cfg.optimizer.offload)
    model = held.model.cfg
    if model.remat == "full":  # the input of each layer; of other policies the compiler alone knows
        at_once = rows * width // settings.grad_accum_steps // batch_divisor(mesh)
        kept["activations"] = at_once * jnp.dtype(cfg.model.dtype).itemsize * model.dim * model.num_layers
    shapes = f"{settings.batch_size} {'rows' if stage == 'sft' else 'pairs'} of {width} tokens"
    return Program(stage, shapes, lowered, kept)


def _rows(settings: Any, mesh: Mesh, count: int, width: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    shape = (settings.grad_accum_steps, count // settings.grad_accum_steps, width)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=batch_sharding(mesh, 3, axis=1))


def _packed(settings: Any, mesh: Mesh, count: int, width: int, prefix: str = "") -> dict[str, Any]:
    """The arrays of `batches.packed_batch`."""
    made = {f"{prefix}{n}": _rows(settings, mesh, count, width) for n in ("tokens", "positions", "segments")}
    return made | {f"{prefix}target": _rows(settings, mesh, count, width, "float32")}


def _totals(mesh: Mesh, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh)))


def _sft_batch(settings: Any, mesh: Mesh) -> dict[str, Any]:
    """A batch of `sft.batches_of`."""
    arrays = _packed(settings, mesh, settings.batch_size, settings.seq_len)
    return {"arrays": arrays, "totals": _totals(mesh, "target_total")}


def _dpo_batch(settings: Any, mesh: Mesh, width: int) -> dict[str, Any]:
    """A batch of `dpo.batches_of`."""
    arrays, totals = {"reference": _rows(settings, mesh, settings.batch_size, 2, "float32")}, ["pair_total"]
    for side in ("chosen", "rejected"):
        arrays[f"{side}_tokens"] = _rows(settings, mesh, settings.batch_size, width)
        arrays[f"{side}_target"] = _rows(settings, mesh, settings.batch_size, width, "float32")
    if settings.replay_weight:
        arrays |= _packed(settings, mesh, settings.replay_batch_size, settings.replay_seq_len, "replay_")
        totals.append("replay_target_total")
    return {"arrays": arrays, "totals": _totals(mesh, *totals)}


class DecodeShape(NamedTuple):
    """What a stage draws at its longest: prompts at work together, their length, samples of each, new tokens."""

    places: int
    length: int
    samples: int
    max_new: int

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are held."""
        return self.places * (self.length + self.samples * self.max_new)


def decode_shape(cfg: ConfigDict, mesh: Mesh) -> list[DecodeShape]:
    """Every stage that draws samples, from more prompts than there are places. Beginnings that prompts share are
    counted as if they did not."""
    c = cfg
    draws = [
        (1, c.prompts.max_new_tokens),
        (c.responses.num_samples, c.responses.max_new_tokens),
        (c.judge.num_samples, c.judge.max_new_tokens),
        (c.evaluate.num_samples * c.evaluate.best_of, c.evaluate.max_new_tokens),
    ]
    if c.eft.source == "baseline":
        draws.append((c.eft.num_samples, c.judge.max_new_tokens))
    if c.dpo.eval_every:
        draws.append((1, c.evaluate.max_new_tokens))
    if c.pairwise.method == "pairwise":
        draws.append((1, c.pairwise.max_new_tokens))
    return [
        DecodeShape(
            num_prompt_slots(MANY, c.sampling.max_concurrent, samples, mesh),
            padded_length(c.model.max_length - new),
            samples,
            new,
        )
        for samples, new in draws
    ]


def _sampling(cfg: ConfigDict, found: LlamaConfig | None, training: Mesh, wanted: Sequence[str]) -> Iterator[Program]:
    mesh = sampling_mesh(training, cfg.parallel.sampling_tensor)
    model = _model(cfg, found, mesh)
    declared, dtype = param_specs(model), cfg.model.dtype
    trained, params = _laid(declared, "float32", training), _laid(declared, dtype, mesh, SAMPLING)
    held: dict[str, int] = {}
    if cfg.dpo.eval_every:  # early stopping samples in the midst of training
        held["training"] = sum(_trained(cfg, found, training, "dpo").bytes(cfg.optimizer.offload).values())
    beside = sum(held.values())
    if "merge" in wanted and cfg.lora.rank:
        adapted = _model(cfg, found, training, adapters=True)
        adapters = _laid(lora.trainable_specs(adapted), "float32", training)
        merging = jax.jit(
            lambda base, own: lora.merge(adapted, lora.combine(base, own)),
            out_shardings=jax.tree.map(lambda x: x.sharding, trained),
            donate_argnums=0,
        )
        size = held | {"params": on_device(trained) + on_device(adapters)}
        yield Program("merge", f"adapters of rank {cfg.lora.rank}", merging.lower(trained, adapters), size, beside)
    if "reshard" in wanted:
        leaves = jax.tree.leaves(jax.tree.map(lambda *pair: pair, trained, params), is_leaf=lambda x: type(x) is tuple)
        largest = max(leaves, key=lambda pair: on_device(pair))
        size = held | {"params": on_device(trained) + on_device(params)}
        others = size["params"] - on_device(largest)  # moved one by one; in the end all are there in both layouts
        lowered = reshard_fn(largest[1].sharding, dtype).lower(largest[0])
        yield Program("reshard", f"float32 to {dtype}, one by one", lowered, size, beside + others)

    def row(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=batch_sharding(mesh, len(shape)))

    held, stages = held | {"params": on_device(params)}, decode_shape(cfg, mesh)
    P, S, G, W = max(stages, key=lambda d: d.cached)
    if "prefill" in wanted:
        R, T = max(((prefill_batch_size(MANY, d.places, d.length, mesh), d.length) for d in stages), key=math.prod)
        with jax.set_mesh(mesh):
            slots = _laid_out(jax.eval_shape(lambda: sampler.init_slots(model, P, G, S, W)), mesh)
            lowered = sampler.prefill.lower(model, params, row(R, T), row(R))
        # Read ahead, while the slots are full.
        size = held | {"cache": on_device(slots)}
        yield Program("prefill", f"{R} prompts of {T} tokens", lowered, size, beside + on_device(slots))
    if "decode" in wanted:
        number = jax.ShapeDtypeStruct((), jnp.float32)
        with jax.set_mesh(mesh):
            slots = _laid_out(jax.eval_shape(lambda: sampler.init_slots(model, P, G, S, W)), mesh)
            how, enough = sampler.DrawParams(number, number), jax.ShapeDtypeStruct((), jnp.int32)
            lowered = sampler.decode.lower(model, params, slots, None, how, enough, stop_ids=(2,))
        shapes = f"{P * G} rows of {W} new tokens after {S}"
        yield Program("decode", shapes, lowered, held | {"cache": on_device(slots)}, beside)


def _laid_out(tree: Any, mesh: Mesh) -> Any:
    """Shapes of the sampler's arrays with the shardings that it holds them to."""
    laid = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, sampler.layout(x.ndim)))  # noqa: E731
    return jax.tree.map(laid, tree)
