"""The optimizer's moments: dtype and memory kind."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parallel import TINY, assert_close, one_device, random_weights
from test_trainer import ADAMW, TEXTS

from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.train import sft, trainer


def moments(state):
    return state.opt_state[1][0]  # behind the clipping


def two_steps(offload=False, **changed):
    """The state after two updates of a small model."""
    cfg, mesh = DecoderConfig(**vars(TINY) | {"num_layers": 1}), one_device()
    params = random_weights(cfg, mesh)
    optimizer = trainer.make_optimizer(SimpleNamespace(**vars(ADAMW) | changed))
    of_params = param_shardings(param_specs(cfg), mesh)
    shardings = trainer.state_shardings(optimizer, params, of_params, mesh, offload)
    initial = lambda p: trainer.TrainState(jnp.int32(0), p, optimizer.init(p))  # noqa: E731
    state = jax.jit(initial, out_shardings=shardings)(params)
    settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=4, grad_accum_steps=1)
    batch_at = sft.make_batch_fn(TEXTS, settings, 3, mesh, cfg)[1]
    update = trainer.make_update(sft.loss_fn(Decoder(cfg)), optimizer, shardings, mesh)
    for step in range(2):
        state, _ = update(state, batch_at(step), jax.random.key(0), rate=1e-2)
    return state


@pytest.fixture(scope="module")
def plain():
    return two_steps()


def test_moment_dtype_changes_only_the_first_moment(plain):
    state = two_steps(moment_dtype="bfloat16")
    stored = moments(state)
    assert {x.dtype for x in jax.tree.leaves(stored.mu)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(stored.nu)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for half, full in zip(jax.tree.leaves(stored.mu), jax.tree.leaves(moments(plain).mu), strict=True):
        full = np.asarray(full)
        np.testing.assert_allclose(np.asarray(half, np.float32), full, atol=0.02 * np.abs(full).max())


def host_memory():
    return any(m.kind == "pinned_host" for m in jax.devices()[0].addressable_memories())


@pytest.mark.skipif(not host_memory(), reason="this device cannot use host memory")
def test_offloaded_moments_are_in_host_memory_and_updates_are_the_same(plain):
    state = two_steps(offload=True)
    kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree)}  # noqa: E731
    assert kinds((moments(state).mu, moments(state).nu)) == {"pinned_host"}
    assert kinds(plain) == kinds((state.step, state.params)) != {"pinned_host"}
    assert_close(state, plain, 1e-7)
