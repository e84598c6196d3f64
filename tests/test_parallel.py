"""Meshes, sharding and resharding of weights, and equal results on one device and on eight.

A function that needs eight devices is marked `on_eight`. All of them run in one process with eight simulated devices,
and each is a test.
"""

import json
import math
import os
import re
from functools import lru_cache, partial
from types import SimpleNamespace

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import EXPERTS
from test_pair_layout import random_pairs
from test_parallel_meshes import CFG
from test_trainer import PAIRS, TEXTS, dpo_settings

from selfreward_jax.llm import lora
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import MATRICES, abstract_params, param_specs
from selfreward_jax.parallel.arrays import fetch, put, reshard
from selfreward_jax.parallel.mesh import AXES, make_mesh, sampling_mesh
from selfreward_jax.parallel.sharding import SAMPLING, TRAINING, batch_sharding, param_shardings, replicated
from selfreward_jax.sampling import sampler
from selfreward_jax.train import batches, dpo, logprobs, pair_layout, sft, text_rows, trainer

ON_EIGHT = {}


def on_eight(function):
    ON_EIGHT[function.__name__] = function
    return function


DRIVER = """
import json, sys, traceback
sys.path.insert(0, sys.argv[1])
import jax
from test_parallel import ON_EIGHT

assert jax.device_count() == 8
errors = {}
for name, function in ON_EIGHT.items():
    try:
        function()
        errors[name] = ""
    except Exception:
        errors[name] = traceback.format_exc()
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors():
    """The traceback of each function on eight devices; empty if it passed."""
    return json.loads(conftest.on_eight_devices(DRIVER, os.path.dirname(__file__)))


def random_weights(cfg, mesh, table=TRAINING, seed=0):
    """Random weights in which no vector is all zeros or ones."""
    declared, rng = param_specs(cfg), np.random.default_rng(seed)
    shapes = abstract_params(declared, "float32")
    params = jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), shapes)
    return jax.tree.map(put, params, param_shardings(declared, mesh, table))


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def same_arrays(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: x is y, a, b)))


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((a, b)))


def assert_close(a, b, atol):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), *jax.device_get((a, b)))


# --- meshes --------------------------------------------------------------------------------------------------------


@on_eight
def a_mesh_has_the_requested_shape_and_every_device_once():
    for sizes, shape in {
        (1, 1, 1): (1, 8, 1, 1),
        (2, 2, 1): (1, 2, 2, 2),
        (4, 1, 2): (2, 1, 4, 1),
        (1, 2, 4): (4, 1, 1, 2),
        (8, 1, 1): (1, 1, 8, 1),
    }.items():
        mesh = make_mesh(*sizes)
        assert dict(mesh.shape) == dict(zip(AXES, shape, strict=True)), (sizes, mesh)
        assert {d.id for d in mesh.devices.flat} == set(range(8))


@on_eight
def the_sampling_mesh_has_the_same_devices_in_the_same_order():
    mesh = make_mesh(fsdp=2, tensor=2, replicas=2, devices=jax.devices()[::-1])
    assert [d.id for d in mesh.devices.flat] != list(range(8))
    for tensor, shape in {0: (2, 2, 1, 2), 1: (2, 4, 1, 1), 4: (2, 1, 1, 4)}.items():
        other = sampling_mesh(mesh, tensor)
        assert other.devices.shape == shape, (tensor, other)
        assert other.axis_names == AXES
        assert list(other.devices.flat) == list(mesh.devices.flat)


# --- sharding ------------------------------------------------------------------------------------------------------


@on_eight
def put_and_fetch_are_inverse():
    mesh = make_mesh(fsdp=2, tensor=2)
    x, y = np.arange(24.0).reshape(4, 6), np.arange(16).reshape(2, 8)
    tree = {
        "rows": put(x, batch_sharding(mesh, 2)),
        "second": put(y, batch_sharding(mesh, 2, axis=1)),
        "all": put(x, replicated(mesh)),
    }
    parts = {name: a.addressable_shards[0].data.shape for name, a in tree.items()}
    assert parts == {"rows": (1, 6), "second": (2, 2), "all": (4, 6)}, parts
    back = fetch(tree)
    assert all(type(a) is np.ndarray for a in back.values())
    assert_same_bits(back, {"rows": x, "second": y, "all": x})


@on_eight
def weights_are_resharded_for_sampling_and_back_with_the_same_bits():
    for mesh, tensor in ((make_mesh(fsdp=4), 4), (make_mesh(fsdp=2, tensor=2, replicas=2), 0)):
        other = sampling_mesh(mesh, tensor)
        declared = param_specs(CFG)
        training, sampling = param_shardings(declared, mesh), param_shardings(declared, other, SAMPLING)
        params = random_weights(CFG, mesh)
        resharded = reshard(params, sampling)
        assert_same_bits(resharded, params)
        assert_same_bits(reshard(resharded, training), params)
        half = reshard(params, sampling, "bfloat16")
        assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}
        assert_same_bits(half, jax.tree.map(lambda x: x.astype("bfloat16"), fetch(params)))
        again = reshard(half, training, "float32")
        assert_same_bits(reshard(again, sampling, "bfloat16"), half)
        for tree, shardings in ((resharded, sampling), (half, sampling), (again, training)):
            for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
                assert x.sharding.is_equivalent_to(s, x.ndim), (x.sharding, s)
        assert same_arrays(reshard(half, sampling, "bfloat16"), half)


def test_reshard_copies_nothing_where_nothing_changes():
    mesh = one_device()
    declared = param_specs(CFG)
    sampling = param_shardings(declared, sampling_mesh(mesh), SAMPLING)
    params = random_weights(CFG, mesh)
    assert same_arrays(reshard(params, sampling), params)
    assert same_arrays(reshard(params, sampling, "float32"), params)
    half = reshard(params, sampling, "bfloat16")
    assert half is not params
    assert same_arrays(reshard(half, sampling), half)


# --- sampling ------------------------------------------------------------------------------------------------------

# The largest activations that devices could exchange, 16 rows of 256 logits, are smaller than a quarter of any matrix.
BIG = DecoderConfig(vocab_size=256, dim=256, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=32, mlp_dim=512)
COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)


def collective_sizes(program):
    """The element counts of the results of all collectives in a compiled program, by operation."""
    by_operation = {}
    for line in program.splitlines():
        if match := COLLECTIVE.search(line):
            for sizes in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                by_operation.setdefault(match[2], set()).add(math.prod(map(int, filter(None, sizes.split(",")))))
    return by_operation


def test_collective_sizes_of_a_program():
    text = """
      %a = f32[4,512]{1,0} all-gather(f32[4,128]{1,0} %x), channel_id=1
      %b = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(f32[2,3]{1,0} %x), dimensions={0}
      ROOT %c = (pred[], bf16[7]{0}) all-reduce(%p, %q), to_apply=%add
      %d = f32[8,3]{1,0} all-gather-done((f32[2,3]{1,0}, f32[8,3]{1,0}) %b)
      %e = f32[1000]{0} fusion(%all-gather.1), calls=%f
    """
    assert collective_sizes(text) == {"all-gather": {2048, 6, 24}, "all-reduce": {1, 7}}


@lru_cache
def decoded(scan, mesh, sampling, layout="columns"):
    """The compiled decode program, with weights sharded for sampling or for training; its samples; and the shapes of a
    device's shards of the cache, before and after."""
    cfg = DecoderConfig(**vars(BIG) | {"scan_layers": scan, "kv_layout": layout})
    params = random_weights(cfg, mesh, SAMPLING if sampling else TRAINING)
    rng = np.random.default_rng(1)
    tokens, lengths = rng.integers(0, 256, (8, 16)).astype(np.int32), rng.integers(3, 16, 8).astype(np.int32)
    tokens, lengths = put(tokens, batch_sharding(mesh, 2)), put(lengths, batch_sharding(mesh, 1))
    keys = jax.random.key_data(jax.random.split(jax.random.key(2), 16))
    keys = put(np.asarray(keys), batch_sharding(mesh, 2))
    how, stop_ids = sampler.DrawParams(np.float32(4), np.float32(0.9)), tuple(range(0, 256, 16))
    with jax.set_mesh(mesh):
        prefix = sampler.read_prefix(cfg, params, put(np.arange(32, dtype=np.int32), replicated(mesh)))
        read = sampler.prefill(cfg, params, tokens, lengths, prefix)
        slots = sampler.init_slots(cfg, 16, 16, 12)
        before = shard_shapes(slots.cache)
        places = put(np.arange(16, dtype=np.int32), batch_sharding(mesh, 1))
        slots = sampler.insert(slots, places, places // 2, *read, lengths, keys, how, stop_ids=stop_ids)
        program = sampler.decode.lower(cfg, params, slots, prefix, how, np.int32(16), stop_ids=stop_ids).compile()
        slots = program(params, slots, prefix, how, np.int32(16))
    return program.as_text(), fetch(slots.samples), before | shard_shapes(slots.cache)


def shard_shapes(tree):
    return {x.addressable_shards[0].data.shape for x in jax.tree.leaves(tree)}


def sampling_on_eight(scan):
    return decoded(scan, sampling_mesh(make_mesh(fsdp=4), 4), True)


def sizes_of_weights():
    """Elements of one layer of every matrix, and of the embedding."""
    declared = param_specs(BIG)
    layer = {name: math.prod(declared["layers"][name].shape[1:]) for name in MATRICES}
    return layer | {"embed": math.prod(declared["embed"].shape)}


@on_eight
def decoding_exchanges_no_weight():
    limit = min(sizes_of_weights().values()) // 4  # one device's shard of the smallest matrix
    for scan in (False, True):
        sizes = collective_sizes(sampling_on_eight(scan)[0])
        # Logits of a device's 8 rows are exchanged, so collectives are recognized.
        assert 8 * 256 in set.union(*sizes.values()), sizes
        assert max(set.union(*sizes.values())) < limit, (scan, limit, sizes)


@on_eight
def sharding_for_training_gathers_every_matrix():
    sizes = collective_sizes(decoded(False, make_mesh(fsdp=4), False)[0])
    assert set(sizes_of_weights().values()) <= sizes["all-gather"], sizes


@on_eight
def samples_on_eight_devices_equal_those_of_one():
    _, expected, _ = decoded(False, one_device(), True)
    for scan in (False, True):
        _, actual, cache = sampling_on_eight(scan)
        np.testing.assert_array_equal(actual.tokens, expected.tokens)
        np.testing.assert_array_equal(actual.lengths, expected.lengths)
        np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-4)
        assert len(np.unique(expected.tokens)) > 50  # samples differ from each other
        assert len(np.unique(expected.lengths)) > 1
        # Keys and values are sharded by rows and heads: 16 rows over 2, 4 heads over 4.
        assert {part[-4:] for part in cache} == {(8, 1, 32, 12), (8, 1, 12, 32)}, cache


