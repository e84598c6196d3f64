"""Bytes on a device, by arithmetic: what training and sampling take before anything is compiled.

It is .80 to 1.21 of what the compiler needs for the models and machines of docs/fits.md (tests/test_planner.py).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from selfreward_jax.llm import lora
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import abstract_params, is_param_spec, param_specs, parameter_count
from selfreward_jax.memory.sampling_programs import decode_shapes
from selfreward_jax.parallel.hardware import Hardware
from selfreward_jax.parallel.mesh import AXES
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, batch_divisor
from selfreward_jax.runs.models import build_model_config
from selfreward_jax.train import trainer
from selfreward_jax.train.logprobs import MAX_LOGITS

LANES = 128  # an accelerator pads the last dimension of an array to a multiple
ALL_REDUCE_BYTES = 4e7  # that a device could read while it waits for the sum of a layer's half: 10 to 50 us
# Arrays of a token that one layer holds while it is computed again and differentiated, by what they are as wide as.
STREAM_ARRAYS, MLP_ARRAYS, HEAD_ARRAYS = 16, 4, 8


class MeshShape(NamedTuple):
    """How many devices each axis of a mesh has."""

    replicas: int
    data: int
    fsdp: int
    tensor: int

    @property
    def abstract(self) -> AbstractMesh:
        """A mesh of these sizes, without devices."""
        return AbstractMesh(tuple(self), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def is_divisible(specs: Any, mesh: MeshShape, sampling: bool = False) -> bool:
    """Whether each parameter can be sharded over a mesh."""
    sizes, table = mesh.abstract.shape, SAMPLING if sampling else TRAINING
    return all(
        size % sizes.get(table.get(axis), 1) == 0
        for spec in jax.tree.leaves(specs, is_leaf=is_param_spec)
        for axis, size in zip(spec.axes, spec.shape, strict=True)
    )


def training_bytes(
    cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: MeshShape, stage: str, pair_len: int, hardware: Hardware
) -> int:
    """Bytes that a device needs for an update of SFT or DPO.

    Args:
      cfg: the settings; those of batches and microbatches count.
      pretrained: the shapes of model.init, if there is one.
      mesh: of training.
      stage: "sft" or "dpo".
      pair_len: tokens of the longer side of a pair.
      hardware: the kind of device.
    """
    model = build_model_config(cfg, pretrained, cfg.tokenizer.vocab_size, hardware, adapters=True)
    base, settings = build_model_config(cfg, pretrained, cfg.tokenizer.vocab_size, hardware), cfg[stage]
    trained, itemsize = lora.trainable_specs(model), jnp.dtype(cfg.model.dtype).itemsize
    shards = mesh.fsdp * mesh.tensor
    weights = 4 * parameter_count(trained)
    moments = jax.eval_shape(trainer.make_optimizer(cfg.optimizer).init, abstract_params(trained, "float32"))
    # Those of a microbatch, and their sum; where they are shared, before and after it. It is read off what is compiled
    # for 1.1B on one A100 and 70B on v4:4x4x8.
    gradients = weights * (1 if settings.grad_accum_steps == 1 else 2 + (mesh.fsdp > 1))
    state = weights + gradients + (0 if cfg.optimizer.offload else _tree_bytes(moments))
    frozen = itemsize * parameter_count(param_specs(base)) if cfg.lora.rank else 0
    rows = settings.batch_size * (2 if stage == "dpo" else 1) / settings.grad_accum_steps / batch_divisor(mesh.abstract)
    length = pair_len if stage == "dpo" else settings.seq_len
    passes = [max(1, rows) * length]  # the tokens of each
    # "xla" stores the float32 scores of a layer; other implementations none, or those of a part of the text.
    scores = 4 * passes[0] * length * base.num_heads / mesh.tensor * (base.attention == "xla")
    if stage == "dpo" and settings.replay_weight:
        replayed = settings.replay_batch_size / settings.grad_accum_steps / batch_divisor(mesh.abstract)
        passes.append(max(1, replayed) * settings.replay_seq_len)
    # Weights as they are gathered, and their gradients; of the vocabulary those of each pass, and of a tied one those
    # of the lookup and of the head, which are summed at the end.
    lookups = len(passes) * (2 if base.tie_embeddings else 1)
    whole = 2 * _layer_parameters(base) + (1 + lookups) * base.vocab_size * base.dim
    whole_weights = itemsize * whole / mesh.tensor * (mesh.fsdp > 1)
    parts = (state + frozen) / shards, whole_weights, _activations(base, mesh, passes, itemsize), scores
    return int(sum(parts)) + 3 * 4 * MAX_LOGITS  # logits, their gradient, and their exponentials


def _activations(model: DecoderConfig, mesh: MeshShape, passes: Sequence[float], itemsize: int) -> float:
    """Bytes of activations: what is saved of each layer for passes of so many tokens, and one layer at work."""
    heads = (model.num_heads + model.num_kv_heads) * math.ceil(model.head_dim / LANES) * LANES
    mlp = model.mlp_dim * (model.experts_per_token if model.num_experts else 1)
    layer = STREAM_ARRAYS * model.dim + (MLP_ARRAYS * mlp + HEAD_ARRAYS * heads) / mesh.tensor
    # What "dots" saves of a layer: the results of its matrix products.
    saved = {"full": 0.0, "dots": 2 * model.dim + (2 * mlp + heads) / mesh.tensor, "none": layer}[model.remat]
    return itemsize * (sum(passes) * model.num_layers * (model.dim + saved) + max(passes) * layer)


def _layer_parameters(model: DecoderConfig) -> int:
    """Of one layer; of experts only some are gathered at once, as each device has its own."""
    return parameter_count(param_specs(model)["layers"]) // model.num_layers // max(1, model.num_experts // 4)


def sampling_bytes(
    cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: MeshShape, training: MeshShape, hardware: Hardware
) -> int:
    """Bytes that a device needs to sample with `sampling.max_concurrent` slots, at the longest prompts.

    Args:
      cfg, pretrained, hardware: as in `training_bytes`.
      mesh: of sampling.
      training: of training; its float32 weights are there while they are moved, and its state with early stopping.
    """
    model = build_model_config(cfg, pretrained, cfg.tokenizer.vocab_size, hardware)
    itemsize, count = jnp.dtype(cfg.model.dtype).itemsize, parameter_count(param_specs(model))
    weights = itemsize * count / mesh.tensor
    shapes = decode_shapes(cfg, mesh.abstract)
    tokens = max(shape.cached_tokens for shape in shapes)
    cache = tokens * model.num_layers * 2 * model.num_kv_heads * model.head_dim * itemsize / math.prod(mesh)
    rows = max(shape.num_slots for shape in shapes) / batch_divisor(mesh.abstract)
    logits = 3 * 4 * rows * model.vocab_size / mesh.tensor
    float32 = 4 * count / (training.fsdp * training.tensor)
    largest = max(math.prod(spec.shape) for spec in jax.tree.leaves(param_specs(model), is_leaf=is_param_spec))
    moved = float32 + itemsize * largest / mesh.tensor  # weights are moved to this mesh one by one
    resident = 2 * float32 * (cfg.dpo.eval_every > 0)  # the moments; the weights are in `moved`, and stay
    stays = float32 * (cfg.dpo.eval_every > 0)
    return int(resident + weights + max(moved, stays + 1.1 * cache + logits))


def weight_bytes(
    cfg: ConfigDict, pretrained: DecoderConfig | None, mesh: MeshShape, hardware: Hardware
) -> tuple[float, float]:
    """What a device reads of the weights for a token, and what it could read while it waits for the others."""
    model = build_model_config(cfg, pretrained, cfg.tokenizer.vocab_size, hardware)
    weights = jnp.dtype(cfg.model.dtype).itemsize * parameter_count(param_specs(model)) / mesh.tensor
    return weights, 2 * model.num_layers * ALL_REDUCE_BYTES * (mesh.tensor > 1)


def _tree_bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
