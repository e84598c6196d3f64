"""The device programs of sampling, lowered for a mesh from shapes alone."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.memory.shapes import Program, bytes_per_device, with_shardings
from selfreward_jax.parallel.sharding import batch_divisor, batch_sharding
from selfreward_jax.sampling import sampler
from selfreward_jax.sampling.batching import insert_size, num_slots, padded_length, prefill_batch_size

MANY_SAMPLES = 1 << 30  # more than there are slots


class DecodeShape(NamedTuple):
    """The largest shapes of a stage that samples: slots, prompt length, samples per prompt, new tokens."""

    num_slots: int
    prompt_len: int
    num_samples: int
    max_new_tokens: int

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return self.num_slots * (self.prompt_len + self.max_new_tokens)


def decode_shapes(cfg: ConfigDict, mesh: Mesh) -> list[DecodeShape]:
    """The shapes of every stage that samples, with more samples than slots.

    A prefix that prompts share is counted for each prompt, as if it were not shared.
    """
    settings = [
        (1, cfg.prompts.max_new_tokens),
        (cfg.responses.num_samples, cfg.responses.max_new_tokens),
        (cfg.judge.num_samples, cfg.judge.max_new_tokens),
        (cfg.evaluate.num_samples * cfg.evaluate.best_of, cfg.evaluate.max_new_tokens),
    ]
    if cfg.eft.source == "baseline":
        settings.append((cfg.eft.num_samples, cfg.judge.max_new_tokens))
    if cfg.dpo.eval_every:
        settings.append((1, cfg.evaluate.max_new_tokens))
    if cfg.pairwise.method == "pairwise":
        settings.append((1, cfg.pairwise.max_new_tokens))
    return [
        DecodeShape(
            num_slots(MANY_SAMPLES, cfg.sampling.max_concurrent, batch_divisor(mesh)),
            padded_length(cfg.model.max_length - max_new_tokens),
            num_samples,
            max_new_tokens,
        )
        for num_samples, max_new_tokens in settings
    ]


def unstacked_shapes(model: DecoderConfig, params: Any) -> Any:
    """Shapes of `sampler.unstack_params`."""
    layers = {
        name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sampler.without_layer_axis(x.sharding))
        for name, x in params["layers"].items()
    }
    return {**params, "layers": [layers] * model.num_layers}


def prefill_program(
    cfg: ConfigDict, model: DecoderConfig, mesh: Mesh, params: Any, resident: dict[str, int]
) -> Program:
    """The largest prefill. It runs ahead, while the slots are full."""
    shapes = (
        (prefill_batch_size(d.num_slots, d.num_samples, False, mesh, d.prompt_len), d.prompt_len)
        for d in decode_shapes(cfg, mesh)
    )
    R, S = max(shapes, key=math.prod)

    def token_array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh, len(shape)))

    slots = slot_shapes(model, _largest_shape(cfg, mesh), mesh)
    with jax.set_mesh(mesh):
        lowered = sampler.prefill.lower(model, params, token_array(R, S), token_array(R))
    num_bytes = resident | {"params": bytes_per_device(params), "cache": bytes_per_device(slots)}
    resident_bytes = sum(resident.values()) + bytes_per_device(slots)
    return Program("prefill", f"{R} prompts of {S} tokens", lowered, num_bytes, resident_bytes)


def insert_program(cfg: ConfigDict, model: DecoderConfig, mesh: Mesh, params: Any, resident: dict[str, int]) -> Program:
    """The insertion of prefilled samples into slots, with the largest cache."""
    shape = _largest_shape(cfg, mesh)
    sizes = shape.num_slots, shape.num_samples, False, mesh, shape.prompt_len
    R, rows = prefill_batch_size(*sizes), insert_size(*sizes)
    slots, key = slot_shapes(model, shape, mesh), jax.random.key_data(jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.float32)

    def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=batch_sharding(mesh, len(shape)))

    with jax.set_mesh(mesh):
        prefilled = jax.eval_shape(
            partial(sampler.prefill, model), params, array("int32", R, shape.prompt_len), array("int32", R)
        )
        logits, segment = with_shardings(
            prefilled, jax.tree.map(lambda x: NamedSharding(mesh, sampler.partition_spec(x.ndim)), prefilled)
        )
        lowered = sampler.insert.lower(
            slots,
            array("int32", rows),
            array("int32", rows),
            logits,
            segment,
            array("int32", R),
            array("uint32", rows, *key.shape),
            sampler.DrawParams(number, number),
            stop_ids=(2,),
        )
    num_bytes = resident | {"params": bytes_per_device(params), "cache": bytes_per_device(slots)}
    resident_bytes = sum(resident.values()) + bytes_per_device(params)
    return Program("insert", f"{rows} samples of {shape.prompt_len} tokens", lowered, num_bytes, resident_bytes)


def decode_program(cfg: ConfigDict, model: DecoderConfig, mesh: Mesh, params: Any, resident: dict[str, int]) -> Program:
    """Decoding with the largest cache."""
    shape = _largest_shape(cfg, mesh)
    slots = slot_shapes(model, shape, mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    draw, min_free = sampler.DrawParams(number, number), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh):
        lowered = sampler.decode.lower(model, params, slots, None, draw, min_free, stop_ids=(2,))
    num_bytes = resident | {"params": bytes_per_device(params), "cache": bytes_per_device(slots)}
    text = f"{shape.num_slots} rows of {shape.max_new_tokens} new tokens after {shape.prompt_len}"
    return Program("decode", text, lowered, num_bytes, sum(resident.values()))


def _largest_shape(cfg: ConfigDict, mesh: Mesh) -> DecodeShape:
    return max(decode_shapes(cfg, mesh), key=lambda shape: shape.cached_tokens)


def slot_shapes(model: DecoderConfig, shape: DecodeShape, mesh: Mesh) -> Any:
    """Shapes of the sampler's state, with the shardings that the sampler gives it."""
    with jax.set_mesh(mesh):
        slots = jax.eval_shape(
            lambda: sampler.init_slots(model, shape.num_slots, shape.prompt_len, shape.max_new_tokens)
        )
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, sampler.partition_spec(x.ndim)), slots)
    return with_shardings(slots, shardings)
