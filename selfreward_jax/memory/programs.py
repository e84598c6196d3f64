"""The device programs of a run, lowered for a mesh from shapes alone: nothing is allocated, no device is needed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm import lora
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import abstract_params, param_specs
from selfreward_jax.llm.self_attention import takes_texts
from selfreward_jax.memory.sampling_programs import decode_program, insert_program, prefill_program, unstacked_shapes
from selfreward_jax.memory.shapes import Program, bytes_per_device, with_shardings
from selfreward_jax.parallel.arrays import reshard_fn
from selfreward_jax.parallel.hardware import hardware_of
from selfreward_jax.parallel.mesh import sampling_mesh
from selfreward_jax.parallel.sharding import (
    SAMPLING,
    batch_divisor,
    batch_sharding,
    param_shardings,
    replicated,
    round_up,
)
from selfreward_jax.runs.models import build_model_config
from selfreward_jax.sampling.sampler import sampling_config
from selfreward_jax.train import dpo, sft, trainer

NAMES = ("sft", "dpo", "reference", "merge", "reshard", "prefill", "insert", "decode")


def programs(
    cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: Mesh, pair_len: int, names: Sequence[str] = ()
) -> Iterator[Program]:
    """The device programs of a run.

    These are: the SFT step, the DPO step, the log-probs of pairs under the reference, the merge of adapters into the
    weights (if there are any), the reshard of the weights to the layout of sampling, prefill, insertion and decode.

    Args:
      cfg: validated settings.
      pretrained: the pretrained model's shapes, if the run starts from one.
      mesh: the mesh of training.
      pair_len: tokens of the longer side of a preference pair.
      names: the programs to lower; all if empty.

    Raises:
      ConfigError: a name is not in NAMES.
    """
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"only has {name!r}; the programs are {', '.join(NAMES)}")
    names = names or NAMES
    for stage in ("sft", "dpo"):
        if stage in names:
            yield _training_program(cfg, pretrained, mesh, stage, pair_len)
    if "reference" in names:
        yield _reference_program(cfg, pretrained, mesh, pair_len)
    yield from _sampling_programs(cfg, pretrained, mesh, names)


def _sharded_params(specs: Any, dtype: str, mesh: Mesh, rules: Any = None) -> Any:
    """Shapes of the parameters with their shardings, by the training rules if none are given."""
    return with_shardings(abstract_params(specs, dtype), param_shardings(specs, mesh, *([rules] if rules else [])))


def _model_config(
    cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: Mesh, dropout: float = 0.0, adapters: bool = False
) -> DecoderConfig:
    hardware = hardware_of(mesh.devices.flat[0])
    return build_model_config(cfg, pretrained, cfg.tokenizer.vocab_size, hardware, dropout, adapters)


class _Training(NamedTuple):
    """What training holds on the devices: its state, and the frozen weights under adapters."""

    model: Decoder
    optimizer: Any
    shardings: Any
    state: trainer.TrainState
    frozen: Any

    def bytes(self, offload: bool) -> dict[str, int]:
        return {
            "params": bytes_per_device(self.state.params) + bytes_per_device(self.frozen or {}),
            "optimizer": bytes_per_device(self.state.opt_state) * (not offload),
        }


def _training(cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: Mesh, stage: str) -> _Training:
    model = Decoder(_model_config(cfg, pretrained, mesh, cfg[stage].dropout, adapters=True))
    specs = lora.trainable_specs(model.cfg)
    optimizer = trainer.make_optimizer(cfg.optimizer)
    params, shardings = abstract_params(specs, "float32"), param_shardings(specs, mesh)
    shardings = trainer.state_shardings(optimizer, params, shardings, mesh, cfg.optimizer.offload)
    state = trainer.TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params))
    frozen = None
    if cfg.lora.rank:
        frozen = _sharded_params(param_specs(_model_config(cfg, pretrained, mesh)), cfg.model.dtype, mesh)
    return _Training(model, optimizer, shardings, with_shardings(state, shardings), frozen)


def _training_program(
    cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: Mesh, stage: str, pair_len: int
) -> Program:
    """The update of a stage, as in stages/training.py."""
    settings, training = cfg[stage], _training(cfg, pretrained, mesh, stage)
    if stage == "sft":
        rows, seq_len, unit = settings.batch_size, settings.seq_len, "rows"
        batch, loss_fn = _sft_batch(settings, mesh, training.model.cfg), sft.loss_fn(training.model)
    else:
        rows, seq_len, unit = 2 * settings.batch_size, round_up(pair_len, 16), "pairs"
        batch = _dpo_batch(settings, mesh, seq_len, training.model.cfg)
        loss_fn = dpo.loss_fn(training.model, settings)
    key = jax.ShapeDtypeStruct(jax.random.key_data(jax.random.key(0)).shape, jnp.uint32)
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32)
    with jax.set_mesh(mesh):
        update = trainer.make_update(loss_fn, training.optimizer, training.shardings, mesh)
        lowered = update.jitted.lower(training.state, batch, key, training.frozen, learning_rate)

    num_bytes = training.bytes(cfg.optimizer.offload)
    model = training.model.cfg
    if model.remat == "full":  # the saved input of each layer; for other policies only the compiler knows the size
        tokens = rows * seq_len // settings.grad_accum_steps // batch_divisor(mesh)
        num_bytes["activations"] = tokens * jnp.dtype(cfg.model.dtype).itemsize * model.dim * model.num_layers
    return Program(stage, f"{settings.batch_size} {unit} of {seq_len} tokens", lowered, num_bytes)


def _reference_program(cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: Mesh, pair_len: int) -> Program:
    """The log-probs of a batch of pairs under the reference, which has no optimizer beside it."""
    model, settings, length = Decoder(_model_config(cfg, pretrained, mesh)), cfg.dpo, round_up(pair_len, 16)
    params = _sharded_params(param_specs(model.cfg), "float32", mesh)
    arrays = {}
    for name, dtype in (("tokens", "int32"), ("target", "float32")):
        shape = jax.ShapeDtypeStruct((settings.batch_size, length), jnp.dtype(dtype), sharding=batch_sharding(mesh, 2))
        arrays |= {f"{side}_{name}": shape for side in ("chosen", "rejected")}
    with jax.set_mesh(mesh):
        lowered = dpo.reference_fn(model, mesh).lower(params, arrays)
    num_bytes = {"params": bytes_per_device(params)}
    return Program("reference", f"{settings.batch_size} pairs of {2 * length} tokens", lowered, num_bytes)


def _batch_array(settings: Any, mesh: Mesh, rows: int, *sizes: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    shape = (settings.grad_accum_steps, rows // settings.grad_accum_steps, *sizes)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=batch_sharding(mesh, len(shape), axis=1))


def _packed_arrays(
    settings: Any, mesh: Mesh, rows: int, seq_len: int, model: DecoderConfig, prefix: str = ""
) -> dict[str, Any]:
    """The arrays of `batches.packed_batch`."""
    names = ("tokens", "positions", "segments")
    arrays: dict[str, Any] = {name: _batch_array(settings, mesh, rows, seq_len) for name in names}
    arrays["target"] = _batch_array(settings, mesh, rows, seq_len, dtype="float32")
    if takes_texts(model.attention, model.attention_softcap):
        # Four times the slots of packed rows. Texts of Open Assistant and judgments take 2 to 3 times, at most it is 6.
        texts = [(seq_len // part, part) for part in (8, 4, 2, 1)]
        arrays["text_slots"] = tuple(_batch_array(settings, mesh, rows, count, length) for length, count in texts)
        arrays["text_places"] = _batch_array(settings, mesh, rows, seq_len)
    return {f"{prefix}{name}": x for name, x in arrays.items()}


def _totals(mesh: Mesh, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh)))


def _sft_batch(settings: Any, mesh: Mesh, model: DecoderConfig) -> dict[str, Any]:
    """A batch of `sft.make_batch_fn`."""
    arrays = _packed_arrays(settings, mesh, settings.batch_size, settings.seq_len, model)
    return {"arrays": arrays, "totals": _totals(mesh, "target_total")}


def _dpo_batch(settings: Any, mesh: Mesh, pair_len: int, model: DecoderConfig) -> dict[str, Any]:
    """A batch of `dpo.make_batch_fn`."""
    rows = settings.batch_size
    arrays, totals = {"reference": _batch_array(settings, mesh, rows, 2, dtype="float32")}, ["pair_total"]
    for side in ("chosen", "rejected"):
        arrays[f"{side}_tokens"] = _batch_array(settings, mesh, rows, pair_len)
        arrays[f"{side}_target"] = _batch_array(settings, mesh, rows, pair_len, dtype="float32")
    if settings.replay_weight:
        replayed = settings.replay_batch_size, settings.replay_seq_len
        arrays |= _packed_arrays(settings, mesh, *replayed, model, prefix="replay_")
        totals.append("replay_target_total")
    return {"arrays": arrays, "totals": _totals(mesh, *totals)}


def _sampling_programs(
    cfg: ConfigDict, pretrained: DecoderConfig | None, training_mesh: Mesh, names: Sequence[str]
) -> Iterator[Program]:
    mesh = sampling_mesh(training_mesh, cfg.parallel.sampling_tensor)
    model, dtype = sampling_config(_model_config(cfg, pretrained, mesh), mesh.devices.flat[0].platform), cfg.model.dtype
    trained = _sharded_params(param_specs(model), "float32", training_mesh)
    params = _sharded_params(param_specs(model), dtype, mesh, SAMPLING)
    drawn = params if model.scan_layers else unstacked_shapes(model, params)
    resident: dict[str, int] = {}
    if cfg.dpo.eval_every:  # early stopping samples during training, whose state stays on the devices
        training = _training(cfg, pretrained, training_mesh, "dpo")
        resident["training"] = sum(training.bytes(cfg.optimizer.offload).values())
    if "merge" in names and cfg.lora.rank:
        yield _merge_program(
            cfg, _model_config(cfg, pretrained, training_mesh, adapters=True), training_mesh, trained, resident
        )
    if "reshard" in names:
        yield _reshard_program(dtype, trained, params, resident)
    if "prefill" in names:
        yield prefill_program(cfg, model, mesh, drawn, resident)
    if "insert" in names:
        yield insert_program(cfg, model, mesh, drawn, resident)
    if "decode" in names:
        yield decode_program(cfg, model, mesh, drawn, resident)


def _merge_program(
    cfg: ConfigDict, model: DecoderConfig, mesh: Mesh, trained: Any, resident: dict[str, int]
) -> Program:
    """Adapters merged into the weights, on the mesh of training; `model` has the adapters."""
    adapters = _sharded_params(lora.trainable_specs(model), "float32", mesh)
    merge = jax.jit(
        lambda frozen, adapters: lora.merge(model, lora.combine(frozen, adapters)),
        out_shardings=jax.tree.map(lambda x: x.sharding, trained),
        donate_argnums=0,
    )
    num_bytes = resident | {"params": bytes_per_device(trained) + bytes_per_device(adapters)}
    shapes = f"adapters of rank {cfg.lora.rank}"
    return Program("merge", shapes, merge.lower(trained, adapters), num_bytes, sum(resident.values()))


def _reshard_program(dtype: str, trained: Any, params: Any, resident: dict[str, int]) -> Program:
    """The largest weight moved to the layout of sampling.

    Weights move one by one. At the end all of them are in both layouts.
    """
    pairs = jax.tree.leaves(jax.tree.map(lambda *pair: pair, trained, params), is_leaf=lambda x: type(x) is tuple)
    largest = max(pairs, key=lambda pair: bytes_per_device(pair))
    num_bytes = resident | {"params": bytes_per_device(trained) + bytes_per_device(params)}
    others = num_bytes["params"] - bytes_per_device(largest)
    lowered = reshard_fn(largest[1].sharding, dtype).lower(largest[0])
    return Program("reshard", f"float32 to {dtype}, one by one", lowered, num_bytes, sum(resident.values()) + others)