def read_prompts(cfg, mesh):
    """Logits after four prompts with a common prefix, which is read as one row, and the prefix's keys and values."""
    with jax.set_mesh(mesh):
        params = sampler.unstack_params(cfg, random_weights(cfg, mesh))
        prefix = jax.jit(partial(sampler.read_prefix, cfg))(params, np.arange(1, 21))
        tokens = np.random.default_rng(1).integers(1, 30, (4, 16)).astype(np.int32)
        logits, _ = sampler.prefill(cfg, params, tokens, np.array([16, 3, 1, 9], np.int32), prefix)
        return fetch((logits, prefix.k, prefix.v))


@on_eight
def a_prefix_of_prompts_is_read_on_eight_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", cudnn_in_jax)
        for options in ({}, {"attention": "splash"}, {"attention": "cudnn"}, EXPERTS):
            cfg = DecoderConfig(**vars(TINY) | {"scan_layers": False} | options)
            expected = read_prompts(cfg, one_device())
            for mesh in (sampling_mesh(make_mesh(fsdp=4, tensor=2)), sampling_mesh(make_mesh(replicas=2, fsdp=4))):
                assert_close(read_prompts(cfg, mesh), expected, 2e-5)
            assert np.abs(expected[0]).max() > 0.1


@on_eight
def replicas_decode_by_themselves_the_samples_of_one_device():
    _, expected, _ = decoded(False, one_device(), True)
    mesh = sampling_mesh(make_mesh(replicas=2, fsdp=2, tensor=2), 2)
    for scan, layout in ((False, "columns"), (False, "tokens"), (True, "tokens")):
        program, actual, _ = decoded(scan, mesh, True, layout)
        np.testing.assert_array_equal(actual.tokens, expected.tokens)
        np.testing.assert_array_equal(actual.lengths, expected.lengths)
        np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-4)
        groups = re.findall(r"replica_groups=(\S+?),? ", program)
        assert groups
        for group in groups:  # devices 0 to 3 are one replica
            assert all(len({d < 4 for d in devices}) == 1 for devices in members(group)), group


