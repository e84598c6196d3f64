"""What XLA makes of decoding and of training for slices and GPUs that are not here: read from a program's text."""

import dataclasses
import importlib.util
import math
import os
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from selfreward_jax import config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import abstract_params, param_specs
from selfreward_jax.memory.machines import parse_machine
from selfreward_jax.memory.programs import programs
from selfreward_jax.memory.sampling_programs import DecodeShape, slot_shapes, unstacked_shapes
from selfreward_jax.memory.targets import target_devices
from selfreward_jax.parallel.mesh import make_mesh, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, param_shardings
from selfreward_jax.sampling import sampler
from selfreward_jax.sampling.kv_cache import kv_layout

pytestmark = pytest.mark.slow
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None or jax.__version_info__ < (0, 12),
    reason="needs the extra `cuda` and jax 0.12",
)
SMALL = DecoderConfig(
    vocab_size=32768, dim=1024, num_layers=4, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=4096,
    tie_embeddings=False, dtype="bfloat16",
)  # fmt: skip
LLAMA3_8B = DecoderConfig(
    vocab_size=128256, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14336,
    tie_embeddings=False, dtype="bfloat16",
)  # fmt: skip
KERNELS = {"tpu": "splash", "gpu": "cudnn"}
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


@pytest.fixture(autouse=True)
def as_a_run_compiles(monkeypatch):
    """Without what makes other tests compile faster; each plugin refuses flags of XLA that it does not know."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)  # as environment.py sets it


def compile_decode(cfg, topology, *, replicas=1, tensor=2, rows=128, prompt_len=512, max_new_tokens=256, prefix_len=0):
    """The decode program of a mesh on the machine, and the shapes of its slots."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices = target_devices(parse_machine(topology))
    platform = devices[0].platform
    cfg = dataclasses.replace(cfg, kv_layout=kv_layout(platform), attention=KERNELS[platform])
    mesh = sampling_mesh(make_mesh(replicas=replicas, tensor=tensor, devices=devices))
    specs = param_specs(cfg)
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    params = jax.tree.map(shape, abstract_params(specs, "bfloat16"), param_shardings(specs, mesh, SAMPLING))
    slots = slot_shapes(cfg, DecodeShape(rows, prompt_len, 1, max_new_tokens), mesh)
    number, prefix = jax.ShapeDtypeStruct((), jnp.float32), None
    draw, min_free = sampler.DrawParams(number, number), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh):
        params = unstacked_shapes(cfg, params)
        if prefix_len:
            ids = jax.ShapeDtypeStruct((prefix_len,), jnp.int32)
            prefix = jax.eval_shape(partial(sampler.read_prefix, cfg), params, ids)
            heads, everywhere = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "tensor"), ()))
            prefix = jax.tree.map(lambda x: shape(x, heads if x.ndim == 4 else everywhere), prefix)
        lowered = sampler.decode.lower(cfg, params, slots, prefix, draw, min_free, stop_ids=(2,))
    return lowered.compile(), slots


