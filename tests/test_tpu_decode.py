"""What XLA makes of a decoding step for TPU slices, compiled without one: read from the text of the program."""

import importlib.util
import math
import os
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import abstract_params, param_specs
from selfreward_jax.memory.sampling_programs import DecodeShape, slot_shapes, unstacked_shapes
from selfreward_jax.parallel.mesh import make_mesh, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, param_shardings
from selfreward_jax.sampling import sampler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"),
]
SMALL = DecoderConfig(
    vocab_size=32768, dim=1024, num_layers=4, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=4096,
    tie_embeddings=False, dtype="bfloat16", kv_layout="tokens", attention="splash",
)  # fmt: skip
LLAMA3_8B = DecoderConfig(
    vocab_size=128256, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14336,
    tie_embeddings=False, dtype="bfloat16", kv_layout="tokens", attention="splash",
)  # fmt: skip
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def compile_decode(cfg, topology, *, replicas=1, tensor=2, rows=128, prompt_len=512, max_new_tokens=256):
    """The decode program of a mesh on the slice, and the shapes of its slots."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = sampling_mesh(make_mesh(replicas=replicas, tensor=tensor, devices=devices))
    specs = param_specs(cfg)
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    params = jax.tree.map(shape, abstract_params(specs, "bfloat16"), param_shardings(specs, mesh, SAMPLING))
    slots = slot_shapes(cfg, DecodeShape(rows, prompt_len, 1, max_new_tokens), mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    draw, min_free = sampler.DrawParams(number, number), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh):
        lowered = sampler.decode.lower(cfg, unstacked_shapes(cfg, params), slots, None, draw, min_free, stop_ids=(2,))
    return lowered.compile(), slots


def copied_bytes(text):
    """The sizes of all copies in a program."""
    widths = {"bf16": 2, "pred": 1}
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* copy\(", text)
    return [widths.get(dtype, 4) * math.prod(map(int, filter(None, sizes.split(",")))) for dtype, sizes in found]


@pytest.mark.parametrize(
    ("topology", "replicas", "rows"), [("v5e:2x4", 1, 128), ("v5e:2x4", 2, 128), ("v5p:4x4x4", 1, 1024)]
)
def test_a_step_has_no_loop_over_rows_no_copy_of_the_cache_and_few_collectives(topology, replicas, rows):
    program, slots = compile_decode(SMALL, topology, replicas=replicas, rows=rows)
    text = program.as_text()
    assert len(re.findall(r" while\(", text)) == 2  # the tokens; and the attempts of a draw, one or two as a rule
    shard = slots.cache[0][0].sharding.shard_shape(slots.cache[0][0].shape)
    assert max(copied_bytes(text)) < 2 * math.prod(shard)
    assert program.memory_analysis().temp_size_in_bytes < 32 << 20  # a device's weights are 134 MB
    collectives = Counter(match[1] for match in COLLECTIVE.finditer(text))
    # Two for each layer; the embedding, the tokens and their log-probs, and the number of free slots.
    assert collectives == {"all-reduce": 2 * SMALL.num_layers + 4, "all-to-all": 1}


def test_8b_at_128_rows_needs_less_than_300_mib_of_temporaries():
    program, slots = compile_decode(LLAMA3_8B, "v5e:4x4", tensor=8, prompt_len=1024, max_new_tokens=512)
    assert program.memory_analysis().temp_size_in_bytes < 0.3 * 2**30
    shard = slots.cache[0][0].sharding.shard_shape(slots.cache[0][0].shape)
    assert max(copied_bytes(program.as_text())) < 2 * math.prod(shard)