def members(groups):
    """The devices of each replica group of a compiled program: {{0,1},{2,3}} or [2,4]<=[2,2,2]T(0,2,1)."""
    if groups.startswith("{"):
        return [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", groups)]
    shape, source, order = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups).groups()
    ints = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    devices = np.arange(math.prod(ints(source))).reshape(ints(source))
    return devices.transpose(ints(order) if order else None).reshape(ints(shape)).tolist()


def test_members_of_replica_groups():
    assert members("{{0,1},{2,3}}") == [[0, 1], [2, 3]]
    assert members("[2,4]<=[8]") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert members("[4,2]<=[2,2,2]T(0,2,1)") == [[0, 2], [1, 3], [4, 6], [5, 7]]


# --- training ------------------------------------------------------------------------------------------------------

TINY = DecoderConfig(vocab_size=30, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)


PAIRS_OF = {"dpo": PAIRS, "dpo of shared prompts": random_pairs(*[(12 + i, 9 - i, 3 + i % 4) for i in range(9)])}


def train_step(loss, mesh, grad_accum_steps=1, **options):
    """Metrics of a step, and the gradient: SGD with rate 1 moves the parameters by it."""
    cfg = DecoderConfig(**vars(TINY) | options)
    model, params, frozen = Decoder(cfg), random_weights(cfg, mesh), None
    if loss in PAIRS_OF:
        pairs = PAIRS_OF[loss]
        settings = dpo_settings(grad_accum_steps=grad_accum_steps, batch_size=8, replay_batch_size=8)
        reference = np.random.default_rng(0).normal(-30, 3, (len(pairs), 2)).astype(np.float32)
        batch = dpo.make_batch_fn(pairs, reference, TEXTS, settings, 3, mesh, cfg)[1](0)
        loss_fn = dpo.loss_fn(model, settings)
    else:
        settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=8, grad_accum_steps=grad_accum_steps)
        batch, loss_fn = sft.make_batch_fn(TEXTS, settings, 3, mesh, cfg)[1](0), sft.loss_fn(model)
    if cfg.lora_rank:
        adapters = {name: params["layers"].pop(name) for name in lora.adapter_specs(cfg)["layers"]}
        params, frozen = {"layers": adapters}, params
    optimizer = optax.sgd(1.0)
    shardings = trainer.state_shardings(optimizer, params, param_shardings(lora.trainable_specs(cfg), mesh), mesh)
    state = trainer.TrainState(put(np.int32(0), replicated(mesh)), params, optimizer.init(params))
    before = fetch(params)
    state, metrics = trainer.make_update(loss_fn, optimizer, shardings, mesh)(state, batch, jax.random.key(0), frozen)
    gradient = jax.tree.map(np.subtract, before, fetch(state.params))
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(gradient))
    return fetch(metrics), gradient