@pytest.mark.parametrize(
    "topology", [pytest.param("v5e:2x4", marks=needs_libtpu), pytest.param("h100:8", marks=needs_cuda)]
)
def test_the_prefix_of_all_prompts_is_one_row_that_every_device_computes(topology):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices = target_devices(parse_machine(topology))
    platform = devices[0].platform
    cfg = dataclasses.replace(SMALL, kv_layout=kv_layout(platform), attention=KERNELS[platform])
    mesh = sampling_mesh(make_mesh(tensor=2, devices=devices))
    specs = param_specs(cfg)
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    params = jax.tree.map(shape, abstract_params(specs, "bfloat16"), param_shardings(specs, mesh, SAMPLING))
    with jax.set_mesh(mesh):
        params = unstacked_shapes(cfg, params)
        ids = jax.ShapeDtypeStruct((384,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
        text = jax.jit(partial(sampler.read_prefix, cfg)).lower(params, ids).compile().as_text()
    collectives = Counter(match[1] for match in COLLECTIVE.finditer(text))
    assert collectives["all-reduce"] <= 2 * cfg.num_layers + 1  # two for each layer, and the embedding
    assert sum(collectives.values()) == collectives["all-reduce"]


WIDTHS = {"bf16": 2, "pred": 1}


def num_bytes(shapes):
    """Of all arrays in a piece of HLO text."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(WIDTHS.get(dtype, 4) * math.prod(map(int, filter(None, sizes.split(",")))) for dtype, sizes in found)


def copied_bytes(text, gpu=False):
    """The sizes of all copies in a program; on a GPU also those of fusions that copy or transpose, by their names."""
    named = re.findall(r"%\w*(?:copy|transpose)\w*[\d.]* = (\S+) fusion\(", text) if gpu else []
    return [num_bytes(shapes) for shapes in re.findall(r"= (\S+) copy\(", text) + named]


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "replicas", "rows"), [("v5e:2x4", 1, 128), ("v5e:2x4", 2, 128), ("v5p:4x4x4", 1, 1024)]
)
def test_a_step_on_tpus_has_no_loop_over_rows_no_copy_of_the_cache_and_few_collectives(topology, replicas, rows):
    program, slots = compile_decode(SMALL, topology, replicas=replicas, rows=rows)
    text = program.as_text()
    assert len(re.findall(r" while\(", text)) == 2  # the tokens; and the attempts of a draw, one or two as a rule
    shard = slots.cache[0][0].sharding.shard_shape(slots.cache[0][0].shape)
    assert max(copied_bytes(text)) < 2 * math.prod(shard)
    assert program.memory_analysis().temp_size_in_bytes < 32 << 20  # a device's weights are 134 MB
    collectives = Counter(match[1] for match in COLLECTIVE.finditer(text))
    # Two for each layer; the embedding, the tokens and their log-probs, and the number of free slots.
    assert collectives == {"all-reduce": 2 * SMALL.num_layers + 4, "all-to-all": 1}


@needs_libtpu
def test_8b_at_128_rows_needs_less_than_300_mib_of_temporaries():
    program, slots = compile_decode(LLAMA3_8B, "v5e:4x4", tensor=8, prompt_len=1024, max_new_tokens=512)
    assert program.memory_analysis().temp_size_in_bytes < 0.3 * 2**30
    shard = slots.cache[0][0].sharding.shard_shape(slots.cache[0][0].shape)
    assert max(copied_bytes(program.as_text())) < 2 * math.prod(shard)


@needs_cuda
@pytest.mark.parametrize("prefix_len", [0, 384])
@pytest.mark.parametrize(("topology", "replicas", "tensor"), [("h100:1", 1, 1), ("h100:8", 1, 2), ("a100:16", 2, 8)])
def test_a_step_on_gpus_has_no_loop_over_rows_and_copies_no_cache(topology, replicas, tensor, prefix_len):
    program, slots = compile_decode(SMALL, topology, replicas=replicas, tensor=tensor, prefix_len=prefix_len)
    text = program.as_text()
    assert len(re.findall(r" while\(", text)) == 2
    shard = slots.cache[0][0].sharding.shard_shape(slots.cache[0][0].shape)
    assert max(copied_bytes(text, gpu=True), default=0) < 2 * math.prod(shard)
    assert program.memory_analysis().temp_size_in_bytes < 64 << 20  # a device's weights are 67 to 268 MB
    collectives = Counter(match[1] for match in COLLECTIVE.finditer(text))
    if tensor == 1:
        assert not collectives
    else:  # as on TPUs, with the embedding gathered
        assert sum(collectives.values()) <= 2 * SMALL.num_layers + 4, collectives
    if replicas > 1:  # nothing is sent between hosts: the devices of each are one replica
        assert set(re.findall(r"replica_groups=(\S+),", text)) == {"[2,8]<=[16]"}


@needs_cuda
def test_8b_at_128_rows_needs_less_than_300_mib_of_temporaries_on_gpus():
    program, slots = compile_decode(LLAMA3_8B, "h100:8", tensor=8, prompt_len=1024, max_new_tokens=512)
    assert program.memory_analysis().temp_size_in_bytes < 0.3 * 2**30
    shard = slots.cache[0][0].sharding.shard_shape(slots.cache[0][0].shape)
    assert max(copied_bytes(program.as_text(), gpu=True), default=0) < 2 * math.prod(shard)


LENGTH = 384  # of no other dimension of the model below


@needs_cuda
@pytest.mark.parametrize(("topology", "parallel"), [("h100:1", {}), ("h100:8", {"fsdp": 4, "tensor": 2})])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_training_on_gpus_has_no_array_of_pairs_of_tokens(topology, parallel, stage):
    """Packed rows of SFT and of replay have no bias and no gradient of it; their queries and keys are not scattered."""
    cfg = config.get_config("tiny")
    cfg.model.update(dim=512, num_heads=8, num_kv_heads=4, head_dim=64, mlp_dim=1024, num_layers=2, dtype="bfloat16")
    cfg.parallel.update(parallel)
    cfg.sft.update(seq_len=LENGTH, batch_size=8)
    cfg.dpo.update(replay_seq_len=LENGTH, batch_size=8, replay_batch_size=8, replay_weight=1.0)
    devices = target_devices(parse_machine(topology))
    mesh = make_mesh(*(parallel.get(name, 1) for name in ("fsdp", "tensor")), devices=devices)
    (program,) = programs(cfg, None, mesh, 256, [stage])
    text = program.lowered.compile().as_text()
    calls = Counter(re.findall(r"__cudnn\$(\w+)", text))
    assert calls.keys() == {"fmhaSoftmax", "fmhaSoftmaxBackward"}
    shapes = [sizes.split(",") for sizes in re.findall(r"\w+\[([\d,]+)\]", text)]
    assert any(str(LENGTH) in sizes for sizes in shapes)
    assert not [sizes for sizes in shapes if sizes.count(str(LENGTH)) > 1]
    scattered = [sizes.split(",") for sizes in re.findall(r" = \w+\[([\d,]+)\]\S* scatter\(", text)]
    assert not [sizes for sizes in scattered if sizes[-1] == "64"]