def assert_equals_one_device(loss, *runs, **options):
    """Asserts that each run (mesh, accumulation steps, further options) equals one device without accumulation."""
    expected = train_step(loss, one_device(), **options)
    for mesh, grad_accum_steps, more in runs:
        assert_close(train_step(loss, mesh, grad_accum_steps, **options, **more), expected, 1e-5)


def eight():
    return make_mesh(fsdp=2, tensor=2)


def replicated_mesh():
    return make_mesh(fsdp=2, tensor=2, replicas=2)


@on_eight
def supervised_training_is_the_same_on_eight_devices():
    assert_equals_one_device(
        "sft", (eight(), 2, {"scan_layers": True, "remat": "full"}), (replicated_mesh(), 1, {"remat": "dots"})
    )


@on_eight
def attention_by_text_is_the_same_on_eight_devices():
    """Each device has its own rows and heads; cuDNN's part is computed without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", cudnn_in_jax)
        patch.setattr(text_rows, "TEXT_STEP", 4)
        for loss in ("sft", *PAIRS_OF):
            runs = [(mesh(), count, {"attention": "cudnn"}) for mesh, count in ((eight, 1), (replicated_mesh, 1))]
            assert_equals_one_device(loss, *runs)


in_jax = jax.nn.dot_product_attention


def cudnn_in_jax(*arrays, implementation, **options):
    """What is asked of cuDNN, computed by the same public function without it: for `jax.nn.dot_product_attention`."""
    assert implementation in ("cudnn", "xla")
    return in_jax(*arrays, implementation="xla", **options)


@on_eight
def preference_training_is_the_same_on_eight_devices():
    assert_equals_one_device("dpo", (replicated_mesh(), 2, {"scan_layers": True}))
    assert_equals_one_device("dpo of shared prompts", (eight(), 1, {"remat": "full"}))


@on_eight
def reference_logprobs_are_the_same_on_eight_devices():
    assert pair_layout.choose_layout(PAIRS_OF["dpo of shared prompts"], TINY).max_shared
    for pairs in PAIRS_OF.values():
        actual, expected = (
            dpo.reference_logprobs(Decoder(TINY), random_weights(TINY, mesh), pairs, 4, mesh)
            for mesh in (eight(), one_device())
        )
        np.testing.assert_allclose(actual, expected, atol=1e-4)


@on_eight
def training_of_adapters_is_the_same_on_eight_devices():
    run = (replicated_mesh(), 2, {"scan_layers": True, "remat": "dots"})
    assert_equals_one_device("sft", run, lora_rank=3, lora_targets=("wq", "wo", "w_down"))


@on_eight
def logits_of_targets_alone_are_the_same_on_eight_devices():
    expected = train_step("sft", one_device())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MIN_SELECTED", 0)
        patch.setattr(batches, "SLOT_STEP", 4)
        settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=8, grad_accum_steps=1)
        assert "slots" in sft.make_batch_fn(TEXTS, settings, 3, one_device(), TINY)[1](0)["arrays"]
        assert_close(train_step("sft", replicated_mesh()), expected, 1e-5)


@on_eight
def logits_in_chunks_are_the_same_on_eight_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "MAX_LOGITS", 240)  # one token of a batch of 8 on one device, eight on eight
        assert_equals_one_device("sft", (eight(), 1, {}), num_layers=1)


@pytest.mark.parametrize("name", ON_EIGHT)
def test_on_eight_devices(name, errors):
    assert not errors[name], errors[name]
